package imagemgr

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"banger/internal/errdefs"
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

// watching is a store that runs something when it is asked which images want a kernel.
type watching struct {
	*store.Store
	asked func()
}

func (w watching) KernelImages(ctx context.Context, id string) ([]string, error) {
	names, err := w.Store.KernelImages(ctx, id)
	w.asked()
	return names, err
}

// An image that is registered to boot with a kernel while that is removed either keeps
// the kernel or is refused: it is never left with one that is gone.
func TestRemoveKernelWhileAnImageComes(t *testing.T) {
	w := newWorld(t)
	w.kernel("debian")
	path := w.ext4File(256, 1<<20)
	registered := make(chan error, 1)
	var once sync.Once
	w.start(watching{w.db, func() {
		once.Do(func() {
			began := make(chan struct{})
			go func() {
				close(began)
				_, err := w.s.Register(context.Background(), Registration{Name: "mine", Rootfs: path, Kernel: "debian"})
				registered <- err
			}()
			<-began
			select { // it has to wait for us, unless nothing keeps it
			case err := <-registered:
				registered <- err
			case <-time.After(300 * time.Millisecond):
			}
		})
	}})
	removed := w.s.RemoveKernel(t.Context(), "debian")
	err := <-registered
	if removed != nil || errdefs.ClassOf(err) != errdefs.ClassNotFound {
		t.Errorf("removal: %v; registration: %v", removed, err)
	}
	if i, err := w.db.ImageByName(t.Context(), "mine"); err == nil {
		t.Errorf("image %q boots with kernel %s, which is gone", i.Name, i.KernelID)
	}
}
