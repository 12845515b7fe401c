package boot

import (
	"errors"
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

// detectInit tells what init the image has: "systemd", "other" or "none". A
// container image often has /sbin/init without anything behind it, as busybox is
// installed under all its names there; that is not taken for an init.
func detectInit(root int) string {
	for _, p := range initPaths() {
		real, ok := executable(root, p)
		if !ok {
			continue
		}
		switch base := path.Base(real); {
		case base == "systemd":
			return "systemd"
		case strings.HasPrefix(base, "busybox"):
			for _, script := range []string{"/sbin/openrc", "/etc/init.d/rcS"} {
				if _, ok := executable(root, script); ok {
					return "other"
				}
			}
		case base == "true", base == "false", base == "tini", base == "dumb-init", base == "sh":
			// Stand-ins that images put there; none of them runs services.
		default:
			return "other"
		}
	}
	return "none"
}

// executable resolves a path of the image and reports whether it is a program.
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

// ExecInit makes this process the image's init. It returns only when that fails.
func ExecInit() error {
	var errs []error
	for _, p := range initPaths() {
		err := unix.Exec(p, []string{p}, os.Environ())
		if err != unix.ENOENT {
			errs = append(errs, &os.PathError{Op: "exec", Path: p, Err: err})
		}
	}
	_ = mkdirs("/run/banger")
	errs = append(errs, os.WriteFile(NoInitMark, nil, 0o644))
	return errors.Join(errs...)
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
