package rootdisk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/daemon/rootdisk"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// flat returns what a disk is as a flat file, and how much that takes.
func (w *world) flat(ctx context.Context, d rootdisk.Disk) ([]byte, error) {
	w.Helper()
	f, err := os.CreateTemp(w.dir, "flat-")
	w.must(err)
	defer f.Close()
	if err := w.m.Flat(ctx, d, f); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(f.Name())
	w.must(err)
	return b, nil
}

// A flat copy has what the guest sees; image and disk stay what they are.
func TestFlat(t *testing.T) {
	each(t, func(w *world) {
		d := w.made(16 * mib)
		w.use(d, func(u *used) {
			u.write(0, 4096, 0) // over what the image has
			u.write(2*mib+512, 100_000, 'x')
			u.write(16*mib-4096, 4096, 'y')
			if u.view.Format == hypervisor.FormatQcow2 {
				qemuZero(u.T, u.view.Path, 3*mib, 65536) // a cluster that says it is zero
			}
		})
		want := append(bytes.Clone(w.noise), make([]byte, 8*mib)...)
		want = filled(filled(filled(want, 0, 4096, 0), 2*mib+512, 100_000, 'x'), 16*mib-4096, 4096, 'y')
		if w.m.Format() == hypervisor.FormatQcow2 {
			want = filled(want, 3*mib, 65536, 0)
		}
		for range 2 {
			got, err := w.flat(w.Context(), d)
			w.must(err)
			w.same("the flat copy", got, want)
		}
		w.use(d, func(u *used) { w.same("the disk", u.content(), want) })
		b, err := os.ReadFile(w.image)
		w.must(err)
		w.same("the image", b, w.noise)
		ctx, cancel := context.WithCancel(w.Context())
		cancel()
		if _, err := w.flat(ctx, d); !errors.Is(err, context.Canceled) && !w.place.shares() {
			w.Errorf("cancelled: %v", err)
		}
		w.must(w.m.Remove(w.Context(), d))
		if _, err := w.flat(w.Context(), d); err == nil {
			w.Error("a disk that is gone was copied")
		}
	})
}

// A VMM that was taken over writes its overlay by itself.
func TestFlatHostile(t *testing.T) {
	w := &world{T: t, m: rootdisk.QCOW2(), dir: t.TempDir()}
	w.image = filepath.Join(w.dir, "image")
	w.noise = bytes.Repeat([]byte("n"), mib)
	w.must(os.WriteFile(w.image, w.noise, 0o600))
	secret := filepath.Join(w.dir, "secret")
	w.must(os.WriteFile(secret, bytes.Repeat([]byte("s"), mib), 0o600))
	be := binary.BigEndian
	const l1, l2 = 3 << 16, 4 << 16
	for name, c := range map[string]struct {
		change  func(b []byte)
		refused bool
	}{
		"another image":          {func(b []byte) { at := be.Uint64(b[8:]); be.PutUint32(b[16:], uint32(copy(b[at:], secret))) }, false},
		"no overlay":             {func(b []byte) { b[0] = 'x' }, true},
		"data elsewhere":         {func(b []byte) { be.PutUint64(b[72:], 4) }, true},
		"any size":               {func(b []byte) { be.PutUint64(b[24:], 1<<62) }, true},
		"a table of no length":   {func(b []byte) { be.PutUint32(b[36:], 0) }, true},
		"a table beyond the end": {func(b []byte) { be.PutUint64(b[40:], 1<<40) }, true},
		"entries beyond the end": {func(b []byte) { be.PutUint64(b[l1:], 1<<40) }, true},
		"entries anywhere":       {func(b []byte) { be.PutUint64(b[l1:], 1<<9) }, true},
		"data beyond the end":    {func(b []byte) { be.PutUint64(b[l1:], l2); be.PutUint64(b[l2:], 1<<50) }, true},
		"compressed data":        {func(b []byte) { be.PutUint64(b[l1:], l2); be.PutUint64(b[l2:], 1<<62|l1) }, true},
		"a table as data":        {func(b []byte) { be.PutUint64(b[l1:], l2) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.T = t
			d := w.made(mib)
			path := w.m.View(d).Path
			b, err := os.ReadFile(path)
			w.must(err)
			b = append(b, make([]byte, l2+1<<16-len(b))...)
			c.change(b)
			w.must(os.WriteFile(path, b, 0o600))
			got, err := w.flat(w.Context(), d)
			if c.refused != errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Fatalf("%v", err)
			}
			if !c.refused {
				w.same("the flat copy", got, w.noise)
			}
		})
	}
}
