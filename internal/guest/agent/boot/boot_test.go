package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDetectInit(t *testing.T) {
	for name, c := range map[string]struct {
		files []string // programs
		links [][2]string
		want  string
	}{
		"empty":             {nil, nil, "none"},
		"debian":            {[]string{"usr/lib/systemd/systemd"}, [][2]string{{"lib", "usr/lib"}, {"sbin/init", "/lib/systemd/systemd"}}, "systemd"},
		"systemd, no link":  {[]string{"usr/lib/systemd/systemd"}, nil, "systemd"},
		"dangling":          {nil, [][2]string{{"sbin/init", "/lib/systemd/systemd"}}, "none"},
		"container busybox": {[]string{"bin/busybox"}, [][2]string{{"sbin/init", "/bin/busybox"}}, "none"},
		"openrc":            {[]string{"bin/busybox", "sbin/openrc"}, [][2]string{{"sbin/init", "/bin/busybox"}}, "other"},
		"sysvinit":          {[]string{"sbin/init"}, nil, "other"},
		"tini":              {[]string{"usr/bin/tini"}, [][2]string{{"sbin/init", "../usr/bin/tini"}}, "none"},
		"out of the root":   {nil, [][2]string{{"sbin/init", "../../../../../../bin/sh"}}, "none"},
		"loop":              {nil, [][2]string{{"sbin/init", "init"}}, "none"},
	} {
		root := t.TempDir()
		for _, f := range c.files {
			_ = os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755)
			if err := os.WriteFile(filepath.Join(root, f), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range c.links {
			_ = os.MkdirAll(filepath.Join(root, filepath.Dir(l[0])), 0o755)
			if err := os.Symlink(l[1], filepath.Join(root, l[0])); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := detectInit(fd); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		_ = unix.Close(fd)
	}
}

// TestMkdirIn: a symlink of the image leads within the image.
func TestMkdirIn(t *testing.T) {
	root := t.TempDir()
	_ = os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755)
	_ = os.Symlink("/usr/lib", filepath.Join(root, "lib"))
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(rootFD)
	fd, err := mkdirIn(rootFD, "lib/modules/6.1")
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	if _, err := os.Stat(filepath.Join(root, "usr/lib/modules/6.1")); err != nil {
		t.Error(err)
	}
}

func TestSuperblock(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("mke2fs is not installed")
	}
	img := filepath.Join(t.TempDir(), "img")
	for _, c := range []struct {
		args []string
		want superblock
	}{
		{[]string{"-b", "1024", img, "9000"}, superblock{9000, 1024}},
		{[]string{"-b", "4096", "-O", "64bit", img, "5000"}, superblock{5000, 4096}},
		{[]string{"-b", "4096", "-O", "^64bit", img, "5000"}, superblock{5000, 4096}},
	} {
		if out, err := exec.Command("mke2fs", append([]string{"-F", "-q", "-t", "ext4"}, c.args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		got, ok := readSuperblock(img)
		if !ok || got != c.want {
			t.Errorf("%v: %+v %v", c.args, got, ok)
		}
	}
	if _, ok := parseSuperblock(make([]byte, 1024)); ok {
		t.Error("zeros are no file system")
	}
}

func TestDropIns(t *testing.T) {
	run := t.TempDir()
	if err := writeDropIns(run, false); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{
		"banger/network", "systemd/network/00-banger.network", "systemd/network/00-banger.link", "NetworkManager/conf.d/00-banger.conf",
		"systemd/system/networking.service.d/00-banger.conf", "systemd/system/systemd-networkd-wait-online.service.d/00-banger.conf",
	} {
		if st, err := os.Stat(filepath.Join(run, f)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// A disk that its VMM gave no serial is found by its place on the bus, whatever
// order the kernel met the disks in, and none before all are there.
func TestKeepTmp(t *testing.T) {
	run, vendor, tmp := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(tmp, "of an earlier boot", "")
	write(vendor, "x11.conf", "D! /tmp/.X11-unix 1777 root root 10d\n")
	write(vendor, "README", "D /tmp 1777 root root -\n")
	for range 2 { // an agent that is started again finds its own
		if err := keepTmp(run, []string{vendor, filepath.Join(vendor, "absent")}, tmp); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.Readlink(filepath.Join(run, "systemd/system/tmp.mount")); got != "/dev/null" {
		t.Errorf("tmp.mount is %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(run, "tmpfiles.d")); !os.IsNotExist(err) {
		t.Errorf("nothing empties /tmp, and something is changed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(tmp, "of an earlier boot")); err != nil {
		t.Error(err)
	}
	write(vendor, "tmp.conf", "# Clear it\nD! \"/tmp/\" 1777 root root -\nD /tmp/.x 0755 root root\n")
	if err := keepTmp(run, []string{vendor}, tmp); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(run, "tmpfiles.d/tmp.conf"))
	if want := "# Clear it\nd! \"/tmp/\" 1777 root root -\nD /tmp/.x 0755 root root\n"; string(b) != want {
		t.Errorf("%q, %v, want %q", b, err, want)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestNthDisk(t *testing.T) {
	dir := t.TempDir()
	sys := filepath.Join(dir, "block")
	add := func(name, bus string) {
		t.Helper()
		device := filepath.Join(dir, "devices", bus, "virtio-"+name)
		for _, d := range []string{device, filepath.Join(sys, name)} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(device, filepath.Join(sys, name, "device")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sys, "loop0"), 0o755); err != nil {
		t.Fatal(err)
	}
	order := []string{"root", "modules"}
	add("vda", "LNRO0005:0a")
	if name, ok := nthDisk(sys, order, "root"); ok {
		t.Errorf("one disk of two: %s", name)
	}
	add("vdb", "LNRO0005:02")
	for serial, want := range map[string]string{"root": "vdb", "modules": "vda"} {
		if name, ok := nthDisk(sys, order, serial); !ok || name != want {
			t.Errorf("%s: %q, %v; want %s", serial, name, ok, want)
		}
	}
	if _, ok := nthDisk(sys, order, "other"); ok {
		t.Error("a disk that is not listed was found")
	}
}

func TestParameter(t *testing.T) {
	line := "quiet banger.disks=a banger.disks=root,modules xbanger.machine=no\n"
	if got := parameter(line, "banger.disks"); got != "root,modules" {
		t.Errorf("got %q", got)
	}
	if got := parameter(line, "banger.machine"); got != "" {
		t.Errorf("got %q", got)
	}
}
