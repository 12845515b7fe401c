package dmsnap_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/dmsnap"
	"banger/internal/errdefs"
)

const mib = 1 << 20

// host is the real device-mapper, where there is one.
func host(t *testing.T) *dmsnap.Host {
	t.Helper()
	h := dmsnap.New("/dev")
	if err := h.Check(); err != nil {
		t.Skipf("needs root, device-mapper and loop devices: %v", err)
	}
	return h
}

// volume is a volume of size bytes of a new image of 8 MiB of noise.
func volume(t *testing.T, h *dmsnap.Host, size int64) (v dmsnap.Volume, image []byte) {
	t.Helper()
	dir := t.TempDir()
	image = make([]byte, 8*mib)
	_, _ = rand.Read(image)
	v = dmsnap.Volume{
		Name: "banger-test-" + rand.Text()[:12], Owner: dir, Size: size,
		Image: filepath.Join(dir, "image"), Layers: []string{filepath.Join(dir, "cow")},
	}
	must(t, os.WriteFile(v.Image, image, 0o600))
	layer(t, v.Layers[0], size)
	t.Cleanup(func() {
		must(t, h.Down(context.Background(), v))
		nothingLeft(t, v)
	})
	return v, image
}

// layer makes the file of a layer.
func layer(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	must(t, errors.Join(dmsnap.MakeLayer(f, size), f.Close()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nothingLeft looks for what is left of a volume in the kernel. A loop device goes when
// the last who has it open closes it, and udev may be looking at it just now.
func nothingLeft(t *testing.T, v dmsnap.Volume) {
	t.Helper()
	if left := leftOf("/sys/block/dm-*/dm/name", v.Name); len(left) > 0 {
		t.Errorf("left are devices %q", left)
	}
	over := time.After(10 * time.Second)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		left := leftOf("/sys/block/loop*/loop/backing_file", filepath.Dir(v.Image)+"/")
		if len(left) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-over:
			t.Fatalf("left are loop devices of %q", left)
		}
	}
}

func leftOf(pattern, prefix string) (left []string) {
	files, _ := filepath.Glob(pattern)
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.HasPrefix(string(b), prefix) {
			left = append(left, strings.TrimSpace(string(b)))
		}
	}
	return left
}

// up activates a volume and opens it.
func up(t *testing.T, h *dmsnap.Host, v dmsnap.Volume) *os.File {
	t.Helper()
	dev, err := h.Up(t.Context(), v)
	must(t, err)
	f, err := os.OpenFile(fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)), os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func down(t *testing.T, h *dmsnap.Host, v dmsnap.Volume) {
	t.Helper()
	must(t, h.Down(t.Context(), v))
	nothingLeft(t, v)
}

func content(t *testing.T, f *os.File, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, f *os.File, at int64, text string) {
	t.Helper()
	if _, err := f.WriteAt([]byte(text), at); err != nil {
		t.Fatal(err)
	}
	must(t, f.Sync())
}

// A volume begins as its image, keeps what is written while it comes and goes, and
// leaves the image alone. All of it can be written.
func TestVolume(t *testing.T) {
	h := host(t)
	const size = 64 * mib
	v, image := volume(t, h, size)
	f := up(t, h, v)
	want := append(bytes.Clone(image), make([]byte, size-8*mib)...)
	if !bytes.Equal(content(t, f, size), want) {
		t.Fatal("a new volume differs from its image")
	}
	_, _ = rand.Read(want)
	write(t, f, 0, string(want)) // a layer does not overflow
	must(t, f.Close())
	down(t, h, v)
	down(t, h, v)
	f = up(t, h, v)
	if !bytes.Equal(content(t, f, size), want) {
		t.Error("what was written is lost")
	}
	must(t, f.Close())
	if now, err := os.ReadFile(v.Image); err != nil || !bytes.Equal(now, image) {
		t.Errorf("the image changed (%v)", err)
	}
	// A volume that is left over is replaced: a crash may have left it.
	f = up(t, h, v)
	if !bytes.Equal(content(t, f, size), want) {
		t.Error("what was written is lost")
	}
	must(t, f.Close())
}

