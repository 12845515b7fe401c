package boot

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/uevent"
	"banger/internal/hypervisor"
)

const sysBlock = "/sys/block"

// findDisk returns the kernel's name (vda) of the disk with a serial. Where the VMM
// cannot set serials, the command line lists them in the order of the disks.
func findDisk(serial string) (string, bool) {
	if order := cmdlineValue(guest.ParamDisks); order != "" {
		return nthDisk(sysBlock, strings.Split(order, ","), serial)
	}
	entries, _ := os.ReadDir(sysBlock)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(sysBlock, e.Name(), "serial"))
		if err == nil && strings.TrimSpace(string(b)) == serial {
			return e.Name(), true
		}
	}
	return "", false
}

// nthDisk returns the virtio disk that has the place of serial in order. The place
// of a disk is that of its device on the bus: its name comes from whichever was
// probed first. No disk is known before all are there.
func nthDisk(sys string, order []string, serial string) (string, bool) {
	type disk struct{ bus, name string }
	var disks []disk
	entries, _ := os.ReadDir(sys)
	for _, e := range entries {
		// …/LNRO0005:02/virtio2 for the third device.
		if bus, err := filepath.EvalSymlinks(filepath.Join(sys, e.Name(), "device")); err == nil {
			disks = append(disks, disk{filepath.Dir(bus), e.Name()})
		}
	}
	place := slices.Index(order, serial)
	if place < 0 || len(disks) < len(order) {
		return "", false
	}
	slices.SortFunc(disks, func(a, b disk) int { return strings.Compare(a.bus, b.bus) })
	return disks[place].name, true
}

func waitDisk(serial string, timeout time.Duration) (string, error) {
	var name string
	err := uevent.Until("block", timeout, func() bool {
		var ok bool
		name, ok = findDisk(serial)
		return ok
	})
	if err != nil {
		return "", errdefs.Unavailable("no disk with serial %q within %s (%w); disks: %s", serial, timeout, err, diskList()).
			WithHint("the kernel may lack a driver of the root disk")
	}
	return name, nil
}

func diskList() string {
	var names []string
	entries, _ := os.ReadDir(sysBlock)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

// mountRoot mounts the root disk at /newroot. noinit_itable keeps the kernel from
// writing to all of a fresh disk in the background.
func mountRoot(disk string) error {
	dev := "/dev/" + disk
	err := unix.Mount(dev, newRoot, "ext4", unix.MS_RELATIME, "noinit_itable")
	if err == unix.EINVAL {
		err = unix.Mount(dev, newRoot, "ext4", unix.MS_RELATIME, "")
	}
	if err == nil {
		return nil
	}
	what := "is damaged"
	if !isExt(dev) {
		what = "holds no ext4 file system"
	}
	return errdefs.Precondition("mount the root disk: it %s: %w", what, err).
		WithHint("use an image whose file is one ext4 file system, without a partition table")
}

// superblock is what grow needs of an ext4 superblock.
type superblock struct {
	blocks    uint64
	blockSize uint64
}

func readSuperblock(dev string) (superblock, bool) {
	f, err := os.Open(dev)
	if err != nil {
		return superblock{}, false
	}
	defer f.Close()
	var b [1024]byte
	if _, err := f.ReadAt(b[:], 1024); err != nil {
		return superblock{}, false
	}
	return parseSuperblock(b[:])
}

func parseSuperblock(b []byte) (superblock, bool) {
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xEF53 {
		return superblock{}, false
	}
	shift := le.Uint32(b[0x18:])
	if shift > 6 {
		return superblock{}, false
	}
	s := superblock{blocks: uint64(le.Uint32(b[0x4:])), blockSize: 1024 << shift}
	if le.Uint32(b[0x60:])&0x80 != 0 { // 64bit
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	return s, true
}

func isExt(dev string) bool {
	_, ok := readSuperblock(dev)
	return ok
}

// ext4Resize is EXT4_IOC_RESIZE_FS: _IOW('f', 16, __u64), a count of blocks.
const ext4Resize = 0x40086610

// grow makes the mounted file system as large as its disk.
func grow(disk, dir string) error {
	sectors, err := sectorsOf(disk)
	if err != nil {
		return err
	}
	sb, ok := readSuperblock("/dev/" + disk)
	if !ok {
		return errdefs.Internal("read the superblock of disk %s", disk)
	}
	blocks := sectors * 512 / sb.blockSize
	if blocks <= sb.blocks {
		return nil
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errdefs.Wrap(err, "open the root")
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ext4Resize, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return errdefs.Wrap(errno, "grow the root from %d to %d blocks", sb.blocks, blocks)
	}
	return nil
}

func sectorsOf(disk string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(sysBlock, disk, "size"))
	if err != nil {
		return 0, errdefs.Wrap(err, "read the size of disk %s", disk)
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return sectors, errdefs.Wrap(err, "read the size of disk %s", disk)
}

// growTimeout is how long the kernel may take to hear of a disk's new size.
const growTimeout = 10 * time.Second

// Grow makes the root file system as large as its disk once that has so many bytes.
func Grow(bytes int64) error {
	disk, ok := findDisk(hypervisor.SerialRoot)
	if !ok {
		return errdefs.Unavailable("the root disk is not there; disks: %s", diskList())
	}
	err := uevent.Until("block", growTimeout, func() bool {
		sectors, err := sectorsOf(disk)
		return err != nil || int64(sectors)*512 >= bytes
	})
	if err != nil {
		return errdefs.Wrap(err, "wait for disk %s to be %d bytes large", disk, bytes)
	}
	return grow(disk, "/")
}
