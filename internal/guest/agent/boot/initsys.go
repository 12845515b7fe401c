package boot

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// initPaths are where an image's init may be, in the order they are tried.
func initPaths() []string {
	return []string{"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/etc/init"}
}

// detectInit finds the image's init and tells its kind: "systemd", "other" or "none".
// An image made for containers often has an init without anything behind it; see
// standIn for what is not taken for one.
func detectInit(root int) (kind, program string) {
	for _, p := range initPaths() {
		real, ok := runnable(root, p)
		switch {
		case !ok || standIn(root, p, path.Base(real)):
		case path.Base(real) == "systemd":
			return "systemd", p
		default:
			return "other", p
		}
	}
	return "none", ""
}

// standIn reports whether a program would do nothing as process 1, or end, which stops
// the machine. Busybox is an init where it has been told what to start. The name is that
// of the file the program's path leads to.
func standIn(root int, program, name string) bool {
	switch name {
	case "true", "false", "sleep", "cat", "tail", "tini", "tini-static", "dumb-init", "docker-init", "catatonit",
		"sh", "ash", "bash", "dash", "ksh", "mksh", "zsh":
		return true
	}
	if !isBusybox(root, program, name) {
		return false
	}
	for _, script := range []string{"/sbin/openrc", "/etc/init.d/rcS"} {
		if _, ok := executable(root, script); ok {
			return false
		}
	}
	return !inittabStarts(root)
}

// isBusybox reports whether a program is busybox, if only by another name: the images of
// some distributions link it to all of its names.
func isBusybox(root int, program, name string) bool {
	if strings.HasPrefix(name, "busybox") || name == "toybox" {
		return true
	}
	own, ok := identity(root, program)
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/toybox", "/usr/bin/toybox"} {
		if other, there := identity(root, p); ok && there && own == other {
			return true
		}
	}
	return false
}

// identity is the device and inode of what a path of the image leads to.
func identity(root int, p string) (id [2]uint64, ok bool) {
	fd, err := openIn(root, p, unix.O_PATH)
	if err != nil {
		return id, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return [2]uint64{uint64(st.Dev), st.Ino}, err == nil
}

// inittabStarts reports whether the image's inittab starts a program that is there, at
// the boot. That of Alpine's images names an OpenRC that they lack; their gettys do not
// count, for nobody is at the console.
func inittabStarts(root int) bool {
	text, err := readHead(root, "/etc/inittab", maxInittab)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		// id:runlevels:action:process
		f := strings.SplitN(strings.TrimSpace(line), ":", 4)
		if len(f) < 4 || strings.HasPrefix(f[0], "#") || f[2] != "sysinit" && f[2] != "wait" && f[2] != "once" {
			continue
		}
		if words := strings.Fields(strings.TrimLeft(f[3], "-")); len(words) > 0 && path.IsAbs(words[0]) {
			if _, ok := executable(root, words[0]); ok {
				return true
			}
		}
	}
	return false
}

// Bounds of what is read of files that may be inits, in bytes.
const (
	maxInittab = 64 << 10
	maxHead    = 4 << 10
)

// readHead reads the beginning of a file of the image.
func readHead(root int, p string, limit int) ([]byte, error) {
	fd, err := openIn(root, p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, unix.EINVAL
	}
	b := make([]byte, limit)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return b[:n], nil
}

// runnable resolves a path of the image, as executable does, and reports whether the kernel can make it
// process 1: a program of this machine whose loader is there. A script is none: what it
// does before it gives way to an init, if ever, nobody knows, and its end would be the
// machine's.
func runnable(root int, p string) (string, bool) {
	real, ok := executable(root, p)
	if !ok {
		return "", false
	}
	head, err := readHead(root, p, maxHead)
	if err != nil {
		return "", false
	}
	loader, ok := loaderOf(head)
	if !ok {
		return "", false
	}
	if loader != "" {
		if _, ok := executable(root, loader); !ok {
			return "", false
		}
	}
	return real, true
}

