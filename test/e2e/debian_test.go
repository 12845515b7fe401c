//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// says runs a program of the host and returns what it printed.
func says(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(tool(t, program), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return string(out)
}

// TestDebianImage judges the file system of the default image, which no VM writes to.
func TestDebianImage(t *testing.T) {
	w := s.main
	w.fetch(t)
	var img image
	w.decode(t, &img, "image", "show", "--json", "debian")
	says(t, "e2fsck", "-fn", img.Path)
	var st unix.Stat_t
	if err := unix.Stat(img.Path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; st.Size != img.SizeBytes || used > 900<<20 {
		t.Errorf("it has %d bytes of which %d are allocated; want %d and less than 900 MiB", st.Size, used, img.SizeBytes)
	}
	dump := says(t, "dumpe2fs", img.Path)
	inodes := fmt.Sprintf("Inode count:              %d", img.SizeBytes/16384)
	for _, want := range []string{"banger-root", "metadata_csum", "64bit", "has_journal", inodes} {
		if !strings.Contains(dump, want) {
			t.Errorf("dumpe2fs does not say %q", want)
		}
	}
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "Group ") && strings.Contains(line, "(Blocks") && !strings.Contains(line, "ITABLE_ZEROED") {
			t.Errorf("guests would wipe inode tables: %s", line)
			break
		}
	}
	at := func(command string) string { return says(t, "debugfs", "-R", command, img.Path) }
	for command, want := range map[string]string{
		"stat /":                                         "Mode:  0755",
		"stat /home/dev":                                 "User:  1000   Group:  1000",
		"stat /usr/bin/sudo":                             "Mode:  04755",
		"stat /etc/sudoers.d/dev":                        "User:     0   Group:     0",
		"stat /etc/machine-id":                           "Size: 0",
		"stat /etc/ssh/ssh_host_rsa_key":                 "File not found",
		"stat /etc/resolv.conf":                          "File not found",
		"stat /etc/hostname":                             "File not found",
		"stat /etc/apt/apt.conf.d/99mmdebstrap":          "File not found",
		"stat /etc/systemd/system/serial-getty@.service": `Fast link dest: "/dev/null"`,
		"ls /usr/share/man":                              "..",
	} {
		if got := at(command); !strings.Contains(got, want) {
			t.Errorf("debugfs %q does not say %q:\n%s", command, want, got)
		}
	}
	if src := at("cat /etc/apt/sources.list.d/debian.sources"); !strings.Contains(src, "Types: deb") && !strings.Contains(at("ls /etc/apt/sources.list.d"), ".sources") {
		t.Errorf("no apt sources: %s", src)
	}
	if conf := at("cat /etc/apt/apt.conf.d/80banger"); strings.Contains(conf, "netrc") || strings.Contains(conf, "auth.conf") {
		t.Errorf("the guest learns of logins: %s", conf)
	}
}

// TestDebianKernel judges the files of the default kernel.
func TestDebianKernel(t *testing.T) {
	w := s.main
	w.fetch(t)
	var k kernel
	w.decode(t, &k, "kernel", "show", "--json", "debian")
	says(t, "e2fsck", "-fn", k.Modules)
	for _, file := range []string{"/modules.dep.bin", "/modules.alias.bin", "/kernel/fs/overlayfs/overlay.ko"} {
		if got := says(t, "debugfs", "-R", "stat "+file, k.Modules); !strings.Contains(got, "User:     0   Group:     0") {
			t.Errorf("%s in the module image: %s", file, got)
		}
	}
	at := map[string]int{}
	for _, list := range []string{"order", "order-late"} {
		order, err := os.ReadFile(filepath.Join(filepath.Dir(k.Vmlinux), "early", list))
		if err != nil {
			t.Fatal(err)
		}
		for file := range strings.FieldsSeq(string(order)) {
			at[file] = len(at) + 1
		}
	}
	list := says(t, "debugfs", "-R", "cat /modules.builtin", k.Modules)
	builtIn := func(file string) bool { return strings.Contains(list, "/"+file+"\n") }
	for _, pair := range [][2]string{
		{"virtio.ko", "virtio_pci.ko"}, {"virtio_ring.ko", "virtio_pci.ko"}, {"virtio_ring.ko", "virtio_blk.ko"},
		{"failover.ko", "net_failover.ko"}, {"net_failover.ko", "virtio_net.ko"}, {"virtio_console.ko", "virtio_net.ko"},
	} {
		if builtIn(pair[0]) || builtIn(pair[1]) {
			continue // in the kernels of some releases
		}
		if at[pair[0]] == 0 || at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s comes at %d, %s at %d", pair[0], at[pair[0]], pair[1], at[pair[1]])
		}
	}
}

// TestDebianTools: what a project needs is in the default image, and works.
func TestDebianTools(t *testing.T) {
	v := sharedVM(t)
	script := "sudo -n id -u; sudo -n modprobe overlay && grep -c overlay /proc/filesystems; " +
		"for tool in git make gcc python3 curl; do $tool --version >/dev/null || echo no $tool; done"
	if got := s.main.exec(t, v, "sh", "-c", script); got != "0\n1" {
		t.Errorf("the guest says %q", got)
	}
}
