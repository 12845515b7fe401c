package boot

import (
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// lateFD is where the agent proper finds the directory of the late modules.
const lateFD = 3

// Child is the agent proper, as process 1 starts it.
type Child struct {
	Name string   // argv[0]
	Env  []string // added to the environment
	Dir  *os.File // of the late modules; may be nil
	pid  int
}

// hostNice is the priority of the agent and so of every command it starts. What
// the host asks for comes before the image's services: a command that runs while
// those start would otherwise share one emulated processor with them, and takes
// two to three times as long.
const hostNice = -10

// Start starts the child in a session of its own, with the console as output.
func (c *Child) Start() error {
	// The child inherits the priority of the thread that forks it; this process
	// becomes the image's init and keeps the ordinary one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, hostNice); err == nil {
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0) }()
	}
	attr := syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), c.Env...),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if c.Dir != nil {
		attr.Files = append(attr.Files, c.Dir.Fd())
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{c.Name}, &attr)
	if err != nil {
		return errdefs.Wrap(err, "execute the agent")
	}
	// Its session counts like any other until it is told so, too.
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/autogroup", []byte(strconv.Itoa(hostNice)), 0)
	c.pid, c.Dir = pid, nil
	return nil
}

// LateModules is the directory that process 1 handed to this process, or nil.
func LateModules() *os.File {
	var st unix.Stat_t
	if unix.Fstat(lateFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	unix.CloseOnExec(lateFD)
	return os.NewFile(lateFD, modulesDir)
}

// maxRestarts bounds how often an agent that ends is started again, so that one
// that cannot run does not keep the machine busy.
const maxRestarts = 5

// Reap is the life of process 1 without an init: it waits for orphans, and starts
// the agent again when that ends. It does not return while anything can happen.
func Reap(log *slog.Logger, c Child) int {
	// Signals whose default action the kernel would spare process 1 would
	// otherwise be turned into an exit by the Go runtime.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGHUP, unix.SIGTERM, unix.SIGQUIT, unix.SIGPWR, unix.SIGUSR1, unix.SIGUSR2)
	// Ctrl-Alt-Del is the power button of a machine without ACPI events. Left alone,
	// the kernel would reset at once and lose what is not on the disk yet.
	pressed := make(chan os.Signal, 1)
	signal.Notify(pressed, unix.SIGINT)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	go func() {
		<-pressed
		unix.Sync()
		log.Error("reset", "err", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	}()
	restarts := 0
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			log.Error("wait for orphans", "err", err)
			return 1
		case pid == c.pid:
			if restarts++; restarts > maxRestarts {
				log.Error("the agent ended too often", "status", int(ws))
				continue
			}
			log.Error("the agent ended; starting it again", "status", int(ws))
			if err := c.Start(); err != nil {
				log.Error("start the agent", "err", err)
			}
		}
	}
}
