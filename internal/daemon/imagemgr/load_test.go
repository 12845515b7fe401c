package imagemgr

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

func (w *world) load(l Load) ([]string, error) { return w.s.Load(w.t.Context(), l, nobody{}) }

// loads loads what can be loaded.
func (w *world) loads(l Load, want ...string) {
	w.t.Helper()
	if got, err := w.load(l); err != nil || !reflect.DeepEqual(got, want) {
		w.t.Fatalf("loaded %q, %v; want %q", got, err, want)
	}
}

// archived is a tar file of a layout.
func archived(t testing.TB, images map[string]ocitest.Made) string {
	t.Helper()
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "layout.tar")
	ocitest.WriteLayout(t, dir, images)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	w := newWorld(t)
	i := w.registered("mine", "there")
	dir := t.TempDir()
	for _, to := range []string{"oci-archive:" + dir + "/oci.tar", "docker-archive:" + dir + "/docker.tar"} {
		if _, err := w.save("mine", to, false); err != nil {
			t.Fatal(err)
		}
	}
	// Its name is taken, by what is not from there.
	if _, err := w.load(Load{File: dir + "/oci.tar"}); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("its name is taken: %v", err)
	}
	if err := w.s.RemoveImage(t.Context(), "mine"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"oci.tar", "docker.tar"} {
		w.loads(Load{File: filepath.Join(dir, file), Force: file == "docker.tar"}, "mine")
		back := w.image("mine")
		w.says(back, "there")
		if !reflect.DeepEqual(back.Config, i.Config) || !back.Managed {
			t.Errorf("%+v", back)
		}
		w.loads(Load{File: filepath.Join(dir, file)}, "mine")
		if again := w.image("mine"); again.ID != back.ID {
			t.Error("it was made again")
		}
	}
	if _, err := w.load(Load{File: dir + "/oci.tar"}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("another archive's name: %v", err)
	}
	w.loads(Load{File: dir + "/oci.tar", As: "other"}, "other")
	w.says(w.image("other"), "there")
}

// What others write: several images, compressed, and such as have tags only.
func TestLoadOthers(t *testing.T) {
	a, b := small(t, "a"), small(t, "b")
	w := newWorld(t)
	both := archived(t, map[string]ocitest.Made{"docker.io/library/debian:12": a, "localhost:5000/me/b:2": b})
	w.loads(Load{File: both}, "docker.io/library/debian:12", "localhost:5000/me/b:2")
	w.sound(w.image("docker.io/library/debian:12"), a, "a")
	w.sound(w.image("localhost:5000/me/b:2"), b, "b")
	if _, err := w.load(Load{File: both, As: "x"}); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), "oci-archive:"+both+":docker.io/library/debian:12") {
		t.Errorf("one name for two: %v (%s)", err, errdefs.HintOf(err))
	}
	tagged := archived(t, map[string]ocitest.Made{"v1": a})
	if _, err := w.load(Load{File: tagged}); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), "--name NAME -i "+tagged) {
		t.Errorf("a tag only: %v (%s)", err, errdefs.HintOf(err))
	}
	tool(t, "gzip", tagged)
	w.loads(Load{File: tagged + ".gz", As: "v"}, "v")
	w.sound(w.image("v"), a, "a")

	ocitest.Need(t, "skopeo")
	docker := filepath.Join(t.TempDir(), "docker.tar")
	ocitest.Run(t, "skopeo", "--insecure-policy", "copy", "oci-archive:"+both+":localhost:5000/me/b:2", "docker-archive:"+docker+":me/b:3")
	w.loads(Load{File: docker}, "me/b:3")
	w.says(w.image("me/b:3"), "b")
}

func TestLoadRefuses(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir+"/text", "no archive")
	w.write(dir+"/a:b", "no archive")
	ocitest.Run(t, "tar", "-C", dir, "-cf", dir+"/root.tar", "text")
	layout := archived(t, map[string]ocitest.Made{"a:1": small(t, "a")})
	colon := filepath.Join(dir, "c:d")
	if err := os.Link(layout, colon); err != nil {
		t.Fatal(err)
	}
	bad := archived(t, map[string]ocitest.Made{"a:1": {Manifest: []byte("{}")}})
	for what, c := range map[string]struct {
		l     Load
		class errdefs.Class
	}{
		"relative":     {Load{File: "x.tar"}, errdefs.ClassInvalidArgument},
		"missing":      {Load{File: dir + "/missing"}, errdefs.ClassNotFound},
		"a directory":  {Load{File: dir}, errdefs.ClassInvalidArgument},
		"no archive":   {Load{File: dir + "/text"}, errdefs.ClassInvalidArgument},
		"a root":       {Load{File: dir + "/root.tar"}, errdefs.ClassInvalidArgument},
		"a colon":      {Load{File: colon, As: "x"}, errdefs.ClassInvalidArgument},
		"a bad name":   {Load{File: layout, As: "../x"}, errdefs.ClassInvalidArgument},
		"a taken name": {Load{File: layout, As: "debian:x"}, errdefs.ClassInvalidArgument},
		"a platform":   {Load{File: layout, Platform: "x"}, errdefs.ClassInvalidArgument},
		"an image":     {Load{File: bad}, errdefs.ClassUnsupported},
	} {
		if got, err := w.load(c.l); errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %q, %v (%s; %s)", what, got, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
	}
	if got := w.files(); got != "" {
		t.Errorf("left %s", got)
	}
}