// A volume in use goes on through freezes, and each layer keeps what was written
// until then. What fails meanwhile leaves it as it was.
func TestFreeze(t *testing.T) {
	h := host(t)
	const size = 16 * mib
	v, image := volume(t, h, size)
	f := up(t, h, v)
	next := func() string { return v.Layers[0] + fmt.Sprint(len(v.Layers)) }
	var want [][]byte
	for i := range 3 {
		write(t, f, int64(i)*mib, fmt.Sprintf("written before freeze %d", i))
		if _, err := f.WriteAt([]byte("in the cache"), 10*mib); err != nil { // not flushed by us
			t.Fatal(err)
		}
		want = append(want, content(t, f, size))
		layer(t, next(), size)
		boom := errors.New("boom")
		if err := h.Freeze(t.Context(), v, next(), func() error { return boom }); !errors.Is(err, boom) {
			t.Fatalf("a failed commit: %v", err)
		}
		if err := h.Freeze(t.Context(), v, v.Image+"x", func() error { return nil }); err == nil {
			t.Fatal("no layer")
		}
		must(t, h.Freeze(t.Context(), v, next(), func() error { return nil }))
		v.Layers = append(v.Layers, next())
		if !bytes.Equal(content(t, f, size), want[i]) {
			t.Error("a freeze changed the content")
		}
	}
	write(t, f, 0, "written after all of them")
	last := content(t, f, size)
	must(t, f.Close())
	down(t, h, v)
	for i := range v.Layers {
		// What a freeze ended is seen through a new, empty layer.
		old := v
		if i == len(v.Layers)-1 {
			want = append(want, last)
		} else {
			layer(t, next(), size)
			old.Layers = append(slices.Clone(v.Layers[:i+1]), next())
		}
		f := up(t, h, old)
		if !bytes.Equal(content(t, f, size), want[i]) {
			t.Errorf("layer %d is not what it was", i)
		}
		must(t, f.Close())
		down(t, h, old)
	}
	if now, err := os.ReadFile(v.Image); err != nil || !bytes.Equal(now, image) {
		t.Errorf("the image changed (%v)", err)
	}
	if err := h.Freeze(t.Context(), v, next(), func() error { return nil }); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("freeze of a volume that is down: %v", err)
	}
}

// Layers in which nothing was ever written are layers like others, below the newest too.
func TestEmptyLayers(t *testing.T) {
	h := host(t)
	v, image := volume(t, h, 8*mib)
	for _, name := range []string{".1", ".2"} {
		layer(t, v.Layers[0]+name, v.Size)
		v.Layers = append(v.Layers, v.Layers[0]+name)
	}
	for range 2 {
		f := up(t, h, v)
		if !bytes.Equal(content(t, f, v.Size), image) {
			t.Error("the volume differs from its image")
		}
		must(t, f.Close())
		down(t, h, v)
	}
}

// One that cannot be made whole leaves nothing.
func TestHalfMade(t *testing.T) {
	h := host(t)
	v, _ := volume(t, h, 16*mib)
	for _, spoil := range []func(*dmsnap.Volume){
		func(v *dmsnap.Volume) { v.Image += "x" },
		func(v *dmsnap.Volume) { v.Layers = []string{v.Layers[0] + "x"} },
		func(v *dmsnap.Volume) { v.Layers = []string{v.Layers[0], v.Image + "x"} },
		func(v *dmsnap.Volume) { v.Layers = nil },
		func(v *dmsnap.Volume) { v.Size-- },
		func(v *dmsnap.Volume) { v.Layers = []string{v.Image} }, // noise is no layer
	} {
		bad := v
		spoil(&bad)
		if _, err := h.Up(t.Context(), bad); err == nil {
			t.Errorf("%+v was made", bad)
		}
		nothingLeft(t, v)
	}
}

