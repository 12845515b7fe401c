package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/guest"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

// sandbox is a running VM of the shared daemon.
type sandbox struct {
	*daemon
	ID         string `json:"id"`
	Name       string `json:"name"`
	PID        int    `json:"pid"`
	Dir        string `json:"dir"`
	CPUs       int    `json:"cpus"`
	MemoryMiB  int64  `json:"memory_mib"`
	DiskBytes  int64  `json:"disk_bytes"`
	ImageID    string `json:"image_id"`
	Accel      string `json:"accel"`
	VMMVersion string `json:"vmm_version"`
	user       string // its default user
}

// create makes a VM of the default shape, or as flags say, and waits until its init
// system rests.
func (l *lab) create(ctx context.Context, name string, flags ...string) (*sandbox, error) {
	d, err := l.ready(ctx)
	if err != nil {
		return nil, err
	}
	v := &sandbox{daemon: d}
	if _, err := output(d.cli(ctx, append([]string{"vm", "create", "--name", name, "--wait", "system"}, flags...)...)); err != nil {
		return nil, err
	}
	if err := d.decode(ctx, v, "vm", "show", "--json", name); err != nil {
		return nil, err
	}
	user, err := v.exec(ctx, nil, "id", "-un")
	if err != nil {
		return nil, err
	}
	v.user = strings.TrimSpace(user)
	l.machine.Accel, l.machine.QEMU = v.Accel, v.VMMVersion
	l.machine.Guest = fmt.Sprintf("%d CPUs, %d MiB", v.CPUs, v.MemoryMiB)
	return v, nil
}

// settled is the VM that measurements inside a guest share.
func (l *lab) settled(ctx context.Context) (*sandbox, error) {
	if l.vm != nil {
		return l.vm, nil
	}
	v, err := l.create(ctx, "bench")
	if err != nil {
		return nil, err
	}
	l.vm = v
	return v, nil
}

// remove deletes the VM.
func (v *sandbox) remove(ctx context.Context) error {
	_, err := output(v.cli(ctx, "vm", "delete", "--force", v.ID))
	return err
}

// exec runs a command as the VM's user and returns what it prints.
func (v *sandbox) exec(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	conn, err := client.New(v.layout.Socket).OpenStream(ctx, api.StreamPath(v.ID))
	if err != nil {
		return "", err
	}
	return execOutput(ctx, conn, guest.Exec{Args: args}, stdin)
}

// template is how QEMU was started for a VM of the daemon's.
type template struct {
	binary    string
	args      []string
	imagePath string
	diskBytes int64
}

// template reads it from the running process. Files outside of the VM's directory
// are descriptors there; here their names take that place again.
func (v *sandbox) template(ctx context.Context) (template, error) {
	process := filepath.Join("/proc", strconv.Itoa(v.PID))
	raw, err := os.ReadFile(filepath.Join(process, "cmdline"))
	if err != nil {
		return template{}, fmt.Errorf("read the command line of QEMU: %w", err)
	}
	var img image
	var kernel struct {
		Modules string `json:"modules"`
	}
	if err := errors.Join(v.decode(ctx, &img, "image", "show", "--json", "debian"),
		v.decode(ctx, &kernel, "kernel", "show", "--json", "debian")); err != nil {
		return template{}, err
	}
	argv := strings.Split(string(bytes.TrimSuffix(raw, []byte{0})), "\x00")
	t := template{binary: argv[0], imagePath: img.Path, diskBytes: v.DiskBytes}
	for i := 1; i < len(argv); i++ {
		a := argv[i]
		switch {
		case a == "-S": // the CPUs of a QEMU started by hand run at once
			continue
		case a == "-add-fd" && i+1 < len(argv) && !strings.HasSuffix(argv[i+1], ",set=1"): // 1 is the console
			i++
			continue
		case argv[i-1] == "-name":
			a = "bench"
		case argv[i-1] == "-kernel", argv[i-1] == "-initrd":
			if n, ok := strings.CutPrefix(a, "/proc/self/fd/"); ok {
				if a, err = os.Readlink(filepath.Join(process, "fd", n)); err != nil {
					return template{}, fmt.Errorf("read what QEMU boots: %w", err)
				}
			}
		case argv[i-1] == "-blockdev":
			if a, err = named(a, img.Path, kernel.Modules); err != nil {
				return template{}, err
			}
		}
		t.args = append(t.args, a)
	}
	return t, nil
}

// descriptorSet is how the name of a file begins that QEMU gets as a descriptor.
const descriptorSet = "/dev/fdset/"

