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
		// The end is looked at before the last read: what was written by then is sent.
		ended := !follow || s.lookup(v.ID) == nil
		changed := s.nextChange(v.ID)
		for {
			n, err := f.Read(buf)
			if n > 0 {
				if err := send(buf[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
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
