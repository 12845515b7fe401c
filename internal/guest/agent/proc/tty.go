package proc

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Terminal is a pseudo terminal. Master is the agent's end; Slave the command's,
// closed once the command has ended.
type Terminal struct {
	Master *os.File
	Slave  *os.File
}

// Close closes both ends, of a terminal that no command was started on.
func (t *Terminal) Close() {
	_ = t.Slave.Close()
	_ = t.Master.Close()
}

// OpenTerminal makes a terminal of the given size that belongs to u.
func OpenTerminal(u *User, rows, cols uint16) (*Terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errdefs.Wrap(err, "open a terminal")
	}
	t := &Terminal{Master: os.NewFile(uintptr(fd), "ptmx")}
	if err := t.open(fd, u, rows, cols); err != nil {
		_ = t.Master.Close()
		return nil, errdefs.Wrap(err, "open a terminal")
	}
	return t, nil
}

func (t *Terminal) open(fd int, u *User, rows, cols uint16) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	slave, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	t.Slave = os.NewFile(uintptr(slave), name)
	if u.UID != 0 {
		// The group stays that of the device file system: tty.
		_ = unix.Fchown(slave, int(u.UID), -1)
	}
	if rows > 0 && cols > 0 {
		if err := setSize(fd, rows, cols); err != nil {
			_ = t.Slave.Close()
			return err
		}
	}
	return nil
}

func setSize(fd int, rows, cols uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

// Resize tells the command of a new size.
func (t *Terminal) Resize(rows, cols uint16) error {
	return t.control(func(fd int) error { return setSize(fd, rows, cols) })
}

// Signal sends a signal to what runs in the terminal's foreground.
func (t *Terminal) Signal(number int) error {
	return t.control(func(fd int) error {
		pgrp, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		if err != nil || pgrp <= 1 {
			return syscall.ESRCH
		}
		return syscall.Kill(-pgrp, syscall.Signal(number))
	})
}

func (t *Terminal) control(f func(fd int) error) error {
	raw, err := t.Master.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