// named puts names in place of descriptors in the description of a disk: the
// backing file of the root disk is the image, the other disk holds the modules.
func named(blockdev, image, modules string) (string, error) {
	var node map[string]any
	if err := json.Unmarshal([]byte(blockdev), &node); err != nil {
		return "", fmt.Errorf("decode a disk of QEMU's: %w", err)
	}
	set := func(node map[string]any, path string) {
		if file, ok := node["file"].(map[string]any); ok {
			if name, _ := file["filename"].(string); strings.HasPrefix(name, descriptorSet) {
				file["filename"] = path
			}
		}
	}
	set(node, modules)
	if backing, ok := node["backing"].(map[string]any); ok {
		set(backing, image)
	}
	b, err := json.Marshal(node)
	return string(b), err
}

// with replaces the other end of the network.
func (t template) with(netdev string) template {
	t.args = slices.Clone(t.args)
	t.args[slices.Index(t.args, "-netdev")+1] = netdev
	return t
}

// handVM is a VM that QEMU runs without banger; its agent answers to us.
type handVM struct {
	cmd     *exec.Cmd
	exited  chan struct{}
	session *guest.Session
	took    time.Duration // from before the process was started to the agent's ready event
}

// firstExtra is the first descriptor of a QEMU that the template does not use.
const firstExtra = 7

// errEnded says that a QEMU ended before its guest was ready.
var errEnded = errors.New("QEMU ended")

// boot starts QEMU in dir, which holds the root disk, and waits for the agent's
// ready event: the sockets listen before, as the driver does it, so that nobody
// polls for them. The thread starts it; extra files are its descriptors from
// firstExtra on.
func boot(ctx context.Context, on *thread, t template, dir string, extra ...*os.File) (v *handVM, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	// In the order of the descriptors the command line names, from 3 to firstExtra.
	for _, name := range []string{paths.QMPSocket, paths.AgentSocket, paths.NetSocket} {
		f, err := dirsock.Listen(dir, name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	for _, name := range []string{paths.ConsoleLog, paths.VMMLog} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	log := files[len(files)-1]
	v = &handVM{cmd: exec.Command(t.binary, t.args...), exited: make(chan struct{})}
	v.cmd.Dir, v.cmd.Env, v.cmd.Stdout, v.cmd.Stderr = dir, []string{}, log, log
	v.cmd.ExtraFiles = append(slices.Clone(files[:len(files)-1]), extra...)

	began := time.Now()
	if err := on.start(v.cmd, unix.SIGKILL); err != nil {
		return nil, fmt.Errorf("start QEMU by hand: %w", err)
	}
	up, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		_ = v.cmd.Wait()
		close(v.exited)
		cancel(errEnded)
	}()
	defer func() {
		if err != nil {
			v.kill()
			said, _ := os.ReadFile(filepath.Join(dir, paths.VMMLog))
			err = fmt.Errorf("boot by hand: %w: %s", err, bytes.TrimSpace(said))
		}
	}()
	conn, err := dirsock.Dial(up, dir, paths.AgentSocket)
	if err != nil {
		return nil, err
	}
	v.session, err = guest.Connect(up, conn)
	v.took = time.Since(began)
	if err == nil && !v.session.Ready().RootReady {
		err = errors.New(v.session.Ready().Error)
	}
	return v, err
}

// kill ends the VM and waits for its end.
func (v *handVM) kill() {
	_ = v.cmd.Process.Kill()
	<-v.exited
	if v.session != nil {
		_ = v.session.Close()
	}
}

// call makes a request of the agent.
func (v *handVM) call(ctx context.Context, r guest.Request) error {
	conn, err := v.session.Open(ctx)
	if err == nil {
		_, err = guest.Call(ctx, conn, r)
	}
	return err
}

// exec runs a command as user and returns what it prints.
func (v *handVM) exec(ctx context.Context, user string, stdin io.Reader, args ...string) (string, error) {
	conn, err := v.session.Open(ctx)
	if err != nil {
		return "", err
	}
	return execOutput(ctx, conn, guest.Exec{Args: args, User: user}, stdin)
}

// execOutput runs a command over conn and returns what it prints. A status other
// than zero is an error.
func execOutput(ctx context.Context, conn net.Conn, e guest.Exec, stdin io.Reader) (string, error) {
	var out, complaint bytes.Buffer
	e.Stdin = stdin != nil
	status, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &e},
		guest.ExecIO{Stdin: stdin, Stdout: &out, Stderr: &complaint})
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("it ended with status %d: %s", status.Code, bytes.TrimSpace(complaint.Bytes()))
	}
	if err != nil {
		return "", fmt.Errorf("run %s in the guest: %w", strings.Join(e.Args, " "), err)
	}
	return out.String(), nil
}
