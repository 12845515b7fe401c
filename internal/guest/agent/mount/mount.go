// Package mount makes a directory of the host appear in the guest: the guest's kernel asks
// by FUSE, and what it asks and is answered passes between /dev/fuse and a stream of the
// host, which has the files. Nothing is understood on the way but what must not wait for
// something else.
package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

const (
	// bufferSize is what a request may need: what is written, and what says so.
	bufferSize  = guest.MaxMountIO + 8192
	replyHeader = 16
	maxPath     = 4096
)

// Mount is a file system whose content is the host's.
type Mount struct {
	target string
	device string // of the mount, as mountinfo has it
	own    int    // another mount of it, that can be written to and nobody sees; -1: there is none
	dev    *os.File
	conn   syscall.RawConn // of dev

	mu    sync.Mutex // guards the queue
	moved *sync.Cond
	queue []later
	over  bool
}

// later is what the kernel may only take in once an answer of the host has come: so it is
// done behind the answers' back, in order.
type later struct {
	notice []byte       // for the kernel
	change guest.Change // of which programs are to hear
}

// Open mounts the host's directory on target, a directory. The kernel's first request
// waits to be read.
func Open(target string, readOnly bool) (*Mount, error) {
	fd, err := openDevice()
	if err != nil {
		return nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, guest.MaxMountIO)
	if err := unix.Mount("banger", target, "fuse.banger", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		_ = unix.Close(fd)
		return nil, errdefs.Wrap(err, "mount on %s", target)
	}
	m := &Mount{target: target, own: -1, dev: os.NewFile(uintptr(fd), "/dev/fuse")}
	m.moved = sync.NewCond(&m.mu)
	if m.conn, err = m.dev.SyscallConn(); err == nil {
		m.device, err = deviceOf(target)
	}
	if err == nil && readOnly {
		err = m.setReadOnly()
	}
	if err != nil {
		return nil, errors.Join(errdefs.Wrap(err, "mount on %s", target), m.Close())
	}
	return m, nil
}

// setReadOnly leaves a way to write for ourselves: see behind.
func (m *Mount) setReadOnly() (err error) {
	if m.own, err = unix.OpenTree(unix.AT_FDCWD, m.target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		m.own = -1
		return err
	}
	return unix.Mount("", m.target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// deviceOf is the device that is mounted on dir, as MAJOR:MINOR. The file system itself is
// not asked, which nobody serves yet.
func deviceOf(dir string) (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	device := ""
	for line := range strings.Lines(string(data)) {
		// The last one counts: it lies over the others.
		if f := strings.Fields(line); len(f) > 4 && unescape.Replace(f[4]) == dir {
			device = f[2]
		}
	}
	if device == "" {
		return "", unix.ENOENT
	}
	return device, nil
}

// unescape gives a path of mountinfo its bytes back.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// write hands something to the kernel, which may not take it in before it has got
// something else: so nobody waits for anybody here, as writers of a File do. Of what the
// kernel has forgotten, it wants to hear nothing.
func (m *Mount) write(data []byte) {
	_ = m.conn.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), data) })
}

// openDevice loads the kernel's module when nobody has.
func openDevice() (int, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open("/dev/fuse", flags, 0)
	if err == nil {
		return fd, nil
	}
	missing := loadModule("fuse")
	if fd, err = unix.Open("/dev/fuse", flags, 0); err != nil {
		return -1, errdefs.Unsupported("the VM's kernel has no FUSE: %w", errors.Join(err, missing)).
			WithHint("use a kernel that has it: banger kernel list")
	}
	return fd, nil
}

func loadModule(name string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]), "kernel/fs/fuse", name+".ko*"))
	if err != nil || len(found) == 0 {
		return errors.Join(err, unix.ENOENT)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(found[0], ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", found[0], err)
	}
	return nil
}

