package record_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest/agent/record"
	"banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
)

const id = "0123456789ab"

// file is what a host has at a name; nil data: it goes.
type file struct {
	name string
	data string
	gone bool
	hash uint64 // of what was sent before
}

type place struct {
	dir     string
	records record.Records
}

func newPlace(t *testing.T) *place {
	t.Helper()
	base := t.TempDir()
	p := &place{dir: filepath.Join(base, "w"), records: record.Records{Dir: filepath.Join(base, "records")}}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

var errRefused = errors.New("refused")

func stream(t *testing.T, files []file) (plan, out *bytes.Buffer) {
	t.Helper()
	plan, out = &bytes.Buffer{}, &bytes.Buffer{}
	w, tw := manifest.NewWriter(plan), tar.NewWriter(out)
	for _, f := range files {
		e := manifest.Entry{Name: f.name, Mode: unix.S_IFREG | 0o644, Size: int64(len(f.data)), Hash: f.hash}
		if f.gone {
			e = manifest.Entry{Name: f.name, Flags: manifest.Gone, Hash: f.hash}
		}
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
		if f.gone {
			continue
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(1e9, 0)}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.End(), tw.Close()); err != nil {
		t.Fatal(err)
	}
	return plan, out
}

func (p *place) put(t *testing.T, files []file, cut int) (conflicts []string, err error) {
	t.Helper()
	plan, out := stream(t, files)
	var in io.Reader = out
	if cut >= 0 {
		in = io.MultiReader(io.LimitReader(out, int64(cut)), broken{})
	}
	fd, err := unix.Open(p.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = p.records.Put(record.Put{
		ID: id, Dest: fd, DestName: p.dir, Owner: &tree.Owner{UID: os.Geteuid(), GID: os.Getegid()}, Plan: bufio.NewReader(plan), Tar: in,
		Ready: func(all []manifest.Entry) error {
			for _, e := range all {
				conflicts = append(conflicts, e.Name)
			}
			if len(all) > 0 {
				return errRefused
			}
			return nil
		},
	})
	return conflicts, err
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (p *place) changes(t *testing.T) []string {
	t.Helper()
	fd, err := unix.Open(p.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var out, also bytes.Buffer
	if err := manifest.NewWriter(&also).End(); err != nil {
		t.Fatal(err)
	}
	if err := p.records.Changes(record.Changes{ID: id, Dest: fd, Also: bufio.NewReader(&also)}, &out); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&out)
	if h, err := tr.Next(); err != nil || h.Name != record.ListName {
		t.Fatalf("%v, %v", h, err)
	}
	var names []string
	err = manifest.All(bufio.NewReader(tr), 1000, func(e manifest.Entry) error {
		letter := "M"
		switch {
		case e.Flags&manifest.Gone != 0:
			letter = "D"
		case e.Flags&manifest.Added != 0:
			letter = "A"
		}
		names = append(names, letter+" "+e.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestCutAnywhere cuts a transfer off at every place. What arrived is nobody's change, and
// the next one makes it whole.
func TestCutAnywhere(t *testing.T) {
	first := []file{{name: "a", data: "one"}, {name: "d/b", data: strings.Repeat("x", 700)}, {name: "gone", data: "soon"}}
	second := []file{{name: "a", data: "changed"}, {name: "d/b", data: "changed too"}, {name: "gone", gone: true}, {name: "new/c", data: "new"}}
	_, whole := stream(t, second)
	for cut := 0; cut <= whole.Len(); cut += 97 {
		p := newPlace(t)
		if conflicts, err := p.put(t, first, -1); err != nil || len(conflicts) > 0 {
			t.Fatalf("%v, %v", conflicts, err)
		}
		_, err := p.put(t, second, cut)
		if cut < whole.Len()-1024 && err == nil {
			t.Fatalf("cut off at %d of %d, and no error", cut, whole.Len())
		}
		if conflicts, err := p.put(t, second, -1); err != nil || len(conflicts) > 0 {
			t.Fatalf("cut off at %d: again: %v, %v", cut, conflicts, err)
		}
		if names := p.changes(t); len(names) > 0 {
			t.Fatalf("cut off at %d: afterwards the guest changed %q", cut, names)
		}
		for _, f := range second {
			b, err := os.ReadFile(filepath.Join(p.dir, f.name))
			if f.gone == (err == nil) || !f.gone && string(b) != f.data {
				t.Fatalf("cut off at %d: %s is %q, %v", cut, f.name, b, err)
			}
		}
	}
}

func TestChanges(t *testing.T) {
	p := newPlace(t)
	var files []file
	for _, name := range []string{"same", "changed", "gone", "touched", "d/in", "link-to-be", "dir-to-be", ".gitignore", "d/tracked.o"} {
		files = append(files, file{name: name, data: "*.o\n" + name})
	}
	if _, err := p.put(t, files, -1); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(p.dir, name) }
	now := time.Now()
	err := errors.Join(
		os.WriteFile(in("changed"), []byte("other"), 0o644), os.Remove(in("gone")), os.Chtimes(in("touched"), now, now),
		os.Remove(in("link-to-be")), os.Symlink("same", in("link-to-be")), os.Remove(in("dir-to-be")), os.MkdirAll(in("dir-to-be"), 0o755),
		os.WriteFile(in("dir-to-be/x"), nil, 0o644), os.WriteFile(in("y.o"), nil, 0o644), os.Mkdir(in("repo"), 0o755), os.Mkdir(in("repo/.git"), 0o755),
		os.WriteFile(in("repo/z"), nil, 0o644), os.WriteFile(in("d/tracked.o"), []byte("changed"), 0o644), unix.Mkfifo(in("fifo"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"M changed", "M d/tracked.o", "D dir-to-be", "A dir-to-be/x", "D gone", "M link-to-be", "A repo", "M touched"}
	if got := p.changes(t); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if err := p.records.Forget(id); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(p.records.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestPlansThatConflict(t *testing.T) {
	p := newPlace(t)
	if _, err := p.put(t, []file{{name: "f", data: "f"}, {name: "d/g", data: "g"}, {name: "d/h", data: "h"}}, -1); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(p.dir, name) }
	for _, tc := range []struct {
		name  string
		guest func() error
		plan  []file
		want  string
	}{
		{"made here", func() error { return os.WriteFile(in("new"), []byte("x"), 0o644) }, []file{{name: "new", data: "y"}}, "new"},
		{"removed here", func() error { return os.Remove(in("f")) }, []file{{name: "f", data: "y"}}, "f"},
		{"a file where a directory goes", func() error { return os.WriteFile(in("n"), []byte("x"), 0o644) }, []file{{name: "n/m", data: "y"}}, "n"},
		{"something in a directory that a file replaces", func() error { return os.WriteFile(in("d/own"), nil, 0o644) }, []file{{name: "d", data: "y"}, {name: "d/g", gone: true}, {name: "d/h", gone: true}}, "d/own"},
		{"a link out in the way", func() error {
			return errors.Join(os.RemoveAll(in("d")), os.Symlink(t.TempDir(), in("d")))
		}, []file{{name: "d/g", data: "y"}}, "d"},
	} {
		if err := tc.guest(); err != nil {
			t.Fatal(err)
		}
		conflicts, err := p.put(t, tc.plan, -1)
		if !errors.Is(err, errRefused) || !slices.Equal(conflicts, []string{tc.want}) {
			t.Errorf("%s: conflicts %q, %v", tc.name, conflicts, err)
		}
	}
	for _, name := range []string{"../x", "/x", "a/../../x", "", "."} {
		if name == "" {
			continue // no list has it
		}
		if _, err := p.put(t, []file{{name: name, data: "x"}}, -1); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// A record does not grow without bounds when the same files are sent again and again.
func TestRecordsStaySmall(t *testing.T) {
	if testing.Short() {
		t.Skip("writes some thousand files")
	}
	p := newPlace(t)
	var files []file
	for i := range 100 {
		long := strings.Repeat(fmt.Sprintf("%02d", i), 100)
		files = append(files, file{name: long + "/" + long + "/" + long + "/" + long, data: "x"})
	}
	for range 80 { // each adds some 80 kB
		if conflicts, err := p.put(t, files, -1); err != nil || len(conflicts) > 0 {
			t.Fatalf("%v, %v", conflicts, err)
		}
	}
	st, err := os.Stat(filepath.Join(p.records.Dir, id))
	if err != nil || st.Size() > 5<<20 {
		t.Errorf("%v, %v", st, err)
	}
}
