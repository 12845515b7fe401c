package sysexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Detached is a program that outlives this process: its own session, no
// controlling terminal, no inherited descriptors but those given.
type Detached struct {
	Path       string // absolute
	Args       []string
	Dir        string
	Env        []string
	Stdout     *os.File // nil: /dev/null
	Stderr     *os.File
	ExtraFiles []*os.File // become descriptors 3, 4, …
	Credential *syscall.Credential
	// Cloneflags are namespaces to make for it. In a new user namespace the process
	// is who this one is, keeps its groups, and can become nobody else.
	Cloneflags uintptr
	Cgroup     *os.File // directory of the control group it starts in; nil: that of this process
}

// Proc is a process watched by pidfd: started here, or found again by pid and
// start time after this program was restarted.
type Proc struct {
	PID       int
	StartTime uint64 // field 22 of /proc/<pid>/stat: clock ticks since boot

	pidfd *os.File
	child *os.Process // nil when it is not our child
	done  chan struct{}
	state *os.ProcessState
}

// ErrGone says that a process ended, or that its pid belongs to another now.
var ErrGone = errors.New("process is gone")

// StartDetached starts d. It never takes a context: nothing that ends may end it.
// With a Credential, Dir is entered before the identity changes, so the process
// may work in a directory that its user could not reach by name.
func StartDetached(d Detached) (*Proc, error) {
	if d.Credential == nil || d.Dir == "" {
		return startDetached(d)
	}
	type result struct {
		proc *Proc
		err  error
	}
	started := make(chan result)
	go func() {
		// The thread gets a working directory of its own and is never unlocked,
		// so it ends with this goroutine and nobody else inherits that directory.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			started <- result{err: fmt.Errorf("unshare the working directory: %w", err)}
			return
		}
		if err := unix.Chdir(d.Dir); err != nil {
			started <- result{err: fmt.Errorf("enter %s: %w", d.Dir, err)}
			return
		}
		d.Dir = ""
		proc, err := startDetached(d)
		// The first thread of a process never ends, and shows its directory as that of all.
		_ = unix.Chdir("/")
		started <- result{proc, err}
	}()
	r := <-started
	return r.proc, r.err
}

func startDetached(d Detached) (*Proc, error) {
	cmd := exec.Command(d.Path, d.Args...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = d.Dir, d.Env, d.ExtraFiles
	if d.Stdout != nil {
		cmd.Stdout = d.Stdout
	}
	if d.Stderr != nil {
		cmd.Stderr = d.Stderr
	}
	var fd int
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Credential: d.Credential, Cloneflags: d.Cloneflags, PidFD: &fd,
	}
	if d.Cloneflags&unix.CLONE_NEWUSER != 0 {
		uid, gid := os.Geteuid(), os.Getegid()
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	}
	if d.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, &Error{Program: d.Path, Code: -1, Err: err}
	}
	start, err := StartTime(cmd.Process.Pid)
	if err != nil {
		start = 0 // it ended already; watch reports that
	}
	p := &Proc{PID: cmd.Process.Pid, StartTime: start, child: cmd.Process, done: make(chan struct{})}
	if err := p.watch(fd); err != nil {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		return nil, err
	}
	return p, nil
}

// Find opens a process started earlier. It errors with ErrGone when that process
// has ended, even if its pid is in use again.
func Find(pid int, startTime uint64) (*Proc, error) {
	if pid <= 0 {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	// The pidfd pins the process; only now is the start time conclusive.
	if st, err := StartTime(pid); err != nil || st != startTime {
		_ = unix.Close(fd)
		return nil, ErrGone
	}
	p := &Proc{PID: pid, StartTime: startTime, done: make(chan struct{})}
	return p, p.watch(fd)
}

// watch waits for the process in the runtime's poller: no thread, no timer.
func (p *Proc) watch(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("set pidfd non-blocking: %w", err)
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		_ = p.pidfd.Close()
		return fmt.Errorf("watch pidfd: %w", err)
	}
	go func() {
		// A closed file ends the Read with an error: the watch was given up, and
		// done stays open, for nobody knows when the process ends.
		if err := conn.Read(func(fd uintptr) bool { return exited(int(fd)) }); err != nil && !exitedPID(p) {
			return
		}
		if p.child != nil {
			p.state, _ = p.child.Wait()
		}
		close(p.done)
	}()
	return nil
}

