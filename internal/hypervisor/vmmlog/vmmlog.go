// Package vmmlog keeps the logs of a VMM: its own and its guest's console. A guest
// writes as much as it likes to its console, and can make a VMM complain, so each
// log is bounded while the VM runs; and a log may lie in a directory of the VMM's
// user, so nothing but a plain file of ours is ever opened.
package vmmlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/logkey"
)

// tailBytes is how much of the end of a log is looked at for an error's text.
const tailBytes = 4 << 10

// Last returns up to n last lines of a log, joined by "; ". strip takes away what
// the VMM puts before its words; it may be nil. What cannot be read counts as empty:
// it is only detail to an error that stands without it.
func Last(f *os.File, n int, strip func(string) string) string {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return ""
	}
	b := make([]byte, min(st.Size(), tailBytes))
	got, err := f.ReadAt(b, st.Size()-int64(len(b)))
	if err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare
		return ""
	}
	var lines []string
	for line := range strings.Lines(string(b[:got])) {
		line = strings.Trim(line, "\x00 \t\r\n")
		if strip != nil {
			line = strip(line)
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// A log longer than Limit is cut to its last Keep bytes.
const (
	Limit = 8 << 20
	Keep  = 1 << 20

	logRest  = 2 * time.Second // between two looks at a log that grows
	logBlind = 5 * time.Second // the same, when nothing tells of writes
)

// Create replaces a log of an earlier run. Nothing that lies there already is ever
// opened.
func Create(dir, name string, mode int) (*os.File, error) {
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, mode|os.O_APPEND|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// Log is one log to keep short.
type Log struct {
	Dir, Name string
	// Links is how many names the file has; zero means one.
	Links int
	// Sparse: its writer does not append, and goes on where it was. Old bytes are
	// given back to the file system; the size stays.
	Sparse bool
	// Look is called at the beginning and after the log was written to, though not
	// every time; nil: nobody looks.
	Look func(*os.File)
}

// Open opens a log for reading and cutting.
func (l Log) Open() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.Dir, l.Name), os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Nlink) > max(1, l.Links) {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: not a log of ours", l.Name)
	}
	return f, nil
}

// Bound keeps logs short until one of the channels closes. It wakes only when a
// log was written to, and then not again for a while. A host that has no inotify
// left, or for a moment no descriptor for a log, is no reason to let a guest fill its
// disk: then it looks now and then.
func Bound(list []Log, ended, released <-chan struct{}, log *slog.Logger) {
	logs := make([]*bounded, len(list))
	for i, l := range list {
		logs[i] = &bounded{Log: l, log: log}
		defer logs[i].close()
	}
	written := make(chan struct{}, 1)
	w, err := watchWrites(written)
	if err != nil {
		log.Warn("writes to logs go unnoticed, looking now and then", logkey.Err, err)
	} else {
		defer w.close()
	}
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ended:
			return
		case <-released:
			return
		case <-rest.C:
		}
		// First the watch, then the look: what is written in between is seen by one of
		// them. That a cut wakes us once more is the price.
		open := true
		for _, l := range logs {
			open = l.open() && open
		}
		blind := !open || w == nil || w.arm(logs) != nil
		for _, l := range logs {
			l.look()
		}
		if blind {
			rest.Reset(logBlind)
			continue
		}
		select {
		case <-ended:
			return
		case <-released:
			return
		case <-written:
			rest.Reset(logRest)
		}
	}
}

// bounded is a log that is kept short.
type bounded struct {
	Log
	log    *slog.Logger
	file   *os.File // nil: it could not be opened yet
	warned bool
}

// open opens the log, unless it is open.
func (b *bounded) open() bool {
	if b.file != nil {
		return true
	}
	f, err := b.Open()
	if err != nil {
		if !b.warned {
			b.log.Warn("log is not bounded until it can be opened", logkey.Log, b.Name, logkey.Err, err)
		}
		b.warned = true
		return false
	}
	b.file = f
	return true
}

func (b *bounded) look() {
	if b.file == nil {
		return
	}
	if b.Look != nil {
		b.Look(b.file)
	}
	shorten := cut
	if b.Sparse {
		shorten = punch
	}
	if err := shorten(b.file); err != nil {
		b.log.Warn("cut log", logkey.Log, b.file.Name(), logkey.Err, err)
	}
}

func (b *bounded) close() {
	if b.file != nil {
		_ = b.file.Close()
	}
}

// writeWatch is an inotify instance and the goroutine that reads it.
type writeWatch struct {
	file *os.File
	done chan struct{}
}

// watchWrites sends to written for what arm asked about.
func watchWrites(written chan<- struct{}) (*writeWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &writeWatch{file: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		buf := make([]byte, 4<<10)
		for {
			if _, err := w.file.Read(buf); err != nil {
				return
			}
			select {
			case written <- struct{}{}:
			default:
			}
		}
	}()
	return w, nil
}

func (w *writeWatch) close() {
	_ = w.file.Close()
	<-w.done
}

// arm asks for one event on the next write to any of the logs. One, because a
// console is written byte by byte.
func (w *writeWatch) arm(logs []*bounded) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	for _, l := range logs {
		var addErr error
		err := raw.Control(func(fd uintptr) {
			_, addErr = unix.InotifyAddWatch(int(fd), l.file.Name(), unix.IN_MODIFY|unix.IN_ONESHOT|unix.IN_DONT_FOLLOW)
		})
		if err = errors.Join(err, addErr); err != nil {
			return err
		}
	}
	return nil
}

// cut shortens a log that grew too long. Its writer appends, so it goes on after
// what is kept; a line it writes meanwhile may be lost.
func cut(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() <= Limit {
		return err
	}
	b := make([]byte, Keep)
	n, err := f.ReadAt(b, st.Size()-Keep)
	if err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	note := fmt.Sprintf("[banger: %d bytes before this were cut]\n", st.Size()-int64(n))
	_, err = f.Write(append([]byte(note), b[:n]...))
	return err
}

// punch frees the disk under all but the last bytes of a log whose writer does not
// append. What it reserved behind its end is no log.
func punch(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 <= Limit || st.Size <= Keep {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size-Keep)
}
