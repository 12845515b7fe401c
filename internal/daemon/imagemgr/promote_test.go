package imagemgr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// disk makes all VMs have a disk of their own, a file that fill makes.
func (w *world) disk(fill func(ctx context.Context, f *os.File) error) {
	w.s.UseDisk = func(ctx context.Context, ref, action string, use func(context.Context, model.VM, model.Image, func(context.Context, *os.File) error) error) error {
		v, err := w.db.FindVM(ctx, ref)
		if err != nil {
			return err
		}
		i, err := w.db.ImageByID(ctx, v.ImageID)
		if err != nil {
			return err
		}
		return use(ctx, v, i, fill)
	}
}

// of writes what is in a file.
func of(path string) func(context.Context, *os.File) error {
	return func(_ context.Context, f *os.File) error {
		data, err := os.ReadFile(path)
		if err == nil {
			_, err = f.Write(data)
		}
		return err
	}
}

func (w *world) promote(o Promotion) (model.Image, error) {
	return w.s.Promote(w.t.Context(), o, nobody{})
}

func TestPromote(t *testing.T) {
	w := newWorld(t)
	k := w.kernel("debian")
	src, err := w.s.Register(t.Context(), Registration{Name: "mine", Rootfs: ext4Tree(t, "before"), Kernel: "debian", User: "me"})
	if err != nil {
		t.Fatal(err)
	}
	w.vm("box", src, k)
	w.disk(of(ext4Tree(t, "after")))
	i, err := w.promote(Promotion{VM: "box", Name: "golden:latest"})
	if err != nil || !i.Managed || i.Name != "golden" || i.KernelID != k.ID || !reflect.DeepEqual(i.Config, src.Config) || i.Source != "promoted from vm box" {
		t.Fatalf("%+v, %v", i, err)
	}
	w.says(w.image("golden"), "after")
	if _, err := w.promote(Promotion{VM: "box", Name: "golden"}); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("again: %v", err)
	}
	w.disk(of(ext4Tree(t, "later")))
	if _, err := w.promote(Promotion{VM: "box", Name: "golden", Force: true}); err != nil {
		t.Fatal(err)
	}
	w.says(w.image("golden"), "later")
	if _, err := os.Stat(i.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was replaced stays: %v", err)
	}
	copied, err := w.promote(Promotion{Image: "mine", Name: "own"})
	if err != nil || !copied.Managed || copied.KernelID != k.ID || copied.Config.User != "me" {
		t.Fatalf("%+v, %v", copied, err)
	}
	w.says(copied, "before")
	if err := errors.Join(os.Remove(w.image("golden").Path), os.Remove(copied.Path)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"golden": "banger image promote --force box golden;", "own": "banger image promote --force --image mine own;"} {
		if _, err := w.s.GetImage(t.Context(), name); !strings.Contains(errdefs.HintOf(err), want) {
			t.Errorf("%s is gone: %v (%s)", name, err, errdefs.HintOf(err))
		}
	}
}

