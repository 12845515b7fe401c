package daemon

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectAs connects to a socket as another user, and reports whether it is kept.
func connectAs(t *testing.T, socket string, uid, gid int, groups []uint32) bool {
	t.Helper()
	errs := make(chan error, 1)
	kept := false
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which is somebody else, ends
		errs <- func() error {
			var list unsafe.Pointer
			if len(groups) > 0 {
				list = unsafe.Pointer(&groups[0])
			}
			// The wrappers would change all threads.
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
				return errno
			}
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
				return errno
			}
			if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				return errno
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
				return err
			}
			n, _ := unix.Read(fd, make([]byte, 1)) // one that is refused just ends
			kept = n == 1
			return nil
		}()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return kept
}

// Whatever the socket's mode: only root, the daemon's user and its group get in.
func TestPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: connects as other users")
	}
	dir, err := os.MkdirTemp("/tmp", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const group = 54321
	socket := filepath.Join(dir, "s")
	inner, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l := &peerListener{Listener: inner, log: slog.New(slog.DiscardHandler), group: group}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = inner.Close(); <-done })
	for _, mode := range []error{os.Chmod(dir, 0o755), os.Chmod(socket, 0o777)} {
		if mode != nil {
			t.Fatal(mode)
		}
	}
	many := make([]uint32, 200)
	for i := range many {
		many[i] = uint32(60000 + i)
	}
	for _, c := range []struct {
		name     string
		uid, gid int
		groups   []uint32
		want     bool
	}{
		{"root", 0, 0, nil, true},
		{"a stranger", 65534, 65534, nil, false},
		{"a stranger of many groups", 65534, 65534, many, false},
		{"a member by the main group", 65534, group, nil, true},
		{"a member", 65534, 65534, []uint32{1, group, 2}, true},
		{"a member of many groups", 65534, 65534, append(many, group), true},
	} {
		if got := connectAs(t, socket, c.uid, c.gid, c.groups); got != c.want {
			t.Errorf("%s gets in: %v", c.name, got)
		}
	}
}

// The socket of a daemon that has a group is that group's, whatever the mask; the state
// is not.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: gives a file to a group")
	}
	h := newHost(t)
	h.opts.Group = 54321
	for _, mask := range []int{0o022, 0o077} {
		old := syscall.Umask(mask)
		r := h.serve()
		syscall.Umask(old)
		var st unix.Stat_t
		h.must(unix.Stat(h.opts.Layout.Socket, &st))
		if st.Mode&0o777 != 0o660 || st.Uid != 0 || st.Gid != 54321 {
			t.Errorf("with mask %o the socket has mode %o and is %d:%d's", mask, st.Mode&0o777, st.Uid, st.Gid)
		}
		h.must(unix.Stat(h.opts.Layout.State, &st))
		if st.Mode&0o777 != 0o700 || st.Gid != 0 {
			t.Errorf("the state has mode %o and group %d", st.Mode&0o777, st.Gid)
		}
		r.end(h)
	}
}
