package dmsnap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// control is an open connection to device-mapper. It is not safe for concurrent use.
type control struct {
	f *os.File
}

// udevFlags keep udev from looking into what a guest has written: without them it
// would read labels and ids off our devices, and name devices of the host's after
// them. They travel in the upper half of what udev takes for a cookie; nobody waits
// for the lower half.
const udevFlags = 0x40<<16 | // we are the source of these flags: they hold for later events too
	0x02<<16 | // no rules of subsystems
	0x04<<16 | // no links by label or id
	0x08<<16 | // no other rules
	0x01 // a cookie of zero would count as none

// openControl opens device-mapper, which loads its module where that is known.
func openControl(dev string) (*control, error) {
	f, err := os.OpenFile(filepath.Join(dev, "mapper", unix.DM_CONTROL_NODE), os.O_RDWR, 0)
	if err != nil {
		return nil, unavailable(err, "device-mapper", "dm_mod")
	}
	c := &control{f: f}
	if err := c.call(unix.DM_VERSION, "ask for the version of", "device-mapper", nil); err != nil {
		_ = f.Close()
		return nil, errdefs.Unsupported("%s is not device-mapper: %w", f.Name(), err)
	}
	return c, nil
}

// unavailable is why a part of the kernel cannot be reached.
func unavailable(err error, what, module string) error {
	if errors.Is(err, fs.ErrPermission) {
		return errdefs.Permission("%s is for root: %w", what, err).
			WithHint("run the daemon as root; in a container, give it the device")
	}
	return errdefs.Unsupported("this host has no %s: %w", what, err).WithHint("load it: modprobe %s", module)
}

func (c *control) close() { _ = c.f.Close() }

// request is a call's header and what follows it.
type request struct {
	name, uuid string
	flags      uint32
	event      uint32
	targets    []target
	room       int // for the answer, in bytes
}

// target is one line of a device's table. Start and length are in sectors.
type target struct {
	start, length int64
	kind, params  string
}

// errTooLong guards the fixed fields of a request.
var errTooLong = errdefs.Internal("a name is too long for device-mapper")

// encode lays a request out as the kernel wants it.
func (r *request) encode() ([]byte, error) {
	var head unix.DmIoctl
	head.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
	head.Data_start = unix.SizeofDmIoctl
	head.Flags, head.Event_nr = r.flags, r.event
	head.Target_count = uint32(len(r.targets))
	if len(r.name) >= len(head.Name) || len(r.uuid) >= len(head.Uuid) {
		return nil, errTooLong
	}
	copy(head.Name[:], r.name)
	copy(head.Uuid[:], r.uuid)
	var body bytes.Buffer
	for _, t := range r.targets {
		spec := unix.DmTargetSpec{Sector_start: uint64(t.start), Length: uint64(t.length)}
		if len(t.kind) >= len(spec.Target_type) {
			return nil, errTooLong
		}
		copy(spec.Target_type[:], t.kind)
		params := append([]byte(t.params), make([]byte, 8-len(t.params)%8)...) // ends with a zero, aligned
		spec.Next = uint32(unix.SizeofDmTargetSpec + len(params))
		_ = binary.Write(&body, binary.NativeEndian, spec) // a buffer takes everything
		body.Write(params)
	}
	body.Write(make([]byte, r.room))
	head.Data_size = uint32(unix.SizeofDmIoctl + body.Len())
	var out bytes.Buffer
	_ = binary.Write(&out, binary.NativeEndian, head)
	out.Write(body.Bytes())
	return out.Bytes(), nil
}

// answer is what the kernel made of a request.
type answer struct {
	unix.DmIoctl
	data []byte
}

// call makes one call about a device. The error says what was to be done, to what,
// and keeps the kernel's errno.
func (c *control) call(op uint, verb, name string, r *request) error {
	_, err := c.ask(op, verb, name, r)
	return err
}

func (c *control) ask(op uint, verb, name string, r *request) (answer, error) {
	if r == nil {
		r = &request{}
	}
	b, err := r.encode()
	if err != nil {
		return answer{}, err
	}
	raw, err := c.f.SyscallConn()
	if err != nil {
		return answer{}, err
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) { errno = ioctl(fd, op, b) })
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", verb, name, err)
	}
	var a answer
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &a.DmIoctl); err != nil {
		return a, err
	}
	if start := int(a.Data_start); start <= len(b) {
		a.data = b[start:]
	}
	return a, nil
}

func ioctl(fd uintptr, op uint, b []byte) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(op), uintptr(unsafe.Pointer(&b[0])))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// device is one device-mapper device, as it is now.
type device struct {
	name, uuid string
	dev        uint64
	suspended  bool
}

