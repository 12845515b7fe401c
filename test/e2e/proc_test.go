//go:build e2e

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long a process may take to end by itself when nothing keeps it, and the
// network helper, which stays a while for the next VM.
const (
	endGrace    = 3 * time.Second
	helperGrace = 30 * time.Second
)

// process is a process of ours, pinned by a pidfd: a signal never reaches a later
// owner of its pid.
type process struct {
	pid  int
	args []string
	cwd  string
	fd   int
}

func (p process) String() string {
	line := strings.Join(p.args, " ")
	if len(line) > 160 {
		line = line[:160] + "…"
	}
	return fmt.Sprintf("%d (%s, in %s)", p.pid, line, p.cwd)
}

// find returns the process with a pid, or false when it has ended.
func find(pid int) (process, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{}, false
	}
	dir := "/proc/" + strconv.Itoa(pid)
	raw, err := os.ReadFile(dir + "/cmdline")
	if err != nil || len(raw) == 0 { // a kernel thread or a zombie
		_ = unix.Close(fd)
		return process{}, false
	}
	cwd, _ := os.Readlink(dir + "/cwd")
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(raw, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	return process{pid: pid, args: args, cwd: cwd, fd: fd}, true
}

// ours lists the processes of the product that belong to directories under dir:
// daemons, helpers, VMMs. Daemons come first.
func ours(dir string) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var daemons, others []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, ok := find(pid)
		if !ok {
			continue
		}
		name := filepath.Base(p.args[0])
		inside := p.cwd == dir || strings.HasPrefix(p.cwd, dir+"/")
		named := strings.Contains(strings.Join(p.args, "\x00"), dir+"/")
		switch {
		case strings.HasPrefix(name, "bangerd") && named && len(p.args) > 1 && p.args[1] == "serve":
			daemons = append(daemons, p)
		case inside && strings.HasPrefix(name, "qemu-system"), strings.HasPrefix(name, "banger") && (named || inside):
			others = append(others, p)
		default:
			_ = unix.Close(p.fd)
		}
	}
	return append(daemons, others...)
}

func (p process) signal(sig syscall.Signal) error {
	err := unix.PidfdSendSignal(p.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// awaitEnd returns when the process has ended.
func (p process) awaitEnd(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, int(time.Until(deadline).Milliseconds()))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, left)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %s: %w", p, err)
		case n == 0:
			return fmt.Errorf("process %s did not end within %s", p, limit)
		default:
			return nil
		}
	}
}

// lingers reports whether a process that should be gone does not even end now.
func (p process) lingers() bool {
	if slices.Contains(p.args, "usernet") {
		return p.awaitEnd(helperGrace) != nil
	}
	return p.awaitEnd(endGrace) != nil
}

// end asks the process to end, and makes it.
func (p process) end() error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	if p.awaitEnd(10*time.Second) == nil {
		return nil
	}
	return p.kill()
}

// kill ends the process at once.
func (p process) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.awaitEnd(30 * time.Second)
}

// files are the targets of the process's descriptors.
func (p process) files() []string {
	dir := fmt.Sprintf("/proc/%d/fd", p.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var targets []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}

// mountsUnder lists the mount points below dir, the deepest first.
func mountsUnder(dir string) []string {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append([]string{f[4]}, found...)
		}
	}
	return found
}

func unmount(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// loopsUnder lists the loop devices whose file lies below dir.
func loopsUnder(dir string) []string {
	var found []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(raw), dir+"/") {
			found = append(found, f+": "+strings.TrimSpace(string(raw)))
		}
	}
	return found
}
