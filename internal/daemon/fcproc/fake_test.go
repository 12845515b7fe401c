package fcproc_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"banger/internal/guest"
	"banger/internal/hypervisor/hypervisortest"
)

// The test binary can stand in for Firecracker and its jailer: it keeps their
// command lines, serves the API and vsock's socket, and leaves out the machine. What
// it does for a guest, the kernel's parameters say:
//
//	fake.agent=none   (default) the guest's kernel has no vsock
//	fake.agent=late   nobody listens when the first connection comes; then somebody does, and rings
//	fake.agent=shy    the same, and the bell does not ring
//	fake.agent=there  whoever connects gets back what he sends
//	fake.halt         the guest is powered off
//	fake.babble       an answer of the API has no end
//	fake.hide         the VMM clears its environment, by which it can be known
//	fake.calls        log the calls of the API in the guest's console
const fakeVersion = "1.16.1"

// fakeProgram plays a program when the arguments are those of one.
func fakeProgram(args []string) (code int, ok bool) {
	switch {
	case slices.Equal(args, []string{"--version"}):
		program := "Firecracker"
		if strings.Contains(filepath.Base(os.Args[0]), "jailer") {
			program = "Jailer"
		}
		fmt.Printf("%s v%s\n\n2026-01-02T03:04:05.678901234 [anonymous-instance:main] exiting successfully. exit_code=0\n", program, fakeVersion)
		return 0, true
	case slices.Contains(args, "--exec-file"):
		return fakeJailer(args), true
	case slices.Contains(args, "--api-sock"):
		return fakeFirecracker(args), true
	}
	return 0, false
}

func flagOf(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

func fakeJailer(args []string) int {
	root := filepath.Join(flagOf(args, "--chroot-base-dir"), filepath.Base(flagOf(args, "--exec-file")), flagOf(args, "--id"), "root")
	uid, _ := strconv.Atoi(flagOf(args, "--uid"))
	gid, _ := strconv.Atoi(flagOf(args, "--gid"))
	for _, err := range []error{
		os.MkdirAll(root, 0o700), os.Chown(root, uid, gid), syscall.Chroot(root), os.Chdir("/"),
		syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			return 1
		}
	}
	return fakeFirecracker(args[slices.Index(args, "--")+1:])
}

// fake is one Firecracker.
type fake struct {
	mu      sync.Mutex
	state   string
	args    string // kernel parameters
	calls   []string
	agents  int // connections that came
	metrics string
	end     chan int
}

func fakeFirecracker(args []string) int {
	l, err := net.Listen("unix", flagOf(args, "--api-sock"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	log, err := os.OpenFile(flagOf(args, "--log-path"), os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	f := &fake{state: "Not started", end: make(chan int, 1)}
	go func() { _ = http.Serve(l, f) }()
	code := <-f.end
	if code != 0 {
		fmt.Fprintf(log, "2026-01-02T03:04:05.678901234 [vm:main] it is broken\n")
	}
	return code
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, body))
	if r.Method == http.MethodGet && r.URL.Path == "/balloon/statistics" {
		_, _ = io.WriteString(w, `{"target_pages":0,"actual_mib":0,"free_memory":1024,"total_memory":4096,"available_memory":2048}`)
		return
	}
	if r.Method == http.MethodGet {
		_ = json.NewEncoder(w).Encode(map[string]string{"state": f.state, "vmm_version": fakeVersion, "id": "vm"})
		return
	}
	if r.URL.Path == "/vsock" && strings.Contains(f.args, "fake.babble") {
		_, _ = w.Write(make([]byte, 2<<20))
		return
	}
	if err := f.put(r.URL.Path, body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (f *fake) put(path string, body []byte) error {
	var in struct {
		Memory  int64  `json:"mem_size_mib"`
		Args    string `json:"boot_args"`
		Kernel  string `json:"kernel_image_path"`
		Socket  string `json:"uds_path"`
		Disk    string `json:"path_on_host"`
		RO      bool   `json:"is_read_only"`
		Action  string `json:"action_type"`
		State   string `json:"state"`
		Metrics string `json:"metrics_path"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return err
	}
	switch {
	case path == "/machine-config" && in.Memory > 1<<30:
		return fmt.Errorf("Start microvm error: Cannot create mmap region: Cannot allocate memory (os error 12)")
	case path == "/metrics":
		f.metrics = in.Metrics
	case in.Action == "FlushMetrics":
		// What was counted since the last time.
		metrics, err := os.OpenFile(f.metrics, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = io.WriteString(metrics, `{"utc_timestamp_ms":1,"block":{"read_bytes":512,"write_bytes":100,"read_count":1,"write_count":2},"net":{"rx_bytes_count":7}}`+"\n")
		return errors.Join(err, metrics.Close())
	case path == "/boot-source":
		f.args = in.Args
		if strings.Contains(in.Args, "fake.end") {
			f.end <- 3
		}
		_, err := os.Stat(in.Kernel)
		return err
	case strings.HasPrefix(path, "/drives/"):
		mode := os.O_RDWR
		if in.RO {
			mode = os.O_RDONLY
		}
		disk, err := os.OpenFile(in.Disk, mode, 0)
		if err == nil {
			_ = disk.Close()
		}
		return err
	case path == "/vsock":
		l, err := net.Listen("unix", in.Socket)
		if err == nil && !strings.Contains(f.args, "fake.agent=") {
			return nil // nobody accepts
		}
		if err == nil {
			go f.vsock(l, in.Socket)
		}
		return err
	case path == "/vm":
		f.state = map[string]string{"Paused": "Paused", "Resumed": "Running"}[in.State]
	case in.Action == "InstanceStart":
		f.state = "Running"
		_, _ = io.WriteString(os.Stdout, hypervisortest.Hello)
		if strings.Contains(f.args, "fake.halt") {
			fmt.Print("[    1.234567] reboot: System halted\r\n")
		}
		if strings.Contains(f.args, "fake.hide") {
			if err := clearEnvironment(); err != nil {
				return err
			}
		}
		if strings.Contains(f.args, "fake.calls") {
			fmt.Println(strings.Join(f.calls, "\n"))
		}
	case in.Action == "SendCtrlAltDel":
		f.end <- 0
	}
	return nil
}

// clearEnvironment writes over what the kernel shows others as the environment.
func clearEnvironment() error {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	const first, begin, end = 3, 50, 51
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	from, err := strconv.ParseInt(fields[begin-first], 10, 64)
	if err != nil {
		return err
	}
	to, err := strconv.ParseInt(fields[end-first], 10, 64)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = mem.WriteAt(make([]byte, to-from), from)
	return errors.Join(err, mem.Close())
}

func (f *fake) vsock(l net.Listener, socket string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go f.connect(conn, socket)
	}
}

func (f *fake) connect(conn net.Conn, socket string) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil || line != fmt.Sprintf("CONNECT %d\n", guest.VsockPort) {
		return
	}
	f.mu.Lock()
	f.agents++
	first := f.agents == 1
	f.mu.Unlock()
	if first && !strings.Contains(f.args, "fake.agent=there") {
		if strings.Contains(f.args, "fake.agent=late") {
			bell, err := net.Dial("unix", fmt.Sprintf("%s_%d", socket, guest.VsockPort))
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			_ = bell.Close()
		}
		return
	}
	if _, err := io.WriteString(conn, "OK 1073741824\n"); err == nil {
		_, _ = io.Copy(conn, r)
	}
}