// A device of that name that is not ours is left alone.
func TestForeignDevice(t *testing.T) {
	h := host(t)
	v, image := volume(t, h, 16*mib)
	other := v
	other.Owner += "x"
	f := up(t, h, other)
	defer func() { _ = f.Close(); must(t, h.Down(context.Background(), other)) }()
	for _, do := range []func() error{
		func() error { _, err := h.Up(t.Context(), v); return err },
		func() error { return h.Down(t.Context(), v) },
	} {
		if err := do(); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "dmsetup info "+v.Name) {
			t.Errorf("got %v (hint %q)", err, errdefs.HintOf(err))
		}
	}
	if !bytes.Equal(content(t, f, 8*mib), image) {
		t.Error("the other's volume is gone")
	}
}

// Down waits for whoever has the device open, and no longer than it may.
func TestInUse(t *testing.T) {
	h := host(t)
	v, _ := volume(t, h, 16*mib)
	f := up(t, h, v)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.Down(ctx, v); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errdefs.ErrBusy) || !strings.Contains(errdefs.HintOf(err), "fuser") {
		t.Errorf("down of a volume in use: %v", err)
	}
	gone := make(chan error, 1)
	go func() { gone <- h.Down(t.Context(), v) }()
	select {
	case err := <-gone:
		t.Fatalf("down of a volume in use: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	must(t, f.Close())
	must(t, <-gone)
	nothingLeft(t, v)
}

// Without a loop device a volume is not made, nothing is left, and it is said why.
func TestNoLoopDevices(t *testing.T) {
	v, _ := volume(t, host(t), 16*mib)
	dev := t.TempDir()
	h := dmsnap.New(dev)
	must(t, os.Symlink("/dev/mapper", filepath.Join(dev, "mapper")))
	if err := h.Check(); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "modprobe loop") {
		t.Errorf("no loop devices at all: %v (hint %q)", err, errdefs.HintOf(err))
	}
	must(t, os.Symlink("/dev/loop-control", filepath.Join(dev, "loop-control")))
	must(t, h.Check())
	if _, err := h.Up(t.Context(), v); !errors.Is(err, errdefs.ErrExhausted) || !strings.Contains(errdefs.HintOf(err), "losetup -a") {
		t.Errorf("none left: %v (hint %q)", err, errdefs.HintOf(err))
	}
	nothingLeft(t, v)
}

// A host without the parts says which, and how to get them.
func TestBadHosts(t *testing.T) {
	empty := t.TempDir()
	fake := t.TempDir()
	must(t, os.Mkdir(filepath.Join(fake, "mapper"), 0o700))
	must(t, os.WriteFile(filepath.Join(fake, "mapper", "control"), nil, 0o600))
	closed := t.TempDir()
	must(t, os.Mkdir(filepath.Join(closed, "mapper"), 0o700))
	must(t, os.Symlink("control", filepath.Join(closed, "mapper", "control"))) // cannot be opened
	for _, c := range []struct {
		dev, text, hint string
	}{
		{empty, "no device-mapper", "modprobe dm_mod"},
		{fake, "is not device-mapper", ""},
		{closed, "no device-mapper", "modprobe dm_mod"},
	} {
		h := dmsnap.New(c.dev)
		err := h.Check()
		if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), c.text) || !strings.Contains(errdefs.HintOf(err), c.hint) {
			t.Errorf("check: %v (hint %q)", err, errdefs.HintOf(err))
		}
		v := dmsnap.Volume{Name: "banger-x", Layers: []string{"cow"}, Size: mib}
		if _, err := h.Up(t.Context(), v); !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("up: %v", err)
		}
		if err := h.Down(t.Context(), v); err != nil {
			t.Errorf("down, where there can be nothing: %v", err)
		}
	}
}
