// Package share serves a directory of this host to a guest, live, as a FUSE file
// system whose kernel side is in the guest: what the guest's kernel asks comes over a
// stream, a request a frame, and is answered from the directory.
//
// # What a guest can do
//
// The guest is hostile, its kernel too. It names files by numbers that this side gave
// out, and each stands for an open file descriptor (O_PATH) of one inode; everything
// else it names is one component below such a directory, looked up without following
// links. So there is no path for it to play with, and nothing outside the directory has
// a name. It cannot make devices, set-id files or privileged attributes; what it may do
// besides is what this process may do below the directory.
//
// # What is cached
//
// The guest's kernel keeps what it was told until it hears otherwise. Directories it has
// looked into are watched (inotify), and what others change there is told to it, see
// watch.go. Where a directory cannot be watched, it asks again after a second.
package share

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// Bounds of what a guest may ask for at a time.
const (
	// maxReply is what a reply needs at most: the header, what is answered, the data.
	maxReply = guest.MaxMountIO + 4096
	// parallel is how many requests are worked on at a time.
	parallel = 64
)

// Options say how a directory is served.
type Options struct {
	ReadOnly bool
	// New files belong to who makes them in the guest, which takes a process that is root.
	// Otherwise they are this process's.
	Chown bool
}

// Guest is whom a directory is served to.
type Guest struct {
	// Whom this process's files belong to there. Other numbers are the same on both sides,
	// but for what belongs here to who has one of these: that is nobody's there.
	UID, GID uint32
	// Thread is the agent's by which programs of the guest hear of what is changed here:
	// what it asks for changes nothing.
	Thread int
}

// Share is a directory that can be served to one guest.
type Share struct {
	fs     *tree
	server *fuse.ProtocolServer

	send func(channel byte, buf []byte) error // of a frame with a reserved header
}

// Open opens a directory to serve. It errors with class not_found, permission or
// invalid_argument.
func Open(dir string, o Options) (*Share, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, errdefs.NotFound("%s does not exist", dir).WithHint("check the path")
	case errors.Is(err, unix.ENOTDIR):
		return nil, errdefs.Invalid("%s is not a directory", dir).WithHint("give the directory that holds it")
	case err != nil:
		return nil, errdefs.Wrap(err, "open %s", dir)
	}
	if err := unix.Access(procPath(fd), unix.R_OK|unix.X_OK); err != nil {
		_ = unix.Close(fd)
		return nil, errdefs.Permission("%s cannot be read: %w", dir, err).WithHint("check its permissions: ls -ld %s", dir)
	}
	s := &Share{}
	if s.fs, err = newTree(fd, o); err != nil {
		_ = unix.Close(fd)
		return nil, errdefs.Wrap(err, "look at %s", dir)
	}
	s.server = fuse.NewProtocolServer(s.fs, &fuse.MountOptions{
		MaxWrite: guest.MaxMountIO, MaxBackground: parallel / 2, EnableSymlinkCaching: true,
		Logger:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // a guest could say anything
		PanicHandler: func(any) fuse.Status { return fuse.EIO },
	})
	return s, nil
}

// Close gives up what is open.
func (s *Share) Close() error { return s.fs.close() }

// Notice says, when Serve has ended, what was not as it should be; empty: nothing.
func (s *Share) Notice() string { return s.fs.notice() }

// Serve answers a guest's requests, which come as frames of guest.ChanStdout, over conn,
// until the stream or ctx ends; it closes conn. What the guest's agent says besides goes
// to control. The umask of this process is none from now on.
func (s *Share) Serve(ctx context.Context, conn io.Closer, r *guest.FrameReader, w *guest.FrameWriter, to Guest, control func(guest.Control) error) error {
	unix.Umask(0) // the guest's kernel has applied that of who asks
	s.fs.guest = to
	s.send = w.WriteReserved
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	watching, err := s.fs.watch(s.tell)
	if err != nil {
		return err
	}
	err = s.receive(r, control)
	_ = conn.Close() // whoever writes is let go
	watching()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

var requests = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}
var replies = sync.Pool{New: func() any { b := make([]byte, guest.FrameHeader+maxReply); return &b }}

// receive works on what comes until the stream ends.
func (s *Share) receive(r *guest.FrameReader, control func(guest.Control) error) error {
	var working sync.WaitGroup
	defer working.Wait()
	slots := make(chan struct{}, parallel)
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return err
		}
		switch channel {
		case guest.ChanStdout:
		case guest.ChanControl:
			c, err := guest.DecodeControl(payload)
			if err == nil {
				err = control(c)
			}
			if err != nil {
				return err
			}
			continue
		default:
			return errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
		}
		if len(payload) < requestHeader {
			return errdefs.Invalid("a request of %d bytes from the VM", len(payload))
		}
		buf := requests.Get().(*[]byte)
		*buf = append((*buf)[:0], payload...)
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			s.answer(*buf)
			requests.Put(buf)
		})
	}
}

// answer works on one request. An answer that cannot be sent is noticed by who reads.
func (s *Share) answer(request []byte) {
	buf := replies.Get().(*[]byte)
	defer replies.Put(buf)
	if !slow(request) {
		s.fs.answering.RLock()
		defer s.fs.answering.RUnlock()
	}
	out := (*buf)[guest.FrameHeader:]
	n, code := s.server.HandleRequest([][]byte{request}, [][]byte{out})
	if !code.Ok() {
		if silent(request) {
			return
		}
		n = refuse(out, request, syscall.EIO)
	}
	if n > 0 {
		_ = s.send(guest.ChanStdin, (*buf)[:guest.FrameHeader+n])
	}
}

// procPath is a path that leads to an open file, whatever it is called.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// limit is how many nodes may be known at a time: each has a descriptor.
func limit() int {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<20 {
		return 1 << 20
	}
	return max(int(r.Cur)-spareFiles, 16)
}

// spareFiles are for what else this process has open.
const spareFiles = 256

func errno(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return fuse.Status(e)
	}
	return fuse.EIO
}
