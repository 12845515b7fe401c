package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/disktest"
	"banger/internal/errdefs"
)

// world is a directory with programs to install, and one that plays the host's root.
type world struct {
	t          *testing.T
	from, root string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, from: t.TempDir(), root: t.TempDir()}
	for _, name := range programs {
		w.write(filepath.Join(w.from, name), name+" 1", 0o755)
	}
	w.write(filepath.Join(w.root, "units/other.service"), "[Unit]\n", 0o644)
	return w
}

func (w *world) write(path, text string, mode fs.FileMode) {
	w.t.Helper()
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) service() Service {
	return Service{Unit: filepath.Join(w.root, "units/bangerd.service"), Prefix: filepath.Join(w.root, "usr")}
}

// files lists the host's, with their modes and the content of programs.
func (w *world) files() string {
	w.t.Helper()
	var all []string
	err := filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && path == w.root {
			return err
		}
		info, err := d.Info()
		line := strings.TrimPrefix(path, w.root+"/") + " " + info.Mode().String()
		if strings.Contains(path, "/bin/") {
			b, _ := os.ReadFile(path)
			line += " " + string(b)
		}
		all = append(all, line)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func (w *world) install(s Service) bool {
	w.t.Helper()
	changed, err := s.Install(w.from)
	if err != nil {
		w.t.Fatal(err)
	}
	return changed
}

func TestInstallAndRemove(t *testing.T) {
	w := newWorld(t)
	before := w.files()
	s := w.service()
	s.Group = "banger"
	if !w.install(s) {
		t.Error("nothing has changed")
	}
	after := w.files()
	const want = "units drwxr-xr-x\nunits/bangerd.service -rw-r--r--\nunits/other.service -rw-r--r--\nusr drwxr-xr-x\nusr/bin drwxr-xr-x\n" +
		"usr/bin/banger -rwxr-xr-x banger 1\nusr/bin/banger-agent -rwxr-xr-x banger-agent 1\nusr/bin/bangerd -rwxr-xr-x bangerd 1"
	if after != want {
		t.Errorf("installed are\n%s\nwant\n%s", after, want)
	}
	if w.install(s) || w.files() != after {
		t.Error("a second time changes something")
	}
	w.write(filepath.Join(w.from, "bangerd"), "bangerd 2", 0o755)
	if !w.install(s) || w.files() != strings.Replace(after, "bangerd 1", "bangerd 2", 1) {
		t.Errorf("renewed are\n%s", w.files())
	}
	found, err := Find(s.Unit)
	if err != nil || found.Prefix != s.Prefix || found.Group != "banger" || !slices.Equal(found.made, []string{s.Prefix, s.Bin()}) {
		t.Errorf("found %+v, %v", found, err)
	}
	text, err := os.ReadFile(s.Unit)
	if err != nil || !strings.Contains(string(text), "\nExecStart="+s.Bin()+"/bangerd serve --group banger\n") {
		t.Errorf("the unit is\n%s\n%v", text, err)
	}
	for range 2 {
		if err := found.Remove(); err != nil {
			t.Fatal(err)
		}
		if got := w.files(); got != before {
			t.Errorf("left are\n%s", got)
		}
	}
	if _, err := Find(s.Unit); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("found again: %v", err)
	}
}

// What was there before stays: directories, and other files in those that we made.
func TestRemoveTakesOnlyOurs(t *testing.T) {
	w := newWorld(t)
	w.write(filepath.Join(w.root, "usr/share/x"), "x", 0o644)
	s := w.service()
	w.install(s)
	w.write(filepath.Join(s.Bin(), "theirs"), "x", 0o755)
	found, err := Find(s.Unit)
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/share/x", "usr/bin/theirs", "units/other.service"} {
		if _, err := os.Stat(filepath.Join(w.root, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.Bin(), "banger")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("banger: %v", err)
	}
}

