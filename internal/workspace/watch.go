package workspace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// watched are the events that may mean that a tree has changed.
const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW

// quiet is how long nothing has to happen before a change counts as done; settle is how
// long that is waited for.
const (
	quiet  = 50 * time.Millisecond
	settle = time.Second
)

// Watcher waits for changes below directories. What an event says is not looked at, so
// one that the kernel dropped is as good as any.
type Watcher struct {
	f      *os.File
	fd     int
	events chan struct{} // holds one token when something has happened
	ended  chan struct{}
}

// NewWatcher watches nothing yet.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, errdefs.Wrap(err, "watch for changes")
	}
	w := &Watcher{f: os.NewFile(uintptr(fd), "inotify"), fd: fd, events: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.read()
	return w, nil
}

func (w *Watcher) read() {
	defer close(w.ended)
	buf := make([]byte, 64<<10)
	for {
		if _, err := w.f.Read(buf); err != nil {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

// Add watches directories, those that are watched already as well. One that is gone is
// no error: its going was an event.
func (w *Watcher) Add(dirs []string) error {
	for _, dir := range dirs {
		_, err := unix.InotifyAddWatch(w.fd, filepath.Clean(dir), watched)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES):
		case errors.Is(err, unix.ENOSPC):
			return errdefs.Exhausted("this user may not watch %d directories", len(dirs)).
				WithHint("allow more: sysctl fs.inotify.max_user_watches=524288")
		default:
			return errdefs.Wrap(err, "watch %s", dir)
		}
	}
	return nil
}

// Wait returns when something has happened since the last Wait, and has come to an end.
func (w *Watcher) Wait(ctx context.Context) error {
	select {
	case <-w.events:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	last := time.After(settle)
	for {
		still := time.NewTimer(quiet)
		select {
		case <-w.events:
			still.Stop()
		case <-still.C:
			return nil
		case <-last:
			still.Stop()
			return nil
		case <-ctx.Done():
			still.Stop()
			return context.Cause(ctx)
		}
	}
}

// Close stops watching.
func (w *Watcher) Close() {
	_ = w.f.Close()
	<-w.ended
}
