package qemuproc

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/logkey"
	"banger/internal/paths"
)

// tailBytes is how much of the end of a log is looked at for an error's text.
const tailBytes = 4 << 10

// lastLines returns up to n last lines of the log f, joined by "; ", without the
// timestamps and program names QEMU puts before them. What cannot be read counts
// as empty: it is only detail to an error that stands without it.
func lastLines(f *os.File, n int) string {
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
		if line = strip(strings.TrimSpace(line)); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// strip removes "2026-01-02T03:04:05.678901Z qemu-system-x86_64: ".
func strip(line string) string {
	if i := strings.IndexByte(line, ' '); i > 0 && line[i-1] == 'Z' && strings.IndexByte(line[:i], 'T') == 10 {
		line = line[i+1:]
	}
	if prog, rest, ok := strings.Cut(line, ": "); ok && !strings.ContainsRune(prog, ' ') && strings.Contains(prog, "qemu") {
		line = rest
	}
	return line
}

// A guest writes as much as it likes to its console, and can make QEMU complain.
// A log longer than logLimit is cut to its last logKeep bytes.
const (
	logLimit = 8 << 20
	logKeep  = 1 << 20
	logRest  = 2 * time.Second // between two looks at a log that grows
	logBlind = 5 * time.Second // the same, when nothing tells of writes
)

// openLog opens a log for reading and cutting. The VMM's user may own the
// directory and must not make us open, or cut, anything but a plain file there.
func openLog(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: not a log of ours", name)
	}
	return f, nil
}

// boundLogs keeps the logs in dir short until one of the channels closes. It
// wakes only when a log was written to, and then not again for a while. A host
// that has no inotify left is no reason to let a guest fill its disk: then it
// looks now and then.
func boundLogs(dir string, ended, released <-chan struct{}, log *slog.Logger) {
	var logs []*os.File
	for _, name := range []string{paths.ConsoleLog, paths.VMMLog} {
		f, err := openLog(dir, name)
		if err != nil {
			log.Warn("log is not bounded", logkey.Log, name, logkey.Err, err)
			continue
		}
		defer f.Close()
		logs = append(logs, f)
	}
	if len(logs) == 0 {
		return
	}
	written := make(chan struct{}, 1)
	w, err := watchWrites(written)
	if err != nil {
		log.Warn("writes to logs go unnoticed, looking now and then", logkey.Dir, dir, logkey.Err, err)
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
		blind := w == nil || w.arm(logs) != nil
		for _, f := range logs {
			if err := cut(f); err != nil {
				log.Warn("cut log", logkey.Log, f.Name(), logkey.Err, err)
			}
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
func (w *writeWatch) arm(logs []*os.File) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	for _, f := range logs {
		var addErr error
		err := raw.Control(func(fd uintptr) {
			_, addErr = unix.InotifyAddWatch(int(fd), f.Name(), unix.IN_MODIFY|unix.IN_ONESHOT|unix.IN_DONT_FOLLOW)
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
	if err != nil || st.Size() <= logLimit {
		return err
	}
	b := make([]byte, logKeep)
	n, err := f.ReadAt(b, st.Size()-logKeep)
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