func exited(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

func exitedPID(p *Proc) bool {
	st, err := StartTime(p.PID)
	return err != nil || st != p.StartTime
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Release gives up the watch and leaves the process running: Done will not be
// closed any more, and the process cannot be signalled.
func (p *Proc) Release() error { return p.pidfd.Close() }

// Exit is how a process ended.
type Exit struct {
	Known        bool // false: it was not our child
	Code, Signal int  // -1 and the signal, when one ended it
}

// Exit says how it ended; valid after Done.
func (p *Proc) Exit() Exit {
	st := p.state
	if st == nil {
		return Exit{}
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return Exit{Known: true, Code: -1, Signal: int(ws.Signal())}
	}
	return Exit{Known: true, Code: st.ExitCode()}
}

func (e Exit) String() string {
	switch {
	case !e.Known:
		return "it ended"
	case e.Signal != 0:
		return fmt.Sprintf("it was ended by signal %d (%s)", e.Signal, unix.SignalName(syscall.Signal(e.Signal)))
	}
	return fmt.Sprintf("it ended with status %d", e.Code)
}

// Signal sends sig to this very process, never to a later owner of its pid.
func (p *Proc) Signal(sig syscall.Signal) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return ErrGone
	}
	var sendErr error
	if err := conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return ErrGone
	}
	if errors.Is(sendErr, unix.ESRCH) {
		return ErrGone
	}
	return sendErr
}

// Kill sends SIGKILL and waits for the end.
func (p *Proc) Kill(ctx context.Context) error {
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
		return fmt.Errorf("kill %d: %w", p.PID, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %d: %w", p.PID, context.Cause(ctx))
	}
}

// Usage is what a process has used of the processors, and the memory it has now.
type Usage struct {
	CPU    time.Duration
	Memory int64 // bytes
}

// ticksPerSecond is the unit of times in /proc, which no Linux of today changes.
const ticksPerSecond = 100

// Usage says what the process uses. It errors with ErrGone when it has ended.
func (p *Proc) Usage() (Usage, error) {
	st, err := readStat(p.PID)
	if err == nil && st.start != p.StartTime {
		err = ErrGone
	}
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		CPU:    time.Duration(st.ticks) * time.Second / ticksPerSecond,
		Memory: int64(st.pages) * int64(os.Getpagesize()),
	}, nil
}

// StartTime reads when a process started, in clock ticks since boot.
func StartTime(pid int) (uint64, error) {
	st, err := readStat(pid)
	if err != nil && !errors.Is(err, ErrGone) {
		err = fmt.Errorf("read start time of %d: %w", pid, err)
	}
	return st.start, err
}

// stat is what is of use in /proc/<pid>/stat.
type stat struct {
	terminal bool   // it has a controlling one
	ticks    uint64 // of processor time, in the program and in the kernel
	start    uint64 // ticks since boot
	pages    uint64 // in memory
}

// readStat errors with ErrGone for a process that has ended and is not waited for yet.
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads what readStat has read. A process is a zombie until it is waited for,
// and dead while that goes on; one whose first thread has ended lives on in the others.
func parseStat(b []byte) (st stat, err error) {
	// The name in parentheses may hold anything; fields count from the last ')', after
	// which comes the third.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const first, terminal, user, system, threads, started, resident = 3, 7, 14, 15, 20, 22, 24
	if len(f) <= resident-first {
		return st, errors.New("short stat line")
	}
	field := func(n int) (v uint64) {
		if err == nil {
			v, err = strconv.ParseUint(string(f[n-first]), 10, 64)
		}
		return v
	}
	if state := f[0][0]; state == 'X' || state == 'Z' && field(threads) <= 1 {
		return st, ErrGone
	}
	st = stat{
		terminal: string(f[terminal-first]) != "0",
		ticks:    field(user) + field(system), start: field(started), pages: field(resident),
	}
	return st, err
}
