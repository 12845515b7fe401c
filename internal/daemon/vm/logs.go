package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// logChunk is how much of a log goes into one message, in bytes.
const logChunk = 64 << 10

// logs sends the console log, or the VMM's, and with follow what comes after it
// until the VM stops or ctx ends.
func (s *Service) logs(ctx context.Context, v *model.VM, vmm, follow bool, tail int64, send func([]byte) error) error {
	name := paths.ConsoleLog
	if vmm {
		name = paths.VMMLog
	}
	path := filepath.Join(s.Layout.VM(v.ID), name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if now, err := s.Store.GetVM(ctx, v.ID); err == nil && now.State == model.StateDeleting || errors.Is(err, errdefs.ErrNotFound) {
			return errdefs.NotFound("vm %q was just deleted", v.Name).WithHint("list what there is: banger vm list --all")
		}
		return errdefs.Precondition("vm %q has no log: it was never started", v.Name).
			WithHint("start it: banger vm start %s", v.Name)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer func() { _ = f.Close() }()
	if tail > 0 {
		if size, err := f.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("seek log: %w", err)
		} else if _, err := f.Seek(max(0, size-tail), io.SeekStart); err != nil {
			return fmt.Errorf("seek log: %w", err)
		}
	}
	var watch *logWatch
	if follow {
		if watch, err = watchLog(path); err != nil {
			return err
		}
		defer watch.close()
	}
	buf := make([]byte, logChunk)
	for {
		// A change after the state was looked at must not be missed, and what was
		// written before the end must be sent: hence this order.
		var changed <-chan struct{}
		ended := !follow
		if follow {
			changed = s.nextChange(v.ID)
			if ended, err = s.bootEnded(ctx, v); err != nil {
				return err
			}
		}
		for {
			n, err := f.Read(buf)
			if n > 0 {
				if err := send(buf[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				again, err := rewound(f)
				if err != nil {
					return fmt.Errorf("read log: %w", err)
				}
				if again {
					continue
				}
				break
			}
			if err != nil {
				return fmt.Errorf("read log: %w", err)
			}
		}
		if ended {
			return nil
		}
		select {
		case <-watch.grew:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bootEnded reports whether the boot of v, as v was read, is over.
func (s *Service) bootEnded(ctx context.Context, v *model.VM) (bool, error) {
	now, err := s.Store.GetVM(ctx, v.ID)
	if errors.Is(err, errdefs.ErrNotFound) {
		s.notify(v.ID) // nobody else will, and it would be remembered
		return true, nil
	}
	return now.BootID != v.BootID || !now.State.Live(), err
}

// rewound reports whether the log was cut below where we read, as happens to one
// that grows too long, and then goes back to its start.
func rewound(f *os.File) (bool, error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	st, err := f.Stat()
	if err != nil || st.Size() >= at {
		return false, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return true, err
}

// logWatch tells when a file grew, by inotify.
type logWatch struct {
	file *os.File
	grew chan struct{}
}

func watchLog(path string) (*logWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch log: %w", err)
	}
	w := &logWatch{file: os.NewFile(uintptr(fd), "inotify"), grew: make(chan struct{}, 1)}
	go func() { // ends when the file is closed
		buf := make([]byte, 4096)
		for {
			if _, err := w.file.Read(buf); err != nil {
				return
			}
			select {
			case w.grew <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *logWatch) close() { _ = w.file.Close() }
