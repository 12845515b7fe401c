package vmmlog_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
)

func TestCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	writer, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f, err := vmmlog.Log{Dir: dir, Name: "log"}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _ = writer.Write(bytes.Repeat([]byte("x"), vmmlog.Limit))
	if err := vmmlog.Cut(f); err != nil {
		t.Fatal(err)
	}
	if st, _ := f.Stat(); st.Size() != vmmlog.Limit {
		t.Errorf("a log within the limit was cut to %d", st.Size())
	}
	_, _ = writer.WriteString("the end\n")
	if err := vmmlog.Cut(f); err != nil {
		t.Fatal(err)
	}
	_, _ = writer.WriteString("and on\n")
	b, err := os.ReadFile(path)
	if err != nil || len(b) > vmmlog.Keep+200 || !bytes.HasPrefix(b, []byte("[banger: ")) || !bytes.HasSuffix(b, []byte("xthe end\nand on\n")) {
		t.Errorf("%d bytes, %v: %.60q … %q", len(b), err, b, b[max(0, len(b)-30):])
	}
}

// The VMM's user owns the directory and may put there what it likes.
func TestOpenLogRefuses(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	for _, err := range []error{
		os.WriteFile(victim, []byte("precious"), 0o600),
		os.Symlink(victim, filepath.Join(dir, "symlink")),
		os.Link(victim, filepath.Join(dir, "hardlink")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Mkdir(filepath.Join(dir, "dir"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"symlink", "hardlink", "fifo", "dir", "none"} {
		if f, err := (vmmlog.Log{Dir: dir, Name: name}).Open(); err == nil {
			_ = f.Close()
			t.Errorf("%s was opened", name)
		}
	}
}

// A log stays bounded when nothing tells of writes to it any more.
func TestLogsStayBoundedWithoutEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	console, moved := filepath.Join(dir, paths.ConsoleLog), filepath.Join(dir, "moved")
	for _, name := range []string{paths.ConsoleLog, paths.VMMLog} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	armed := make(chan struct{})
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		<-armed
		vmmlog.Bound([]vmmlog.Log{{Dir: dir, Name: paths.ConsoleLog}, {Dir: dir, Name: paths.VMMLog}}, ended, nil, slog.New(slog.DiscardHandler))
	}()
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(events), "inotify")
	defer func() { _ = watch.Close() }()
	if _, err := unix.InotifyAddWatch(events, console, unix.IN_OPEN|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	close(armed)
	buf := make([]byte, 4096)
	if _, err := watch.Read(buf); err != nil { // it has the log open
		t.Fatal(err)
	}
	if err := os.Rename(console, moved); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(moved, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, vmmlog.Limit+1)); err != nil {
		t.Fatal(err)
	}
	for {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() <= vmmlog.Limit {
			break
		}
		if _, err := watch.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	close(ended)
	<-done
}

// A log that cannot be opened at first is bounded as soon as it can.
func TestLogIsOpenedLater(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, other := filepath.Join(dir, paths.VMMLog), filepath.Join(t.TempDir(), "other")
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, paths.ConsoleLog), nil, 0o600),
		os.WriteFile(path, make([]byte, vmmlog.Limit+1), 0o600),
		os.Link(path, other), // two names are one too many
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(events), "inotify")
	defer watch.Close()
	if _, err := unix.InotifyAddWatch(events, path, unix.IN_OPEN|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		vmmlog.Bound([]vmmlog.Log{{Dir: dir, Name: paths.ConsoleLog}, {Dir: dir, Name: paths.VMMLog}}, ended, nil, slog.New(slog.DiscardHandler))
	}()
	defer func() { close(ended); <-done }()
	buf := make([]byte, 4096)
	if _, err := watch.Read(buf); err != nil { // it was tried
		t.Fatal(err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	for {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() <= vmmlog.Limit {
			return
		}
		if _, err := watch.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
}

// What is reserved behind the end of a log is no reason to complain.
func TestPunchOfAReservation(t *testing.T) {
	dir := t.TempDir()
	writer, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := unix.Fallocate(int(writer.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, vmmlog.Limit+vmmlog.Keep); err != nil {
		t.Skip(err)
	}
	for _, size := range []int{1, vmmlog.Keep - 1} {
		if _, err := writer.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := vmmlog.Punch(writer); err != nil {
			t.Errorf("%d bytes more: %v", size, err)
		}
	}
}

// A writer that does not append goes on where it was; the disk under what is old
// is given back all the same.
func TestPunch(t *testing.T) {
	dir := t.TempDir()
	writer, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	f, err := vmmlog.Log{Dir: dir, Name: "log", Sparse: true}.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _ = writer.Write(bytes.Repeat([]byte("x"), vmmlog.Limit+vmmlog.Keep))
	if err := vmmlog.Punch(f); err != nil {
		t.Fatal(err)
	}
	_, _ = writer.WriteString("\nthe end\n")
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 2*vmmlog.Keep {
		t.Errorf("%d bytes are on the disk, %v", st.Blocks*512, err)
	}
	if got := vmmlog.Last(f, 1, nil); got != "the end" {
		t.Errorf("last line %q", got)
	}
}
