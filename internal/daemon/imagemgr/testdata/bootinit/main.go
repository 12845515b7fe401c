// bootinit is a minimal /init for the test that boots what imagemgr made: it
// loads the early modules, mounts both disks, looks around, says what it saw on
// the console and powers off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("BOOT-FAILED:", err)
	}
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	for _, list := range []string{"order", "order-late"} {
		order, err := os.ReadFile("/modules/" + list)
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(order)) {
			f, err := os.Open("/modules/" + name)
			if err != nil {
				return err
			}
			empty := []byte{0}
			_, _, errno := syscall.Syscall(313, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0) // finit_module
			if errno != 0 {
				return fmt.Errorf("load %s: %w", name, errno)
			}
		}
	}
	if err := mount("/dev/vda", "/newroot", 0); err != nil {
		return err
	}
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return err
	}
	release := text(u.Release[:])
	tree := "/newroot/lib/modules/" + release
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := mount("/dev/vdb", tree, syscall.MS_RDONLY); err != nil {
		return err
	}
	for _, m := range []string{"/proc", "/sys", "/dev"} {
		if err := syscall.Mount(m, "/newroot"+m, "", syscall.MS_MOVE, ""); err != nil {
			return err
		}
	}
	if err := syscall.Chroot("/newroot"); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	uptime, _ := os.ReadFile("/proc/uptime")
	fmt.Println("SAW release", release, "uptime", strings.Fields(string(uptime))[0])
	nets, _ := filepath.Glob("/sys/class/net/e*")
	fmt.Println("SAW cards", len(nets))
	for _, c := range []string{
		"modprobe overlay && grep -c overlay /proc/filesystems",
		"su dev -c 'sudo -n id -u' 2>/dev/null",
		"su - dev -c 'pwd; git --version; make --version; gcc --version; python3 --version; curl --version' | wc -l",
		"wc -c < /etc/machine-id",
		"ls /etc/ssh | grep -c host_key",
	} {
		out, err := exec.Command("/bin/sh", "-c", c).CombinedOutput()
		fmt.Printf("SAW %q %q %v\n", c, strings.TrimSpace(string(out)), err)
	}
	fmt.Println("BOOT-OK")
	return nil
}

// mount waits for a disk: the driver finds it a moment after it was loaded.
func mount(dev, dir string, flags uintptr) error {
	var err error
	for range 200 {
		if err = syscall.Mount(dev, dir, "ext4", flags, ""); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond) // inside the guest there is nobody to tell
	}
	return fmt.Errorf("mount %s: %w", dev, err)
}

func text(raw []int8) string {
	var b strings.Builder
	for _, c := range raw {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}
