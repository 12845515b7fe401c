// Package proc starts commands in the guest: who they run as, what file they
// are, and how their end is noticed.
//
// A command's end is read from its pidfd through the runtime's poller, so waiting
// takes no thread, and no central reaper is needed: the agent is never process 1.
package proc

import (
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Spec is a command to start. The files become its standard streams; with TTY
// they are one terminal, which becomes its controlling one.
type Spec struct {
	Path  string
	Args  []string // with the name it sees as its own
	Env   []string
	Dir   string
	User  *User
	Files [3]uintptr
	TTY   bool
}

// Status is how a command ended. Code is 128+Signal when a signal ended it.
type Status struct {
	Code   int
	Signal int
}

// Process is a started command, the leader of its own session and process group.
type Process struct {
	PID   int
	pidfd *os.File
}

// Spawner starts commands.
type Spawner struct {
	// mu keeps the agent's own protection from the kernel's out-of-memory killer
	// lifted while a child is made, which inherits it: it must not cover commands.
	mu  sync.Mutex
	oom *os.File // /proc/self/oom_score_adj; nil when there is no protection
}

// NewSpawner makes a spawner for an unprotected process.
func NewSpawner() *Spawner { return &Spawner{} }

// Protect exempts this process, but none that it starts, from being killed when
// the guest runs out of memory.
func (s *Spawner) Protect() error {
	f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return errdefs.Wrap(err, "protect the agent")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oom = f
	return errdefs.Wrap(s.adjust("-1000"), "protect the agent")
}

func (s *Spawner) adjust(score string) error {
	if s.oom == nil {
		return nil
	}
	_, err := unix.Pwrite(int(s.oom.Fd()), []byte(score), 0)
	return err
}

// Start starts a command. Its errors are those a shell would give: not_found,
// permission, and invalid_argument for a directory that is none.
func (s *Spawner) Start(spec Spec) (*Process, error) {
	pidfd := -1
	attr := syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: spec.Files[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if spec.TTY {
		attr.Sys.Setctty = true // of descriptor 0
	}
	if u := spec.User; u != nil && mustBecome(u) {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	pid, err := s.fork(spec.Path, spec.Args, &attr)
	if err == syscall.ENOEXEC && !isELF(spec.Path) {
		// A script without an interpreter line: what execvp does for a shell.
		args := append([]string{"sh", spec.Path}, spec.Args[1:]...)
		if pid, err = s.fork("/bin/sh", args, &attr); err == syscall.ENOENT {
			err = syscall.ENOEXEC // there is no shell
		}
	}
	if err != nil {
		return nil, startError(spec, err)
	}
	favour(pid)
	if pidfd < 0 {
		// Cannot be: kernels older than the ones this agent boots with lack it.
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return nil, errdefs.Unsupported("the kernel gives no pidfd")
	}
	// The runtime's poller takes only what says that it does not block.
	_ = unix.SetNonblock(pidfd, true)
	return &Process{PID: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd "+strconv.Itoa(pid))}, nil
}

// isELF reports whether a file is a program in the format of Linux, if only for another
// machine: a shell would only print nonsense about it.
func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == "\x7fELF"
}

// favour gives the session of a command the priority that the command has from us. The
// kernel shares processors out by session first, and a new one is like any other; where
// it goes by control group instead, that has no effect.
func favour(pid int) {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 less the nice value: 1 to 40
	if nice := 20 - own; err == nil && nice < 0 {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
}

// mustBecome says whether a command for u needs another identity than ours. One that
// is not root, as where the tests run, could not even confirm its own.
func mustBecome(u *User) bool {
	if uid := os.Geteuid(); uid != 0 && u.UID == uint32(uid) {
		return false
	}
	return u.UID != 0 || u.GID != 0 || len(u.Groups) > 0
}

func (s *Spawner) fork(path string, args []string, attr *syscall.ProcAttr) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.adjust("0")
	pid, err := syscall.ForkExec(path, args, attr)
	_ = s.adjust("-1000")
	return pid, err
}

// startError says which of the steps before the command's first instruction
// failed, as far as the number tells.
func startError(spec Spec, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return errdefs.NotFound("%s: its interpreter or loader is not in the VM", spec.Path).
			WithHint("see the first line of the script, or use a program built for this image")
	case errors.Is(err, syscall.ENOEXEC):
		return errdefs.Permission("%s: not a program for this machine", spec.Path).
			WithHint("the VM runs x86-64 programs, and scripts whose first line names an interpreter that the image has")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return errdefs.Permission("start %s in %s: %w", spec.Path, spec.Dir, err).
			WithHint("the user of the command may not execute it or enter its directory")
	case errors.Is(err, syscall.E2BIG):
		return errdefs.Invalid("start %s: the arguments and the environment are too long", spec.Path)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return errdefs.Exhausted("start %s: %w", spec.Path, err).WithHint("the VM is out of memory or processes")
	}
	return errdefs.Wrap(err, "start %s", spec.Path)
}

// Wait waits for the command's end. It is called once.
func (p *Process) Wait() (Status, error) {
	defer p.pidfd.Close()
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return Status{}, errdefs.Wrap(err, "wait for process %d", p.PID)
	}
	var ws syscall.WaitStatus
	var waitErr error
	err = raw.Read(func(uintptr) bool {
		for {
			pid, err := syscall.Wait4(p.PID, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			waitErr = err
			return err != nil || pid == p.PID
		}
	})
	if err = errors.Join(err, waitErr); err != nil {
		return Status{}, errdefs.Wrap(err, "wait for process %d", p.PID)
	}
	if ws.Signaled() {
		return Status{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}, nil
	}
	return Status{Code: ws.ExitStatus()}, nil
}

// SignalOne sends a signal to the command alone, not to what it has started. It fails
// when the command was waited for.
func (p *Process) SignalOne(number int) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.Signal(number), nil, 0) })
	return errors.Join(err, sent)
}

// Signal sends a signal to the command's process group.
func (p *Process) Signal(number int) error {
	return syscall.Kill(-p.PID, syscall.Signal(number))
}
