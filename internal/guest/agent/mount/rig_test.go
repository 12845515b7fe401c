package mount_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/mount"
	"banger/internal/share"
)

// rig is a directory of the host and where it appears; both are this machine's. Files
// below the latter are dealt with by system calls alone: Go's runtime asks whether it can
// poll a file, without letting others run, and so would wait for itself.
type rig struct {
	host, guest string
	share       *share.Share

	cut   func() // ends the stream
	ended func() // waits until both sides have ended
}

func start(t *testing.T, o share.Options) *rig {
	t.Helper()
	return startFor(t, o, share.Guest{})
}

func startFor(t *testing.T, o share.Options, to share.Guest) *rig {
	t.Helper()
	r := &rig{host: t.TempDir(), guest: t.TempDir()}
	var err error
	if r.share, err = share.Open(r.host, o); err != nil {
		t.Fatal(err)
	}
	m, err := mount.Open(r.guest, o.ReadOnly)
	if errors.Is(err, unix.EPERM) || errors.Is(err, errdefs.ErrUnsupported) || errors.Is(err, unix.EACCES) {
		t.Skipf("only root can mount, and with FUSE: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	there, here := socketpair(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	thread := make(chan int, 1)
	started := func(tid int) error {
		thread <- tid
		return nil
	}
	running.Go(func() {
		_ = m.Serve(guest.NewFrameReader(there), guest.NewFrameWriter(there), started, func() { _ = there.SetReadDeadline(time.Unix(1, 0)) })
		_ = there.Close()
	})
	to.Thread = <-thread
	running.Go(func() {
		_ = r.share.Serve(ctx, here, guest.NewFrameReader(here), guest.NewFrameWriter(here), to, func(guest.Control) error { return nil })
	})
	var once sync.Once
	r.cut = cancel
	r.ended = func() {
		once.Do(func() {
			running.Wait()
			if err := r.share.Close(); err != nil {
				t.Error(err)
			}
			if mounted(t, r.guest) {
				t.Errorf("%s is still mounted", r.guest)
			}
		})
	}
	t.Cleanup(func() {
		if mounted(t, r.guest) {
			r.cut()
		}
		r.ended()
	})
	return r
}

func socketpair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

// mounted looks whether something is mounted on dir, without asking who has mounted it.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return containsField(string(data), filepath.Clean(dir))
}

// read reads a file by system calls.
func read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var all []byte
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			return all, err
		}
		all = append(all, buf[:n]...)
	}
}

// write writes a file by system calls.
func write(path string, data []byte, flags int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// soon waits until something is so.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("it never became so: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}