func TestPromoteRefuses(t *testing.T) {
	w := newWorld(t)
	src := w.registered("mine", "there")
	w.vm("box", src, w.kernel("debian"))
	w.image("debian")
	before := w.files()
	good := ext4Tree(t, "there")
	dirty := ext4Tree(t, "there")
	tool(t, "debugfs", "-w", "-R", "feature needs_recovery -has_journal", dirty)
	text := filepath.Join(t.TempDir(), "text")
	w.write(text, "no filesystem")
	for what, c := range map[string]struct {
		o     Promotion
		disk  string
		class errdefs.Class
		hint  string
	}{
		"in use":          {Promotion{VM: "box", Name: "x"}, dirty, errdefs.ClassFailedPrecondition, "start the VM and stop it in order"},
		"no filesystem":   {Promotion{VM: "box", Name: "x"}, text, errdefs.ClassInvalidArgument, "of no use as an image"},
		"no vm":           {Promotion{VM: "nobody", Name: "x"}, good, errdefs.ClassNotFound, ""},
		"no image":        {Promotion{Image: "nobody", Name: "x"}, good, errdefs.ClassNotFound, "image list"},
		"nothing":         {Promotion{Name: "x"}, good, errdefs.ClassInvalidArgument, "name one"},
		"both":            {Promotion{VM: "box", Image: "mine", Name: "x"}, good, errdefs.ClassInvalidArgument, "name one"},
		"a managed image": {Promotion{Image: "debian", Name: "x"}, good, errdefs.ClassFailedPrecondition, "banger image tag debian x"},
		"no name":         {Promotion{VM: "box"}, good, errdefs.ClassInvalidArgument, "use a-z"},
		"a reserved name": {Promotion{VM: "box", Name: "debian"}, good, errdefs.ClassInvalidArgument, "another name"},
		"a taken name":    {Promotion{VM: "box", Name: "mine"}, good, errdefs.ClassAlreadyExists, "--force"},
	} {
		w.disk(of(c.disk))
		if got, err := w.promote(c.o); errdefs.ClassOf(err) != c.class || !strings.Contains(errdefs.HintOf(err), c.hint) {
			t.Errorf("%s: %+v, %v (%s; %s)", what, got, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
	}
	tool(t, "debugfs", "-w", "-R", "feature needs_recovery -has_journal", src.Path)
	if _, err := w.promote(Promotion{Image: "mine", Name: "x"}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "e2fsck -f") {
		t.Errorf("an image in use: %v (%s)", err, errdefs.HintOf(err))
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
}

// Wherever it ends, and whenever a daemon dies in it, there is the old image or the new
// one and nothing else.
func TestUnfinishedPromotion(t *testing.T) {
	disk := ext4Tree(t, "new")
	for what, c := range map[string]struct {
		fill  func(w *world, cancel context.CancelFunc) func(context.Context, *os.File) error
		store func(w *world) Store
	}{
		"the copy fails": {fill: func(*world, context.CancelFunc) func(context.Context, *os.File) error {
			return func(context.Context, *os.File) error { return errRefused }
		}},
		"it is cancelled": {fill: func(_ *world, cancel context.CancelFunc) func(context.Context, *os.File) error {
			return func(ctx context.Context, f *os.File) error { cancel(); return of(disk)(ctx, f) }
		}},
		"the row is refused": {store: func(w *world) Store { return refusing{w.db} }},
		"the name is taken meanwhile": {fill: func(w *world, _ context.CancelFunc) func(context.Context, *os.File) error {
			return func(ctx context.Context, f *os.File) error {
				w.tag("debian", "golden", false)
				return of(disk)(ctx, f)
			}
		}},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			i := w.image("debian")
			w.vm("box", i, w.kernel("debian"))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w.disk(of(disk))
			if c.fill != nil {
				w.disk(c.fill(w, cancel))
			}
			if c.store != nil {
				w.s.Store = c.store(w)
			}
			if _, err := w.s.Promote(ctx, Promotion{VM: "box", Name: "golden"}, nobody{}); err == nil {
				t.Fatal("it is done")
			}
			left := strings.Fields(w.files())
			taken, err := w.db.ImageByName(t.Context(), "golden")
			if strings.Contains(what, "taken") != (err == nil) || err == nil && !shared(t, taken, i) {
				t.Errorf("%+v, %v", taken, err)
			}
			for _, name := range left {
				if strings.Contains(name, paths.StagingPrefix) {
					t.Errorf("left %s", left)
				}
			}
		})
	}
	for what, crash := range map[string]func(w *world, dir string) error{
		"the copy is half": func(_ *world, dir string) error {
			return os.WriteFile(filepath.Join(dir, paths.RootfsFile), []byte("half"), 0o644)
		},
		"it is to be renamed": func(_ *world, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "final"), 0o755), os.WriteFile(filepath.Join(dir, "final", paths.RootfsFile), nil, 0o644))
		},
		"it is renamed and has no row": func(w *world, dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, paths.RootfsFile), []byte("new"), 0o644), os.Rename(dir, w.layout.Image(model.NewID())))
		},
	} {
		t.Run("crash: "+what, func(t *testing.T) {
			w := newWorld(t)
			w.vm("box", w.image("debian"), w.kernel("debian"))
			w.disk(of(ext4Tree(t, "old")))
			old, err := w.promote(Promotion{VM: "box", Name: "golden"})
			if err != nil {
				t.Fatal(err)
			}
			before := w.files()
			dir, _, err := w.s.stage(w.layout.Images())
			if err != nil {
				t.Fatal(err)
			}
			_ = w.s.Close()
			if err := crash(w, dir); err != nil {
				t.Fatal(err)
			}
			w.start(w.db)
			if got := w.files(); got != before {
				t.Errorf("left %s, before %s", got, before)
			}
			w.says(w.image("golden"), "old")
			w.disk(of(disk))
			if _, err := w.promote(Promotion{VM: "box", Name: "golden", Force: true}); err != nil {
				t.Fatal(err)
			}
			w.says(w.image("golden"), "new")
			if _, err := os.Stat(old.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("what was replaced stays: %v", err)
			}
		})
	}
}
