package machine

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/boot"
)

// order is how inits and the kernel are told to end the machine.
type order struct {
	systemd, busybox unix.Signal // to process 1
	program          string
	kernel           int
}

var (
	powerOffOrder = order{34 + 4, unix.SIGUSR2, "poweroff", unix.LINUX_REBOOT_CMD_POWER_OFF} // SIGRTMIN+4
	resetOrder    = order{34 + 5, unix.SIGTERM, "reboot", unix.LINUX_REBOOT_CMD_RESTART}     // SIGRTMIN+5
)

func (m *Machine) order() order {
	if m.reset {
		return resetOrder
	}
	return powerOffOrder
}

// termGrace is how long processes have to obey SIGTERM where no init does this.
const termGrace = 5 * time.Second

// Shutdown makes an orderly power-off certain. An init that is able to is asked;
// the agent itself ends what runs where there is none, or where it is not ready to
// be asked yet, because the kernel drops a signal that process 1 has no handler
// for.
func (m *Machine) Shutdown(ctx context.Context) (func(), error) {
	o := m.order()
	switch m.initKind() {
	case "systemd":
		if takes(1, int(o.systemd)) && unix.Kill(1, o.systemd) == nil {
			return nil, nil
		}
	case "other":
		exe, _ := os.Readlink("/proc/1/exe")
		if strings.HasSuffix(exe, "/busybox") && takes(1, int(o.busybox)) {
			if unix.Kill(1, o.busybox) == nil {
				return nil, nil
			}
		}
		if status, err := m.run(ctx, nil, o.program); err == nil && status.Code == 0 {
			return nil, nil
		}
	}
	return m.powerOff, nil
}

// takes reports whether a process catches a signal or reads it from a blocked set.
func takes(pid, signal int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return err == nil && statusTakes(string(b), signal)
}

func statusTakes(status string, signal int) bool {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		if key != "SigCgt" && key != "SigBlk" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(signal-1)) != 0 {
			return true
		}
	}
	return false
}

// powerOff ends all processes but this one and the first, makes the disks safe
// and turns the machine off.
func (m *Machine) powerOff() {
	end(termGrace)
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		m.log.Warn("the root stays writable until power-off", "err", err)
	}
	unix.Sync()
	if err := unix.Reboot(m.order().kernel); err != nil {
		m.log.Error("power off", "err", err)
	}
}

// end asks every process to end, waits for them, and kills those that stay.
func end(grace time.Duration) {
	// From now on a process that is started gets no signal; there is no way to
	// hold all others up but to send them two.
	fds := others()
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT)
	waitAll(fds, time.Now().Add(grace))
	fds = others()
	_ = unix.Kill(-1, unix.SIGKILL)
	waitAll(fds, time.Now().Add(time.Second))
}

// others opens every process of user space but this one and the first.
func others() []unix.PollFd {
	var fds []unix.PollFd
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil {
			continue // a thread of the kernel
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	return fds
}

// waitAll waits for the processes to end, and closes the descriptors.
func waitAll(fds []unix.PollFd, deadline time.Time) {
	defer func() {
		for _, f := range fds {
			_ = unix.Close(int(f.Fd))
		}
	}()
	for len(fds) > 0 {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR || n == 0 {
			return
		}
		kept := fds[:0]
		for _, f := range fds {
			if f.Revents == 0 {
				kept = append(kept, f)
			} else {
				_ = unix.Close(int(f.Fd))
			}
		}
		fds = kept
	}
}

// WaitSystem waits until systemd says that the boot is over; other inits do not
// say, and count as settled.
func (m *Machine) WaitSystem(ctx context.Context) (string, error) {
	if m.initKind() != "systemd" {
		return "none", nil
	}
	if err := waitFile(ctx, "/run/systemd", "private"); err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", errdefs.Wrap(err, "ask systemd")
	}
	defer r.Close()
	// The exit status only repeats what it prints.
	_, err = m.run(ctx, w, "systemctl", "is-system-running", "--wait")
	_ = w.Close()
	if err != nil {
		return "", errdefs.Wrap(err, "ask systemd")
	}
	b := make([]byte, 64)
	n, _ := r.Read(b)
	state := strings.TrimSpace(string(b[:n]))
	if state == "" {
		return "", errdefs.Unavailable("systemd does not tell its state").
			WithHint("see `banger exec VM -- systemctl status`")
	}
	return state, nil
}

// waitFile waits until a file is in a directory.
func waitFile(ctx context.Context, dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return errdefs.Wrap(err, "watch %s", dir)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return errdefs.Wrap(err, "watch %s", dir)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for !exists(dir + "/" + name) {
		if _, err := f.Read(buf); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return errdefs.Wrap(err, "wait for %s/%s", dir, name)
		}
	}
	return nil
}

// Grow makes the root file system as large as its disk.
func (m *Machine) Grow(bytes int64) error { return boot.Grow(bytes) }