// A crash in the middle leaves a unit by which all of it is found, and copies that
// the next run takes away.
func TestAfterACrash(t *testing.T) {
	w := newWorld(t)
	before := w.files()
	s := w.service()
	s.made = missing(s.Bin())
	w.write(s.Unit, s.unit(), 0o644)
	w.write(stagingOf(s.Unit), "half a u", 0o600)
	w.write(filepath.Join(s.Bin(), "banger"), "banger 1", 0o755)
	w.write(stagingOf(filepath.Join(s.Bin(), "bangerd")), "bang", 0o600)
	found, err := Find(s.Unit)
	if err != nil {
		t.Fatal(err)
	}
	if err := found.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := w.files(); got != before {
		t.Errorf("left are\n%s", got)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(w *world, s *Service)
		class   errdefs.Class
	}{
		"relative prefix":   {func(_ *world, s *Service) { s.Prefix = "usr" }, errdefs.ClassInvalidArgument},
		"prefix with space": {func(_ *world, s *Service) { s.Prefix += " x" }, errdefs.ClassInvalidArgument},
		"prefix with %":     {func(_ *world, s *Service) { s.Prefix += "/%h" }, errdefs.ClassInvalidArgument},
		"flag for a group":  {func(_ *world, s *Service) { s.Group = "-x" }, errdefs.ClassInvalidArgument},
		"no agent":          {func(w *world, _ *Service) { _ = os.Remove(filepath.Join(w.from, "banger-agent")) }, errdefs.ClassFailedPrecondition},
		"agent not to run":  {func(w *world, _ *Service) { w.write(filepath.Join(w.from, "banger-agent"), "x", 0o644) }, errdefs.ClassFailedPrecondition},
		"foreign unit":      {func(w *world, s *Service) { w.write(s.Unit, "[Service]\nExecStart=/x\n", 0o644) }, errdefs.ClassFailedPrecondition},
		"damaged unit":      {func(w *world, s *Service) { w.write(s.Unit, "[Unit]\n\n[X-Banger]\nPrefix=../..\n", 0o644) }, errdefs.ClassFailedPrecondition},
		"a directory there": {func(w *world, s *Service) { w.write(filepath.Join(s.Bin(), "bangerd/x"), "x", 0o644) }, errdefs.ClassFailedPrecondition},
		"a link there": {func(w *world, s *Service) {
			w.write(filepath.Join(s.Bin(), "x"), "x", 0o644)
			_ = os.Symlink("x", filepath.Join(s.Bin(), "banger"))
		}, errdefs.ClassFailedPrecondition},
		"a program of the user's": {func(w *world, s *Service) {
			w.write(filepath.Join(s.Bin(), "banger-agent"), "the user's", 0o755)
		}, errdefs.ClassAlreadyExists},
		"another prefix": {func(w *world, s *Service) {
			w.install(*s)
			s.Prefix += "2"
		}, errdefs.ClassFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.service()
			c.prepare(w, &s)
			before := w.files()
			_, err := s.Install(w.from)
			if errdefs.ClassOf(err) != c.class {
				t.Errorf("%v", err)
			}
			if got := w.files(); got != before {
				t.Errorf("it changed the host to\n%s\nfrom\n%s", got, before)
			}
		})
	}
}

// On a full disk a new installation leaves nothing, and a renewed one the old files.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	dir, leave := disktest.Small(t, 4<<20)
	w.write(filepath.Join(dir, "units/other.service"), "x", 0o644)
	w.root = dir
	for _, name := range programs {
		w.write(filepath.Join(w.from, name), strings.Repeat("1", 100<<10), 0o755)
	}
	s := w.service()
	before := w.files()
	leave(150 << 10)
	if _, err := s.Install(w.from); errdefs.ClassOf(err) != errdefs.ClassExhausted {
		t.Errorf("%v", err)
	}
	if got := w.files(); got != before {
		t.Errorf("left are\n%s", got)
	}
	leave(1 << 20)
	w.install(s)
	before = w.files()
	for _, name := range programs {
		w.write(filepath.Join(w.from, name), strings.Repeat("2", 100<<10), 0o755)
	}
	leave(150 << 10)
	if _, err := s.Install(w.from); errdefs.ClassOf(err) != errdefs.ClassExhausted {
		t.Errorf("%v", err)
	}
	if got := w.files(); got != before {
		t.Error("a renewal that failed has changed something")
	}
}