// Close unmounts, for programs that have it open too: they get errors from then on.
func (m *Mount) Close() error {
	m.mu.Lock()
	m.over = true
	m.queue = nil
	m.moved.Broadcast()
	m.mu.Unlock()
	err := m.unmount()
	if e := m.dev.Close(); !errors.Is(e, os.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// unmount takes away what is mounted, and nothing that somebody else has mounted in its
// place. By force first, with which all that waits for an answer is let go; then for good,
// whoever has it open.
func (m *Mount) unmount() error {
	if now, err := deviceOf(m.target); err != nil || m.device != "" && now != m.device {
		return nil // it is unmounted
	}
	_ = unix.Unmount(m.target, unix.MNT_FORCE)
	if err := unix.Unmount(m.target, unix.MNT_DETACH); err != unix.EINVAL && err != unix.ENOENT {
		return err
	}
	return nil
}

// Serve passes requests and answers on until the host has gone, or somebody has unmounted
// it: then it returns nil. started is told, before, which thread lets programs hear of
// changes; hangup ends the stream.
func (m *Mount) Serve(r *guest.FrameReader, w *guest.FrameWriter, started func(thread int) error, hangup func()) error {
	var working sync.WaitGroup
	thread := make(chan int)
	working.Go(func() { m.behind(thread) })
	if err := started(<-thread); err != nil {
		_ = m.Close()
		working.Wait()
		return err
	}
	var sending error
	working.Go(func() {
		sending = m.send(w)
		hangup()
	})
	receiving := m.receive(r)
	_ = m.Close()
	working.Wait()
	if sending == nil {
		return nil
	}
	return receiving
}

// send passes the kernel's requests to the host. It returns nil when it was unmounted.
func (m *Mount) send(w *guest.FrameWriter) error {
	buf := make([]byte, guest.FrameHeader+bufferSize)
	for {
		n, err := m.dev.Read(buf[guest.FrameHeader:])
		switch {
		case errors.Is(err, unix.ENODEV):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			continue // a request that was taken back
		case err != nil:
			return err
		}
		if err := w.WriteReserved(guest.ChanStdout, buf[:guest.FrameHeader+n]); err != nil {
			return err
		}
	}
}

// receive hands what the host says to the kernel.
func (m *Mount) receive(r *guest.FrameReader) error {
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return err
		}
		switch {
		case channel == guest.ChanControl:
			c, err := guest.DecodeControl(payload)
			if err != nil {
				return err
			}
			if c.Type != guest.ControlChanged {
				return errdefs.Invalid("unexpected %q frame for a mount", c.Type)
			}
			for _, change := range c.Changes {
				m.later(later{change: change})
			}
		case channel != guest.ChanStdin || len(payload) < replyHeader:
			return errdefs.Invalid("unexpected frame on channel %d", channel)
		case binary.NativeEndian.Uint64(payload[8:]) == 0: // answers nothing
			m.later(later{notice: append([]byte(nil), payload...)})
		default:
			m.write(payload)
		}
	}
}

func (m *Mount) later(l later) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.over {
		m.queue = append(m.queue, l)
		m.moved.Broadcast()
	}
}

// behind does what waits for requests that are under way, by a thread of its own.
func (m *Mount) behind(thread chan<- int) {
	runtime.LockOSThread() // and it ends with us
	thread <- unix.Gettid()
	for {
		m.mu.Lock()
		for len(m.queue) == 0 && !m.over {
			m.moved.Wait()
		}
		todo := m.queue
		m.queue = nil
		over := m.over
		m.mu.Unlock()
		if over {
			break
		}
		for _, l := range todo {
			if l.notice != nil {
				m.write(l.notice)
				continue
			}
			m.play(l.change)
		}
	}
	if m.own >= 0 {
		_ = unix.Close(m.own)
	}
}

// play does for the guest's programs what the host has done: they hear of it as of what
// somebody in the guest does, for the kernel tells nobody of changes that come from
// outside. A file that was changed gets the mode that it has; one that is gone is removed.
// The host knows that it is us and that there is nothing to do.
func (m *Mount) play(c guest.Change) {
	path := string(c.Path)
	if len(path) > maxPath || !filepath.IsLocal(path) {
		return
	}
	root := m.own
	if root < 0 {
		var err error
		if root, err = unix.Open(m.target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(root)
		var st unix.Stat_t
		if unix.Fstat(root, &st) != nil || fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)) != m.device {
			return // it was unmounted: what is there now is somebody else's
		}
	}
	const below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV
	dir, err := unix.Openat2(root, filepath.Dir(path), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: below})
	if err != nil {
		return
	}
	defer unix.Close(dir)
	name := filepath.Base(path)
	if c.Gone {
		flags := 0
		if c.Dir {
			flags = unix.AT_REMOVEDIR
		}
		_ = unix.Unlinkat(dir, name, flags)
		return
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		_ = unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), st.Mode&0o7777)
	}
}
