package rootdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Flat implements Method.
func (m raw) Flat(ctx context.Context, d Disk, f *os.File) error {
	src, err := os.Open(m.path(d))
	if err != nil {
		return wrap(err, "copy root disk")
	}
	defer src.Close()
	return wrap(copyFile(ctx, f, src), "copy root disk")
}

// Flat implements Method. What the overlay names as its image is not looked at: a VMM
// that was taken over can write what it likes there.
func (m qcow2) Flat(ctx context.Context, d Disk, f *os.File) error {
	image, err := os.Open(d.Image)
	if err != nil {
		return wrap(err, "open image")
	}
	defer image.Close()
	over, err := os.Open(m.path(d))
	if err != nil {
		return wrap(err, "copy root disk")
	}
	defer over.Close()
	return wrap(flattenOverlay(ctx, f, over, image), "copy root disk")
}

// What an overlay's tables say of a cluster.
const (
	offsetMask   = 1<<56 - 1<<9
	isCompressed = 1 << 62
	isZero       = 1
)

// readHeader reads an overlay's header. One that no VMM of ours would have written is
// refused.
func readHeader(over *os.File) (qcowHeader, error) {
	var h qcowHeader
	b := make([]byte, sector)
	if _, err := over.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	if err := binary.Read(bytes.NewReader(b), binary.BigEndian, &h); err != nil {
		return h, err
	}
	if h.Magic != qcowMagic || h.Version != qcowVersion || h.ClusterBits != clusterBits || h.Incompatible != 0 || h.Crypt != 0 ||
		h.Snapshots != 0 || h.Size > maxSize || h.Size%sector != 0 || int64(h.L1Entries) < l1For(int64(h.Size)) || h.L1Offset%clusterSize != 0 {
		return h, notOurs(over)
	}
	return h, nil
}

func notOurs(over *os.File) error {
	return errdefs.Precondition("%s is not an overlay of ours, or is damaged", over.Name()).
		WithHint("delete the VM and make it anew")
}

// flattenOverlay writes into f, which is empty, what an overlay on image reads as.
func flattenOverlay(ctx context.Context, f, over, image *os.File) error {
	h, err := readHeader(over)
	if err != nil {
		return err
	}
	st, err := over.Stat()
	if err != nil {
		return err
	}
	table := func(at uint64, entries int64) ([]byte, error) {
		if at%clusterSize != 0 || at == 0 || at >= uint64(st.Size()) {
			return nil, notOurs(over)
		}
		p := make([]byte, entries*8)
		if _, err := over.ReadAt(p, int64(at)); err != nil && !errors.Is(err, io.EOF) { // the rest is zero
			return nil, err
		}
		return p, nil
	}
	if err := copyFile(ctx, f, image); err != nil {
		return err
	}
	if err := f.Truncate(int64(h.Size)); err != nil {
		return err
	}
	top, err := table(h.L1Offset, l1For(int64(h.Size)))
	if err != nil {
		return err
	}
	buf := make([]byte, clusterSize)
	for i := 0; i < len(top); i += 8 {
		at := binary.BigEndian.Uint64(top[i:]) & offsetMask
		if at == 0 {
			continue
		}
		below, err := table(at, entriesPerL2)
		if err != nil {
			return err
		}
		for k := 0; k < len(below); k += 8 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			e := binary.BigEndian.Uint64(below[k:])
			to := (int64(i/8)*entriesPerL2 + int64(k/8)) * clusterSize
			if e&(offsetMask|isZero) == 0 && e&isCompressed == 0 || to >= int64(h.Size) {
				continue // the image's, or nobody's
			}
			p := buf[:min(clusterSize, int64(h.Size)-to)]
			clear(p)
			if e&isCompressed != 0 || e&offsetMask%clusterSize != 0 || e&offsetMask >= uint64(st.Size()) {
				return notOurs(over)
			}
			if e&isZero == 0 {
				if _, err := over.ReadAt(p, int64(e&offsetMask)); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
			}
			if err := writeOver(f, p, to); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flat implements Method. Device-mapper alone knows what is in its layers, so all of the
// device is read; what is the image's stays shared with it.
func (s *snap) Flat(ctx context.Context, d Disk, f *os.File) (err error) {
	image, err := os.Open(d.Image)
	if err != nil {
		return wrap(err, "open image")
	}
	defer image.Close()
	if err := s.Activate(ctx, d); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Deactivate(context.WithoutCancel(ctx), d)) }()
	device, err := os.Open(s.node(d))
	if err != nil {
		return wrap(err, "open root disk")
	}
	defer device.Close() // before the device goes
	return wrap(copyDifferent(ctx, f, device, image, round(d.Size)), "copy root disk")
}

// copyDifferent writes into f, which is empty, size bytes of src, and what image has in
// common with it by sharing.
func copyDifferent(ctx context.Context, f, src, image *os.File, size int64) error {
	if err := copyFile(ctx, f, image); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	want, have := make([]byte, 16*clusterSize), make([]byte, 16*clusterSize)
	for at := int64(0); at < size; at += int64(len(want)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		want, have = want[:min(int64(cap(want)), size-at)], have[:min(int64(cap(have)), size-at)]
		if _, err := src.ReadAt(want, at); err != nil {
			return err
		}
		if _, err := f.ReadAt(have, at); err != nil {
			return err
		}
		for i := 0; i < len(want); i += clusterSize {
			end := min(i+clusterSize, len(want))
			if !bytes.Equal(want[i:end], have[i:end]) {
				if err := writeOver(f, want[i:end], at+int64(i)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

var zeroCluster [clusterSize]byte

// writeOver writes at most a cluster. Zeros become a hole where the file system can.
func writeOver(f *os.File, p []byte, at int64) error {
	if bytes.Equal(p, zeroCluster[:len(p)]) {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(len(p)))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("make a hole: %w", err)
		}
	}
	_, err := f.WriteAt(p, at)
	return err
}
