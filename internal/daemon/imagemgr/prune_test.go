package imagemgr

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// prunes prunes, and checks which names go; replaced images have none.
func (w *world) prunes(all bool, want ...string) int64 {
	w.t.Helper()
	rows := func() []model.Image {
		rows, err := w.db.ListImages(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		return rows
	}
	before, files := rows(), w.files()
	would, err := w.s.Prune(w.t.Context(), all, true)
	if err != nil {
		w.t.Fatal(err)
	}
	if after := rows(); !reflect.DeepEqual(after, before) || w.files() != files {
		w.t.Errorf("a dry run leaves %+v of %+v", after, before)
	}
	gone, err := w.s.Prune(w.t.Context(), all, false)
	if err != nil || !reflect.DeepEqual(gone, would) {
		w.t.Errorf("gone are %+v, %v; would %+v", gone, err, would)
	}
	var names []string
	for _, i := range gone.Images {
		names = append(names, i.Name)
		if i.Managed {
			if _, err := os.Stat(i.Path); !errors.Is(err, os.ErrNotExist) {
				w.t.Errorf("%s: %v", i.Path, err)
			}
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		w.t.Errorf("gone are %q, want %q", names, want)
	}
	if len(rows()) != len(before)-len(want) {
		w.t.Errorf("left are %+v", rows())
	}
	return gone.Bytes
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	size := func(i model.Image) int64 { return allocated(i.Path) }
	w.prunes(true)
	w.prunes(false)

	used := w.image("debian")
	v := w.vm("box", used, w.kernel("debian"))
	w.registered("mine", "there")
	idle := w.image("debian:trixie")
	w.tag("debian:trixie", "base", false)
	w.tag("debian", "spare", false)
	one, all := size(idle), size(used)
	w.prunes(false)
	// base and debian:trixie are one file, of spare the VM's image is the other name.
	if got := w.prunes(true, "base", "debian:trixie", "spare"); got != one || one == 0 {
		t.Errorf("freed are %d bytes, want %d", got, one)
	}
	if _, err := w.s.PullImage(t.Context(), Pull{From: "debian", Force: true}, nobody{}); err != nil {
		t.Fatal(err)
	}
	w.prunes(false)
	if err := w.db.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.prunes(false, ""); got != all {
		t.Errorf("freed are %d bytes, want %d", got, all)
	}
	w.prunes(true, "debian")
	if got := w.files(); got != "kernels/"+w.kernel("debian").ID {
		t.Errorf("left %s", got)
	}
	w.start(w.db)
	if _, err := w.s.GetImage(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
}

// racing has a VM made of an image when somebody has looked who uses it.
type racing struct {
	Store
	made func()
}

func (r racing) ImageUsers(ctx context.Context, id string) ([]string, error) {
	defer r.made()
	return r.Store.ImageUsers(ctx, id)
}

func TestPruneIsOvertaken(t *testing.T) {
	w := newWorld(t)
	i := w.image("debian")
	k := w.kernel("debian")
	made := false
	w.s.Store = racing{w.db, func() {
		if !made {
			made = true
			w.vm("box", i, k)
		}
	}}
	gone, err := w.s.Prune(t.Context(), true, false)
	if err != nil || len(gone.Images) > 0 || gone.Bytes > 0 || !made {
		t.Errorf("%+v, %v", gone, err)
	}
	if _, err := w.s.GetImage(t.Context(), "debian"); err != nil {
		t.Error(err)
	}
	if err := w.s.RemoveImage(t.Context(), "debian"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
}
