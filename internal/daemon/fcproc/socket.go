package fcproc

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

// listenRest is the pause between two looks at a socket that has its name already
// and is about to be listened on, which follows within microseconds.
const listenRest = time.Millisecond

// socketWatch waits for a VMM that is being started to listen on its API socket.
type socketWatch struct {
	place string
	file  *os.File
}

func watchSocket(place string) (*socketWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &socketWatch{place: place, file: os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, place, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		_ = w.file.Close()
		return nil, err
	}
	return w, nil
}

func (w *socketWatch) close() { _ = w.file.Close() }

// wait returns when somebody listens.
func (w *socketWatch) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4<<10)
	for {
		conn, err := dirsock.Dial(ctx, w.place, paths.APISocket)
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !dirsock.NoListener(err) {
			return err
		}
		if _, err := os.Lstat(w.place + "/" + paths.APISocket); err == nil {
			select {
			case <-time.After(listenRest):
			case <-ctx.Done():
			}
			continue
		}
		if _, err := w.file.Read(buf); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
	}
}
