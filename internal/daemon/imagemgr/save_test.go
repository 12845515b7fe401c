package imagemgr

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/sysexec"
)

// ext4Tree makes a file with an ext4 filesystem, in which hello is what /etc/hello says.
func ext4Tree(t testing.TB, hello string) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "tree/etc"), 0o755), os.WriteFile(filepath.Join(dir, "tree/etc/hello"), []byte(hello), 0o644)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "mine.ext4")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", filepath.Join(dir, "tree"), path, "16M")
	return path
}

// says checks what /etc/hello says in an image.
func (w *world) says(i model.Image, want string) {
	w.t.Helper()
	tool(w.t, "e2fsck", "-fn", i.Path)
	if got := tool(w.t, "debugfs", "-R", "cat /etc/hello", i.Path); !strings.HasSuffix(got, want) {
		w.t.Errorf("/etc/hello is %q, want %q", got, want)
	}
}

func (w *world) save(name, to string, force bool) (string, error) {
	return w.s.Save(w.t.Context(), SaveImage{Name: name, To: to, Force: force}, nobody{})
}

// registered registers a file and gives the image a config, as promoted ones have it.
func (w *world) registered(name, hello string) model.Image {
	w.t.Helper()
	i, err := w.s.Register(w.t.Context(), Registration{Name: name, Rootfs: ext4Tree(w.t, hello), User: "me", Workdir: "/srv"})
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// Images of all origins go out and come in again as they are.
func TestSave(t *testing.T) {
	for origin, get := range map[string]func(w *world) model.Image{
		"pulled": func(w *world) model.Image {
			dir := t.TempDir()
			ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": small(t, "there")})
			i, err := w.s.PullImage(t.Context(), Pull{From: "oci:" + dir + ":1", As: "out"}, nobody{})
			if err != nil {
				t.Fatal(err)
			}
			return i
		},
		"registered": func(w *world) model.Image { return w.registered("out", "there") },
		"debian": func(w *world) model.Image {
			w.s.makeImage = func(_ context.Context, _ recipe, dir string, _ model.Progress) (madeImage, error) {
				made := madeImage{path: filepath.Join(dir, "half"), config: model.ImageConfig{User: "dev", Env: []string{"LANG=C.UTF-8"}}}
				return made, os.Rename(ext4Tree(t, "there"), made.path)
			}
			return w.image("debian")
		},
	} {
		t.Run(origin, func(t *testing.T) {
			w := newWorld(t)
			i := get(w)
			dir := t.TempDir()
			name := map[bool]string{true: "", false: "out:latest"}[i.Name == "debian"]
			for _, c := range []struct{ to, back, named string }{
				{"oci:" + dir + "/layout:v1", "oci:" + dir + "/layout:v1", ""},
				{"oci-archive:" + dir + "/oci.tar", "oci-archive:" + dir + "/oci.tar", name},
				{"docker-archive:" + dir + "/docker.tar", "docker-archive:" + dir + "/docker.tar", name},
				{"docker-archive:" + dir + "/named.tar:me/other:2", "docker-archive:" + dir + "/named.tar", "me/other:2"},
			} {
				digest, err := w.save(i.Name, c.to, false)
				if err != nil || !strings.HasPrefix(digest, "sha256:") {
					t.Fatalf("%s: %q, %v", c.to, digest, err)
				}
				back := w.pull(c.back)
				w.says(back, "there")
				want := i.Config
				want.Workdir = cmp.Or(want.Workdir, "/") // an image of layers knows no home of its user
				if !reflect.DeepEqual(back.Config, want) {
					t.Errorf("%s: config %+v, was %+v", c.to, back.Config, want)
				}
				if c.named != "" {
					w.pull(c.back + ":" + c.named)
				}
				if _, err := w.save(i.Name, c.to, false); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
					t.Errorf("%s: again: %v", c.to, err)
				}
			}
			first, err := os.ReadFile(dir + "/oci.tar")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.save(i.Name, "oci-archive:"+dir+"/oci.tar", true); err != nil {
				t.Fatal(err)
			}
			if again, err := os.ReadFile(dir + "/oci.tar"); err != nil || string(again) != string(first) {
				t.Errorf("the same image is another archive, %v", err)
			}
			if all, err := os.ReadDir(dir); err != nil || len(all) != 4 {
				t.Errorf("there are %v, %v", all, err)
			}
		})
	}
}

// What is for another platform stays so.
func TestSavePlatform(t *testing.T) {
	ocitest.Need(t, "skopeo")
	foreign := oci.Platform{OS: "linux", Architecture: "s390x"}
	w := newWorld(t)
	m := ocitest.Make(t, ocitest.Image{Config: author, Layers: [][]byte{ocitest.Layer(t, ocitest.Files{"a": "b"})}}, func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.Architecture = foreign.Architecture
	})
	dir := t.TempDir()
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": m})
	if _, err := w.s.PullImage(t.Context(), Pull{From: "oci:" + dir + ":1", As: "out", Platform: foreign.String()}, nobody{}); err != nil {
		t.Fatal(err)
	}
	to := "oci-archive:" + filepath.Join(t.TempDir(), "out.tar")
	if _, err := w.save("out", to, false); err != nil {
		t.Fatal(err)
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(ocitest.Run(t, "skopeo", "inspect", "--config", to), &config); err != nil || config.Architecture != "s390x" || config.Config.User != "me:you" {
		t.Errorf("%+v, %v", config, err)
	}
}

func TestSaveRefuses(t *testing.T) {
	w := newWorld(t)
	i := w.registered("mine", "there")
	dir := t.TempDir()
	for what, c := range map[string]struct {
		name, to string
		class    errdefs.Class
	}{
		"relative":          {"mine", "oci:layout", errdefs.ClassInvalidArgument},
		"a registry":        {"mine", "localhost:5000/a", errdefs.ClassInvalidArgument},
		"a root file":       {"mine", "tar:" + dir + "/x.tar", errdefs.ClassInvalidArgument},
		"no place":          {"mine", "", errdefs.ClassInvalidArgument},
		"unknown":           {"nothing", "oci:" + dir + "/x", errdefs.ClassNotFound},
		"a directory":       {"mine", "oci:" + dir, errdefs.ClassAlreadyExists},
		"no such directory": {"mine", "oci:" + dir + "/no/x", errdefs.ClassNotFound},
		"below a file":      {"mine", "oci-archive:" + i.Path + "/x", errdefs.ClassInvalidArgument},
	} {
		if _, err := w.save(c.name, c.to, true); errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", what, err, errdefs.HintOf(err))
		}
	}
	// A file of the user's that needs repair is the user's to repair.
	tool(t, "debugfs", "-w", "-R", "feature needs_recovery -has_journal", i.Path)
	if _, err := w.save("mine", "oci:"+dir+"/x", false); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "e2fsck -f") {
		t.Errorf("in use: %v (%s)", err, errdefs.HintOf(err))
	}
	if err := os.WriteFile(i.Path, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.save("mine", "oci:"+dir+"/x", false); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), "e2fsck -fn") {
		t.Errorf("damaged: %v (%s)", err, errdefs.HintOf(err))
	}
	if mkfifo, err := sysexec.Look("mkfifo"); err == nil {
		if err := os.Remove(i.Path); err != nil {
			t.Fatal(err)
		}
		tool(t, mkfifo, i.Path)
		if _, err := w.save("mine", "oci:"+dir+"/x", false); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("a fifo: %v", err)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) > 0 {
		t.Errorf("left %v, %v", all, err)
	}
}