// loaderOf returns the dynamic loader that a program names; empty: it needs none. It is
// false for what is no program for x86-64, by the first bytes of its file.
func loaderOf(head []byte) (loader string, ok bool) {
	const (
		headerSize, entrySize = 64, 56
		machineX8664          = 62
		typeInterp            = 3
	)
	le := binary.LittleEndian
	// ELF of 64 bits, little-endian.
	if len(head) < headerSize || string(head[:6]) != "\x7fELF\x02\x01" || le.Uint16(head[18:]) != machineX8664 {
		return "", false
	}
	size := uint64(len(head))
	table, each, count := le.Uint64(head[32:]), uint64(le.Uint16(head[54:])), uint64(le.Uint16(head[56:]))
	for i := range count {
		at := table + i*each
		if each < entrySize || table > size || at+entrySize > size {
			return "", true // not in the first bytes: the kernel will see
		}
		entry := head[at:]
		if le.Uint32(entry) != typeInterp {
			continue
		}
		from, length := le.Uint64(entry[8:]), le.Uint64(entry[32:])
		if from > size || length > size-from {
			return "", true
		}
		name, _, _ := strings.Cut(string(head[from:from+length]), "\x00")
		return name, true
	}
	return "", true
}

// executable reports whether a path of the image is a program. What it resolves it to
// begins where this process sees the root.
func executable(root int, p string) (string, bool) {
	fd, err := openIn(root, p, unix.O_PATH)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return "", false
	}
	real, err := os.Readlink(fdPath(fd))
	return real, err == nil
}

// NoInitMark is a file that tells that the image's init could not be executed.
const NoInitMark = "/run/banger/no-init"

// ExecInit makes this process the image's init, which was found when it was mounted. It
// returns only when that fails.
func ExecInit(program string) error {
	err := unix.Exec(program, []string{program}, os.Environ())
	return errors.Join(&os.PathError{Op: "exec", Path: program, Err: err},
		mkdirs("/run/banger"), os.WriteFile(NoInitMark, nil, 0o644))
}

// writeDropIns tells the services of an image to leave the network card alone:
// its address is set over the agent's channel, and a manager that starts later
// would flush it or wait for a DHCP server that does not exist. udev keeps the
// name the kernel gave it: renaming a card that is up works with some kernels
// only, and where it does not, networkd takes the card for half done for ever.
// All of it lies in
// run, so nothing of it outlives the VM's run, and a service that the image does
// not have is not touched.
//
// A machine that only a reset can end must be reset where systemd would turn it
// off: with nothing to turn it off, the kernel halts the processor for ever.
func writeDropIns(run string, mmio bool) error {
	files := map[string]string{
		"systemd/network/00-banger.network":    "[Match]\nDriver=virtio_net\n\n[Link]\nUnmanaged=yes\n",
		"systemd/network/00-banger.link":       "[Match]\nDriver=virtio_net\n\n[Link]\nNamePolicy=\n",
		"NetworkManager/conf.d/00-banger.conf": "[device-banger]\nmatch-device=driver:virtio_net\nmanaged=0\n",
		"banger/network":                       "The network card of this machine is configured by banger-agent.\n",
	}
	skip := "[Unit]\nConditionPathExists=!/run/banger/network\n"
	for _, unit := range []string{
		"networking", "ifup@", "dhcpcd", "dhcpcd@", "connman", "wicked", "netctl@",
		"cloud-init-local", "cloud-init", "cloud-init-main", "cloud-init-network", "cloud-config", "cloud-final",
		"systemd-networkd-wait-online", "systemd-networkd-wait-online@", "NetworkManager-wait-online", "connman-wait-online",
	} {
		files["systemd/system/"+unit+".service.d/00-banger.conf"] = skip
	}
	if mmio {
		for _, unit := range []string{"systemd-poweroff", "systemd-halt"} {
			files["systemd/system/"+unit+".service.d/00-banger.conf"] = "[Unit]\nSuccessAction=reboot-force\n"
		}
	}
	var errs []error
	for name, text := range files {
		p := filepath.Join(run, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.WriteFile(p, []byte(text), 0o644))
	}
	return errors.Join(errs...)
}
