// Package dmsnap makes copy-on-write views of images with device-mapper.
//
// A Volume is a stack of devices, each under a name that follows from the volume's:
//
//	NAME        linear     what is opened; its table alone is changed while in use
//	NAME-0 …    snapshot   one for each layer, the newest last
//	NAME-base   linear and zero: the image, and nothing up to the volume's size
//
// The image and each layer is a file behind a loop device. The newest layer takes
// what is written, the others never change. A layer is as large as it can ever have
// to be, and sparse: a snapshot cannot overflow, only the host's disk can, for which
// there is Guard.
//
// Everything is done by ioctl; no tool is started, and udev need not run. Loop
// devices go by themselves with the last table that holds them. So the names are all
// that is needed to find everything of a volume again.
package dmsnap

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

const (
	sector = 512
	// chunk is what is copied as one, in sectors. It is a page, which is a guest's
	// block as well: every write covers whole chunks, so nothing is ever read from the
	// image in order to be copied.
	chunk = 8
	// maxLayers bounds how many devices a read may have to pass.
	maxLayers = 32
)

// Host is a host's device-mapper and loop devices.
type Host struct {
	dev string // directory of the device nodes
}

// New returns the device-mapper whose nodes are in dev, /dev but for tests. It
// touches nothing.
func New(dev string) *Host { return &Host{dev: dev} }

// Volume is one copy-on-write view.
type Volume struct {
	Name   string   // of the device
	Owner  string   // tells ours from those of others that have the same name
	Image  string   // file, never written
	Layers []string // files, the oldest first; the last one is written
	Size   int64    // bytes, a multiple of 512
}

func (v Volume) base() string       { return v.Name + "-base" }
func (v Volume) layer(n int) string { return v.Name + "-" + strconv.Itoa(n) }

// uuid marks a device as ours.
func (v Volume) uuid(name string) string {
	sum := sha256.Sum256([]byte(v.Owner))
	return "banger-" + hex.EncodeToString(sum[:8]) + "-" + name
}

// header is what the file of a layer begins with, all of it little endian: "SnAp", that
// it is valid, the version, and the size of a chunk. A file of zeros would do for a layer
// that is written first: the kernel makes its header then. One that is never written, as
// the disk was frozen before, would be refused.
var header = [4]uint32{0x70416e53, 1, 1, chunk}

// MakeLayer makes of an empty file that of a layer in which nothing was written, for a
// volume of size bytes. It does not sync it.
func MakeLayer(f *os.File, size int64) error {
	b, err := binary.Append(nil, binary.LittleEndian, header)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	return errors.Join(err, f.Truncate(LayerSize(size)))
}

// LayerSize is how large the file of a layer must be for a volume of size bytes: for
// each chunk 16 bytes in an area, a chunk for the header, and one area in reserve.
func LayerSize(size int64) int64 {
	const bytes = chunk * sector
	chunks := (size + bytes - 1) / bytes
	areas := (chunks+bytes/16-1)/(bytes/16) + 1
	return (1 + areas + chunks) * bytes
}

// Check says what keeps volumes from being made here, with class unsupported or
// permission and a hint.
func (h *Host) Check() error {
	c, err := openControl(h.dev)
	if err != nil {
		return err
	}
	defer c.close()
	for _, kind := range []string{"linear", "zero", "snapshot"} {
		// This loads the module. Kernels before 5.5 do not know the call.
		err := c.call(unix.DM_GET_TARGET_VERSION, "look for target", kind, &request{name: kind})
		if errors.Is(err, unix.EINVAL) {
			return errdefs.Unsupported("device-mapper has no target %s", kind).WithHint("load it: modprobe dm_%s", kind)
		}
		if err != nil && !errors.Is(err, unix.ENOTTY) {
			return errdefs.Wrap(err, "ask device-mapper for its targets")
		}
	}
	f, err := os.OpenFile(h.dev+"/loop-control", os.O_RDWR, 0)
	if err != nil {
		return unavailable(err, "loop devices", "loop")
	}
	return f.Close()
}

// Up makes the volume's devices and returns the number of the topmost. What an
// earlier Up has left is removed first; what is not ours is left alone, and an error.
// A failed Up leaves nothing.
func (h *Host) Up(ctx context.Context, v Volume) (dev uint64, err error) {
	if len(v.Layers) == 0 || len(v.Layers) > maxLayers || v.Size <= 0 || v.Size%sector != 0 {
		return 0, errdefs.Internal("volume %s has %d layers and %d bytes", v.Name, len(v.Layers), v.Size)
	}
	c, err := openControl(h.dev)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := h.down(ctx, c, v); err != nil {
		return 0, err
	}
	dev, err = h.up(c, v)
	if err != nil {
		return 0, errors.Join(err, h.down(context.WithoutCancel(ctx), c, v))
	}
	return dev, nil
}

