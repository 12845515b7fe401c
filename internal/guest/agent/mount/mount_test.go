package mount_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/share"
)

func containsField(text, field string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == field {
			return true
		}
	}
	return false
}

// seed is the test's, or the one that is asked for.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := rand.Uint64()
	if s := os.Getenv("BANGER_TEST_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BANGER_TEST_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

func TestBothSidesSee(t *testing.T) {
	r := start(t, share.Options{Chown: true})
	if err := write(r.guest+"/a", []byte("from there"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(r.host + "/a"); err != nil || string(got) != "from there" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(r.guest + "/later"); err != unix.ENOENT {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(r.host+"/later", []byte("from here"), 0o640); err != nil {
		t.Fatal(err)
	}
	soon(t, "a new file is seen", func() bool { got, err := read(r.guest + "/later"); return err == nil && string(got) == "from here" })
	for i := range 50 {
		want := fmt.Sprintf("change %d", i)
		if err := os.WriteFile(r.host+"/later", []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		soon(t, want, func() bool { got, err := read(r.guest + "/later"); return err == nil && string(got) == want })
	}
	if err := os.Rename(r.host+"/later", r.host+"/moved"); err != nil {
		t.Fatal(err)
	}
	soon(t, "it has moved", func() bool {
		_, gone := read(r.guest + "/later")
		got, err := read(r.guest + "/moved")
		return gone == unix.ENOENT && err == nil && string(got) == "change 49"
	})
	if err := os.Remove(r.host + "/moved"); err != nil {
		t.Fatal(err)
	}
	soon(t, "it is gone", func() bool { _, err := read(r.guest + "/moved"); return err == unix.ENOENT })
	// Directories too, with what is below.
	if err := os.MkdirAll(r.host+"/d/e/f", 0o755); err != nil {
		t.Fatal(err)
	}
	soon(t, "a tree", func() bool { return write(r.guest+"/d/e/f/g", []byte("x"), 0) == nil })
	if err := os.RemoveAll(r.host + "/d"); err != nil {
		t.Fatal(err)
	}
	soon(t, "a tree is gone", func() bool { _, err := read(r.guest + "/d/e/f/g"); return err == unix.ENOENT })
	if notice := r.share.Notice(); notice != "" {
		t.Error(notice)
	}
}

// watcher hears of what happens below a directory of the guest, as programs there do.
type watcher struct {
	fd    int
	mu    sync.Mutex
	heard map[string]uint32
}

func watch(t *testing.T, dir string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CLOSE_NOWRITE)); err != nil {
		t.Fatal(err)
	}
	w := &watcher{fd: fd, heard: map[string]uint32{}}
	f := os.NewFile(uintptr(fd), "inotify")
	var listening sync.WaitGroup
	listening.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			w.mu.Lock()
			for b := buf[:n]; len(b) >= 16; {
				size := int(b[12]) | int(b[13])<<8
				name := string(bytes.TrimRight(b[16:16+size], "\x00"))
				w.heard[name] |= uint32(b[4]) | uint32(b[5])<<8
				b = b[16+size:]
			}
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = f.Close()
		listening.Wait()
	})
	return w
}

func (w *watcher) of(name string) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard[name]
}

func (w *watcher) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.heard)
}

