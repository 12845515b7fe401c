package fakevm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
)

// vm is the child process: VMM and guest of one fake VM.
type vm struct {
	spec  hypervisor.Spec
	knobs Knobs
	root  *os.Root // the guest's file system
	born  time.Time
	begun chan struct{} // closed when the guest may run
	once  sync.Once
	exit  chan int  // the status to end with
	mount sync.Once // the guest's first writes
	stall vmproc.Stall

	mu     sync.Mutex // guards what follows
	linkUp bool
	conf   guest.Configure
}

// ChildMain is the child process; args is the JSON of a hypervisor.Spec. It works
// in its working directory, on the listening sockets it inherited as descriptors
// 3 to 5. It returns the process's exit code.
func ChildMain(args []string) int {
	status, err := childMain(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakevm:", err)
	}
	return status
}

func childMain(args []string) (int, error) {
	if len(args) != 1 {
		return 2, errors.New("usage: fakevm SPEC")
	}
	v := &vm{born: time.Now(), begun: make(chan struct{}), exit: make(chan int, 1)}
	if err := json.Unmarshal([]byte(args[0]), &v.spec); err != nil {
		return 2, fmt.Errorf("read spec: %w", err)
	}
	var err error
	if v.knobs, err = readKnobs("."); err != nil {
		return 2, err
	}
	if v.knobs.StartCrash {
		return 1, errors.New("crashing, as a knob says")
	}
	if v.root, err = openRoot(); err != nil {
		return 1, fmt.Errorf("open root: %w", err)
	}
	defer v.root.Close()
	serve := []func(net.Conn){func(conn net.Conn) { go v.serveControl(conn) }, v.serveAgent, v.serveNet}
	for i, fn := range serve {
		l, err := inherit(3 + i)
		if err != nil {
			return 1, fmt.Errorf("inherit socket %d: %w", i, err)
		}
		go accept(l, fn)
	}
	return <-v.exit, nil
}

// inherit takes over a listening socket. It listens once more, so that the kernel
// names this process to who connects.
func inherit(fd int) (net.Listener, error) {
	if err := unix.Listen(fd, 16); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// accept hands connections to serve, which closes them. The guest channel and the
// network card serve one after the other, as QEMU's do.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		serve(conn)
	}
}

// openRoot makes the guest's file system at the first start; later ones find it
// as it was left.
func openRoot() (*os.Root, error) {
	if err := os.Mkdir(paths.FakeRoot, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(paths.FakeRoot)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"root", "tmp", "home/dev", "etc"} {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			_ = root.Close()
			return nil, err
		}
	}
	return root, nil
}

// serveControl answers one command of the driver.
func (v *vm) serveControl(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReaderSize(conn, 4<<10).ReadSlice('\n')
	if err != nil || v.knobs.StartBlock {
		_, _ = io.Copy(io.Discard, conn) // until the driver gives up
		return
	}
	var c command
	var a answer
	if err := json.Unmarshal(line, &c); err != nil {
		a.Error = err.Error()
	}
	switch c.Verb {
	case verbPing:
	case verbLink:
		v.mu.Lock()
		v.linkUp = c.Up
		v.mu.Unlock()
	case verbBegin:
		if err := v.begin(); err != nil {
			a.Error = err.Error()
		}
	case verbPower:
	case verbCont:
		v.stall.Set(false)
	case verbAwait:
		v.awaitStall(conn, c.Stalled)
	default:
		a.Error = fmt.Sprintf("unknown verb %q", c.Verb)
	}
	since, _ := v.stall.Stalled()
	a.Stalled = !since.IsZero()
	_ = json.NewEncoder(conn).Encode(a)
	if c.Verb == verbPower {
		v.runs()
		v.powerOff()
	}
}

// awaitStall returns when the guest's being stalled differs from what the driver
// knows, or the driver has gone.
func (v *vm) awaitStall(conn net.Conn, known bool) {
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		close(gone)
	}()
	for {
		since, changed := v.stall.Stalled()
		if known == since.IsZero() {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

// runs returns when the guest is not stalled.
func (v *vm) runs() {
	for {
		since, changed := v.stall.Stalled()
		if since.IsZero() {
			return
		}
		<-changed
	}
}

// space returns when there is room for what the guest is about to write. While the
// host's disk is full the guest stalls, and tries again when it is continued.
func (v *vm) space() {
	for {
		if _, err := os.Lstat(v.knobs.FullFile); err != nil {
			return
		}
		v.stall.Set(true)
		v.runs()
	}
}

// begin lets the guest run: it says hello on the console, as a kernel would.
func (v *vm) begin() (err error) {
	v.once.Do(func() {
		line := fmt.Sprintf("fake guest %s: %d CPUs, %d MiB\ncommand line: %s\n", v.spec.VMID, v.spec.CPUs, v.spec.MemoryMiB, v.spec.Cmdline)
		err = os.WriteFile(paths.ConsoleLog, []byte(line), 0o600)
		if d, perr := time.ParseDuration(v.knobs.KillAfterStart); perr == nil {
			time.AfterFunc(d, func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) })
		}
		close(v.begun)
		go v.mount.Do(v.space)
	})
	return err
}

// powerOff ends the process, unless a knob makes the guest deaf.
func (v *vm) powerOff() {
	if v.knobs.ShutdownIgnored {
		return
	}
	select {
	case v.exit <- v.knobs.ExitCode:
	default:
	}
}

// serveNet throws away what a network helper sends: the link is down for good.
func (v *vm) serveNet(conn net.Conn) {
	defer conn.Close()
	_, _ = io.Copy(io.Discard, conn)
}

// serveAgent serves one host on the guest channel.
func (v *vm) serveAgent(conn net.Conn) {
	defer conn.Close()
	if v.knobs.AgentNeverReady {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	<-v.begun
	v.mount.Do(v.space)
	ch := guest.NewChannel(conn)
	for {
		in, err := ch.Accept(v.ready)
		if err != nil {
			return
		}
		var streams sync.WaitGroup
		for {
			stream, err := in.Accept()
			if err != nil {
				break
			}
			streams.Go(func() {
				v.serveStream(stream)
				_ = stream.Close()
			})
		}
		in.Close()
		streams.Wait()
	}
}

func (v *vm) ready() guest.Ready {
	return guest.Ready{
		Protocol: guest.ProtocolVersion, AgentVersion: "fake", Release: "0.0.0-fake",
		RootReady: v.knobs.AgentRootError == "", InitSystem: "none", Error: v.knobs.AgentRootError,
		UptimeMillis: time.Since(v.born).Milliseconds(),
	}
}