func (h *Host) up(c *control, v Volume) (uint64, error) {
	below, err := h.makeBase(c, v)
	if err != nil {
		return 0, err
	}
	for i, file := range v.Layers {
		if below, err = h.makeLayer(c, v, i, number(below), file, i < len(v.Layers)-1); err != nil {
			return 0, err
		}
	}
	return c.make(v.Name, v.uuid(v.Name), false, linear(v.Size, below))
}

func linear(size int64, dev uint64) target {
	return target{length: size / sector, kind: "linear", params: number(dev) + " 0"}
}

func (h *Host) makeBase(c *control, v Volume) (uint64, error) {
	loop, err := attach(h.dev, v.Image, true)
	if err != nil {
		return 0, errdefs.Wrap(err, "open the image")
	}
	defer loop.Close()
	dev, err := deviceOf(loop)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(v.Image)
	if err != nil {
		return 0, err
	}
	image := min(st.Size()/sector*sector, v.Size)
	table := []target{linear(image, dev)}
	if rest := v.Size - image; rest > 0 {
		table = append(table, target{start: image / sector, length: rest / sector, kind: "zero"})
	}
	return c.make(v.base(), v.uuid(v.base()), true, table...)
}

// makeLayer puts a layer on the device below. What it takes lies in file.
func (h *Host) makeLayer(c *control, v Volume, n int, below, file string, readOnly bool) (uint64, error) {
	loop, err := attach(h.dev, file, readOnly)
	if err != nil {
		return 0, errdefs.Wrap(err, "open a layer of the disk")
	}
	defer loop.Close()
	cow, err := deviceOf(loop)
	if err != nil {
		return 0, err
	}
	name := v.layer(n)
	dev, err := c.make(name, v.uuid(name), readOnly, target{
		length: v.Size / sector, kind: "snapshot",
		// Persistent, and not given up for good when there is no room: see Guard.
		params: fmt.Sprintf("%s %s PO %d", below, number(cow), chunk),
	})
	if err != nil {
		return 0, err
	}
	return dev, h.sound(c, name)
}

// sound reports a layer that the kernel has given up.
func (h *Host) sound(c *control, name string) error {
	lines, err := c.lines(name, false)
	if err != nil {
		return err
	}
	if len(lines) > 0 && !strings.Contains(lines[0], "/") {
		return errdefs.Precondition("the disk is lost: its layer %s is %q, as something could not be written or read", name, strings.ToLower(lines[0])).
			WithHint("see the host's kernel log for I/O errors; delete the VM and make it anew")
	}
	return nil
}

// Down removes the volume's devices, and whatever Up left half made, and returns when
// they are gone. Who still has one open is waited for until ctx ends; the kernel then
// removes it by itself.
func (h *Host) Down(ctx context.Context, v Volume) error {
	c, err := openControl(h.dev)
	if errdefs.ClassOf(err) == errdefs.ClassUnsupported {
		return nil // without device-mapper there are no devices
	}
	if err != nil {
		return err
	}
	defer c.close()
	return h.down(ctx, c, v)
}

func (h *Host) down(ctx context.Context, c *control, v Volume) error {
	ours, err := h.ours(c, v)
	if err != nil {
		return err
	}
	for _, d := range ours {
		// I/O that is held back would keep whoever waits for it from closing the device.
		if d.suspended {
			if err := c.fail(d.name, v.Size); err != nil {
				return err
			}
		}
		if err := c.remove(d.name); err != nil {
			return err
		}
	}
	err = c.await(ctx, func() (bool, error) {
		left, err := h.ours(c, v)
		return len(left) == 0, err
	})
	if ctx.Err() != nil {
		return errdefs.New(errdefs.ClassBusy, "device %s is still open somewhere: %w", v.Name, context.Cause(ctx)).
			WithHint("see where: fuser -v /dev/mapper/%s, findmnt; it goes when it is closed", v.Name)
	}
	return err
}

// fail lets a suspended device go on with nothing but errors.
func (c *control) fail(name string, size int64) error {
	if err := c.load(name, false, target{length: size / sector, kind: "error"}); err != nil {
		return err
	}
	return c.resume(name)
}

// ours lists the volume's devices that are there, from the top down.
func (h *Host) ours(c *control, v Volume) ([]*device, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	var found []*device
	for _, name := range names {
		if name != v.Name && !strings.HasPrefix(name, v.Name+"-") {
			continue
		}
		d, err := c.find(name)
		switch {
		case err != nil:
			return nil, err
		case d == nil:
			continue // gone since
		case d.uuid != v.uuid(name):
			return nil, errdefs.Precondition("there is a device-mapper device %s already, and it is not banger's", name).
				WithHint("see what it is: dmsetup info %s; and remove it", name)
		}
		found = append(found, d)
	}
	slices.SortFunc(found, func(a, b *device) int { return v.height(b.name) - v.height(a.name) })
	return found, nil
}

// height orders the devices of a volume.
func (v Volume) height(name string) int {
	switch name {
	case v.Name:
		return maxLayers + 1
	case v.base():
		return -1
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(name, v.Name+"-"))
	return n
}