// TestProgramsHear has the host change files that programs of the guest watch.
func TestProgramsHear(t *testing.T) {
	r := start(t, share.Options{Chown: true})
	if err := os.WriteFile(r.host+"/old", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	soon(t, "the file is seen", func() bool { _, err := read(r.guest + "/old"); return err == nil })
	w := watch(t, r.guest)
	if err := os.WriteFile(r.host+"/old", []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	soon(t, "a change is heard", func() bool { return w.of("old")&unix.IN_ATTRIB != 0 })
	if got, err := read(r.guest + "/old"); err != nil || string(got) != "2" {
		t.Errorf("what was heard of is %q, %v", got, err)
	}
	if err := os.WriteFile(r.host+"/new", []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	soon(t, "a new file is heard", func() bool { return w.of("new")&unix.IN_ATTRIB != 0 })
	if err := os.Remove(r.host + "/old"); err != nil {
		t.Fatal(err)
	}
	soon(t, "an end is heard", func() bool { return w.of("old")&unix.IN_DELETE != 0 })

	// What the guest does itself it hears once, of its own kernel.
	before, err := os.Stat(r.host + "/new")
	if err != nil {
		t.Fatal(err)
	}
	w.forget()
	if err := write(r.guest+"/own", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.host+"/last", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	soon(t, "what came after it", func() bool { return w.of("last")&unix.IN_ATTRIB != 0 })
	if got := w.of("own"); got&unix.IN_ATTRIB != 0 || got&unix.IN_CREATE == 0 {
		t.Errorf("of its own file the guest hears %#x", got)
	}
	// And the host's files are none the newer for that.
	if after, err := os.Stat(r.host + "/new"); err != nil || !after.ModTime().Equal(before.ModTime()) || after.Mode() != before.Mode() {
		t.Errorf("%v, before it was %v, %v", after, before, err)
	}
}

func TestReadOnly(t *testing.T) {
	r := start(t, share.Options{ReadOnly: true, Chown: true})
	if err := os.WriteFile(r.host+"/a", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	soon(t, "the file is seen", func() bool { got, err := read(r.guest + "/a"); return err == nil && string(got) == "1" })
	if err := write(r.guest+"/a", []byte("2"), 0); err != unix.EROFS {
		t.Errorf("%v", err)
	}
	if err := unix.Unlink(r.guest + "/a"); err != unix.EROFS {
		t.Errorf("%v", err)
	}
	if err := unix.Mkdir(r.guest+"/b", 0o755); err != unix.EROFS {
		t.Errorf("%v", err)
	}
}

// TestOwners: our files are those of the guest's user, and others' are never theirs.
func TestOwners(t *testing.T) {
	r := startFor(t, share.Options{}, share.Guest{UID: 1000, GID: 1001})
	if err := os.WriteFile(r.host+"/ours", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.host+"/theirs", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(r.host+"/theirs", 1000, 7); err != nil {
		t.Fatal(err)
	}
	owners := func(name string) [2]uint32 {
		var st unix.Stat_t
		if err := unix.Stat(r.guest+"/"+name, &st); err != nil {
			t.Fatal(err)
		}
		return [2]uint32{st.Uid, st.Gid}
	}
	if got := owners("ours"); got != [2]uint32{1000, 1001} {
		t.Errorf("ours: %d", got)
	}
	if got := owners("theirs"); got != [2]uint32{65534, 7} {
		t.Errorf("theirs: %d", got)
	}
	// Set-id bits stay there.
	if err := unix.Chmod(r.guest+"/ours", 0o6755); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(r.host + "/ours"); err != nil || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := unix.Mknod(r.guest+"/device", unix.S_IFCHR|0o666, 1<<8|3); err != unix.EPERM {
		t.Errorf("a device: %v", err)
	}
	if err := unix.Setxattr(r.guest+"/ours", "security.capability", []byte{1}, 0); err == nil {
		t.Error("a file has got capabilities")
	}
}

// TestCut ends the stream while programs work on the file system.
func TestCut(t *testing.T) {
	for range 10 {
		r := start(t, share.Options{Chown: true})
		var working sync.WaitGroup
		stop := make(chan struct{})
		for i := range 8 {
			working.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					name := fmt.Sprintf("%s/%d-%d", r.guest, i, n%10)
					if err := write(name, bytes.Repeat([]byte{byte(n)}, 50_000), unix.O_TRUNC); err != nil {
						return
					}
					_, _ = read(name)
					_ = unix.Unlink(name)
				}
			})
		}
		<-time.After(20 * time.Millisecond)
		r.cut()
		r.ended() // which proves that nobody waits for ever
		close(stop)
		working.Wait()
		if _, err := os.ReadDir(r.host); err != nil {
			t.Error(err)
		}
	}
}

// TestUnmount: who unmounts it in the guest ends it here.
func TestUnmount(t *testing.T) {
	r := start(t, share.Options{Chown: true})
	if err := write(r.guest+"/a", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(r.guest, 0); err != nil {
		t.Fatal(err)
	}
	r.ended()
}

// TestManyFiles lists and removes a directory that takes more than one answer.
func TestManyFiles(t *testing.T) {
	r := start(t, share.Options{Chown: true})
	want := map[string]bool{}
	for i := range 3000 {
		name := fmt.Sprintf("file number %d, of a name that is long %s", i, strings.Repeat("x", i%100))
		want[name] = true
		if err := os.WriteFile(filepath.Join(r.host, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // by us, then from what the kernel has kept
		got := names(t, r.guest)
		if len(got) != len(want) {
			t.Fatalf("%d names, not %d", len(got), len(want))
		}
		for _, name := range got {
			if !want[name] {
				t.Fatalf("%q", name)
			}
		}
	}
	for name := range want {
		if err := unix.Unlink(filepath.Join(r.guest, name)); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(r.host); err != nil || len(left) > 0 {
		t.Errorf("%d are left, %v", len(left), err)
	}
}

// names lists a directory by system calls.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n <= 0 {
			return all
		}
		_, _, all = unix.ParseDirent(buf[:n], -1, all)
	}
}