// number is how tables name a device.
func number(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// find returns the device of that name; nil: there is none.
func (c *control) find(name string) (*device, error) {
	a, err := c.ask(unix.DM_DEV_STATUS, "look for", name, &request{name: name})
	if errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &device{
		name: text(a.Name[:]), uuid: text(a.Uuid[:]), dev: a.Dev,
		suspended: a.Flags&unix.DM_SUSPEND_FLAG != 0,
	}, nil
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// listRoom is how many bytes of names are asked for first.
const listRoom = 16 << 10

// names lists all devices of the host.
func (c *control) names() ([]string, error) {
	for room := listRoom; ; room *= 2 {
		a, err := c.ask(unix.DM_LIST_DEVICES, "list", "devices", &request{room: room})
		if err != nil {
			return nil, err
		}
		if a.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return parseNames(a.data), nil
		}
	}
}

// parseNames takes a list of struct dm_name_list apart: device, offset of the next
// (0: none), name.
func parseNames(b []byte) (names []string) {
	for len(b) > 12 {
		if binary.NativeEndian.Uint64(b) == 0 {
			break // an empty list is one entry without a device
		}
		next := binary.NativeEndian.Uint32(b[8:])
		names = append(names, text(b[12:]))
		if next == 0 || int(next) > len(b) {
			break
		}
		b = b[next:]
	}
	return names
}

// make makes a device with a table and lets it run.
func (c *control) make(name, uuid string, readOnly bool, table ...target) (dev uint64, err error) {
	a, err := c.ask(unix.DM_DEV_CREATE, "create", name, &request{name: name, uuid: uuid})
	if err != nil {
		return 0, err
	}
	if err := c.load(name, readOnly, table...); err != nil {
		return 0, err
	}
	return a.Dev, c.resume(name)
}

// load gives a device a table, which comes to force when it is resumed.
func (c *control) load(name string, readOnly bool, table ...target) error {
	r := &request{name: name, targets: table}
	if readOnly {
		r.flags = unix.DM_READONLY_FLAG
	}
	return c.call(unix.DM_TABLE_LOAD, "set up", name, r)
}

// unload drops a table that has not come to force.
func (c *control) unload(name string) error {
	return c.call(unix.DM_TABLE_CLEAR, "drop the new table of", name, &request{name: name})
}

// resume lets I/O pass, by the table that was loaded last.
func (c *control) resume(name string) error {
	return c.call(unix.DM_DEV_SUSPEND, "resume", name, &request{name: name, event: udevFlags})
}

// suspend holds I/O back, when what was begun has come to its end. flush also brings
// down what the host's cache of the device holds.
func (c *control) suspend(name string, flush bool) error {
	r := &request{name: name, flags: unix.DM_SUSPEND_FLAG}
	if !flush {
		r.flags |= unix.DM_NOFLUSH_FLAG | unix.DM_SKIP_LOCKFS_FLAG
	}
	return c.call(unix.DM_DEV_SUSPEND, "suspend", name, r)
}

// remove removes a device now, or where it is in use once that ends.
func (c *control) remove(name string) error {
	err := c.call(unix.DM_DEV_REMOVE, "remove", name, &request{name: name, flags: unix.DM_DEFERRED_REMOVE, event: udevFlags})
	if errors.Is(err, unix.ENXIO) {
		return nil // gone already
	}
	return err
}

// statusRoom holds the lines of a table of ours.
const statusRoom = 4 << 10

// lines returns what the targets of a device say: of their state, or of how they were
// set up.
func (c *control) lines(name string, table bool) ([]string, error) {
	r := &request{name: name, room: statusRoom}
	if table {
		r.flags = unix.DM_STATUS_TABLE_FLAG
	}
	a, err := c.ask(unix.DM_TABLE_STATUS, "ask for the state of", name, r)
	if err != nil {
		return nil, err
	}
	var lines []string
	for at, n := uint32(0), a.Target_count; n > 0; n-- {
		if int(at)+unix.SizeofDmTargetSpec > len(a.data) {
			break
		}
		lines = append(lines, text(a.data[at+unix.SizeofDmTargetSpec:]))
		// Of an answer, the offset counts from the beginning.
		at = binary.NativeEndian.Uint32(a.data[at+20:])
	}
	return lines, nil
}

// await waits until done says so, asking again after every event of device-mapper's.
func (c *control) await(ctx context.Context, done func() (bool, error)) error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })()
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		// Armed first: what happens after the question wakes us.
		b, _ := (&request{}).encode()
		if errno := ioctl(fd, unix.DM_DEV_ARM_POLL, b); errno != 0 {
			failed = fmt.Errorf("wait for device-mapper: %w", errno)
			return true
		}
		var ok bool
		ok, failed = done()
		return ok || failed != nil
	})
	switch {
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}
