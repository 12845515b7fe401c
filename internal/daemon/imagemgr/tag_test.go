package imagemgr

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// tag tags an image that can be.
func (w *world) tag(source, name string, force bool) model.Image {
	w.t.Helper()
	i, err := w.s.Tag(w.t.Context(), source, name, force)
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// shared reports whether two images are one file.
func shared(t testing.TB, a, b model.Image) bool {
	t.Helper()
	one, err := os.Stat(a.Path)
	other, err2 := os.Stat(b.Path)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return os.SameFile(one, other)
}

func TestTag(t *testing.T) {
	w := newWorld(t)
	src := w.image("debian")
	i := w.tag("debian", "base:1", false)
	if i.Name != "base:1" || i.ID == src.ID || !i.Managed || i.Config.User != src.Config.User || i.Digest != src.Digest || !shared(t, i, src) {
		t.Errorf("%+v of %+v", i, src)
	}
	if again := w.tag("debian", "base:1", false); again.ID != i.ID {
		t.Errorf("again it is %+v", again)
	}
	if itself := w.tag("debian", "base:1", true); itself.ID != i.ID {
		t.Errorf("with force it is %+v", itself)
	}
	if got, err := w.s.GetImage(t.Context(), "docker.io/library/base:1"); err != nil || got.ID != i.ID {
		t.Errorf("in full: %+v, %v", got, err)
	}
	for written, want := range map[string]string{"a:latest": "a", "docker.io/library/b": "b", "localhost:5000/c:latest": "localhost:5000/c"} {
		if got := w.tag("debian", written, false); got.Name != want {
			t.Errorf("%s is called %s", written, got.Name)
		}
	}
	// Each name can go without the other.
	if err := w.s.RemoveImage(t.Context(), "debian"); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if data, err := os.ReadFile(w.image("base:1").Path); err != nil || string(data) != "root of " {
		t.Errorf("%q, %v", data, err)
	}
}

func TestTagRefuses(t *testing.T) {
	w := newWorld(t)
	w.image("debian")
	w.tag("debian", "base", false)
	before := w.files()
	w.image("debian:trixie")
	for what, c := range map[string]struct {
		source, name string
		class        errdefs.Class
	}{
		"taken":           {"debian:trixie", "base", errdefs.ClassAlreadyExists},
		"taken, in full":  {"debian:trixie", "docker.io/library/base:latest", errdefs.ClassAlreadyExists},
		"reserved":        {"debian", "debian:mine", errdefs.ClassInvalidArgument},
		"bad":             {"debian", "../x", errdefs.ClassInvalidArgument},
		"empty":           {"debian", "", errdefs.ClassInvalidArgument},
		"a digest":        {"debian", "x@sha256:" + strings.Repeat("0", 64), errdefs.ClassInvalidArgument},
		"unknown":         {"nothing", "x", errdefs.ClassNotFound},
		"an empty source": {"", "x", errdefs.ClassInvalidArgument},
	} {
		if got, err := w.s.Tag(t.Context(), c.source, c.name, false); errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v (%s)", what, got, err, errdefs.HintOf(err))
		}
	}
	if i := w.image("debian:trixie"); len(strings.Fields(w.files())) != len(strings.Fields(before))+1 {
		t.Errorf("left %s; before %s and %s", w.files(), before, i.ID)
	}
}

// A VM keeps the image that its name was taken from, for as long as it is there.
func TestTagByForce(t *testing.T) {
	w := newWorld(t)
	w.image("debian")
	old := w.tag("debian", "base", false)
	v := w.vm("box", old, w.kernel("debian"))
	now := w.image("debian:trixie")
	i := w.tag("debian:trixie", "base", true)
	if !shared(t, i, now) || w.image("base").ID != i.ID {
		t.Errorf("%+v", i)
	}
	if _, err := os.Stat(old.Path); err != nil {
		t.Error(err)
	}
	if err := w.db.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if _, err := os.Stat(old.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what nobody uses stays: %v", err)
	}
}

func TestTagRegistered(t *testing.T) {
	w := newWorld(t)
	w.kernel("debian")
	path := w.ext4File(256, 1<<20)
	src, err := w.s.Register(t.Context(), Registration{Name: "mine", Rootfs: path, Kernel: "debian", User: "me"})
	if err != nil {
		t.Fatal(err)
	}
	i := w.tag("mine", "yours", false)
	if i.Managed || i.Path != path || i.KernelID != src.KernelID || i.Config.User != "me" || i.ID == src.ID {
		t.Errorf("%+v of %+v", i, src)
	}
	if err := errors.Join(w.s.RemoveImage(t.Context(), "mine"), w.s.RemoveImage(t.Context(), "yours")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// A tag that comes to nothing leaves nothing, and neither does a daemon that dies in one.
func TestUnpublishedTag(t *testing.T) {
	w := newWorld(t)
	src := w.image("debian")
	want := w.files()
	w.s.Store = refusing{w.db}
	if _, err := w.s.Tag(t.Context(), "debian", "base", false); !errors.Is(err, errRefused) {
		t.Errorf("the row is refused: %v", err)
	}
	if got := w.files(); got != want {
		t.Errorf("left %s, want %s", got, want)
	}
	_ = w.s.Close()
	for _, dir := range []string{w.layout.Image(model.NewID()), filepath.Join(w.layout.Images(), paths.StagingPrefix+model.NewID(), "final")} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Link(src.Path, filepath.Join(dir, paths.RootfsFile))); err != nil {
			t.Fatal(err)
		}
	}
	w.start(w.db)
	if got := w.files(); got != want {
		t.Errorf("left %s, want %s", got, want)
	}
	if data, err := os.ReadFile(w.image("debian").Path); err != nil || string(data) != "root of " {
		t.Errorf("%q, %v", data, err)
	}
}
