package imagemgr

import (
	"context"
	"errors"
	"testing"

	"banger/internal/model"
	"banger/internal/store"
)

// frozenImages is a store whose images do not change any more.
type frozenImages struct{ *store.Store }

func (frozenImages) PutImage(context.Context, model.Image) error { return errRefused }

// Nothing comes between a new kernel and the images that boot with it.
func TestKernelIsReplacedInOneStep(t *testing.T) {
	w := newWorld(t)
	w.kernel("debian")
	if _, err := w.s.Register(t.Context(), Registration{Name: "mine", Rootfs: w.ext4File(256, 1<<20), Kernel: "debian"}); err != nil {
		t.Fatal(err)
	}
	w.start(frozenImages{w.db})
	k, err := w.s.PullKernel(t.Context(), "debian", true, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.image("mine"); got.KernelID != k.ID {
		t.Errorf("the image prefers %s, the kernel is %s", got.KernelID, k.ID)
	}
}

// A kernel that nothing but an image asks for stays, whatever became of its name.
func TestUnnamedKernelOfAnImageStays(t *testing.T) {
	w := newWorld(t)
	k := w.kernel("debian")
	v := w.vm("box", w.image("debian"), k)
	if _, err := w.s.PullKernel(t.Context(), "debian", true, nobody{}); err != nil {
		t.Fatal(err)
	}
	i := w.image("debian")
	i.KernelID = k.ID
	if err := errors.Join(w.db.PutImage(t.Context(), i), w.db.DeleteVM(t.Context(), v.ID)); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if _, err := w.db.KernelByID(t.Context(), k.ID); err != nil {
		t.Error(err)
	}
}
