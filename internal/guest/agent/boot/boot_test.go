package boot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// elf is the beginning of a program for a machine, which may need a loader.
func elf(machine byte, loader string) string {
	head := make([]byte, 0x40+0x38)
	copy(head, "\x7fELF\x02\x01\x01")
	head[16], head[18] = 3, machine
	head[32] = 0x40 // the table of segments, of one
	head[54], head[56] = 0x38, 1
	if loader != "" {
		head[0x40] = 3 // PT_INTERP, behind it
		head[0x48] = byte(len(head))
		head[0x60] = byte(len(loader) + 1)
	}
	return string(head) + loader + "\x00"
}

func TestDetectInit(t *testing.T) {
	const (
		x86 = 62
		arm = 183
	)
	static, musl := elf(x86, ""), elf(x86, "/lib/ld-musl-x86_64.so.1")
	const alpine = "::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc default\ntty1::respawn:/sbin/getty 38400 tty1\n"
	type files map[string]string // paths with contents; programs but below etc
	type links [][2]string
	for name, c := range map[string]struct {
		files files
		links links
		want  string
		path  string
	}{
		"empty":            {nil, nil, "none", ""},
		"debian":           {files{"usr/lib/systemd/systemd": static}, links{{"lib", "usr/lib"}, {"sbin/init", "/lib/systemd/systemd"}}, "systemd", "/sbin/init"},
		"systemd, no link": {files{"usr/lib/systemd/systemd": static}, nil, "systemd", "/usr/lib/systemd/systemd"},
		"systemd behind a stand-in": {files{"usr/lib/systemd/systemd": static, "bin/busybox": static}, links{{"sbin/init", "/bin/busybox"}},
			"systemd", "/usr/lib/systemd/systemd"},
		"dangling":             {nil, links{{"sbin/init", "/lib/systemd/systemd"}}, "none", ""},
		"container busybox":    {files{"bin/busybox": static}, links{{"sbin/init", "/bin/busybox"}}, "none", ""},
		"alpine's container":   {files{"bin/busybox": static, "sbin/getty": static, "etc/inittab": alpine}, links{{"sbin/init", "/bin/busybox"}}, "none", ""},
		"openrc":               {files{"bin/busybox": static, "sbin/openrc": static, "etc/inittab": alpine}, links{{"sbin/init", "/bin/busybox"}}, "other", "/sbin/init"},
		"busybox with rcS":     {files{"bin/busybox": static, "sbin/rcS": static}, links{{"sbin/init", "/bin/busybox"}, {"etc/init.d/rcS", "/sbin/rcS"}}, "other", "/sbin/init"},
		"busybox with inittab": {files{"bin/busybox": static, "bin/setup": static, "etc/inittab": "# x\n\n::sysinit:-/bin/setup now\n"}, links{{"sbin/init", "/bin/busybox"}}, "other", "/sbin/init"},
		"inittab of nothing":   {files{"bin/busybox": static, "etc/inittab": "::sysinit:\n:::\n::once:relative\n::respawn:/bin/busybox\n"}, links{{"sbin/init", "/bin/busybox"}}, "none", ""},
		"sysvinit":             {files{"sbin/init": static}, nil, "other", "/sbin/init"},
		"tini":                 {files{"usr/bin/tini": static}, links{{"sbin/init", "../usr/bin/tini"}}, "none", ""},
		"shell":                {files{"bin/bash": static}, links{{"sbin/init", "/bin/bash"}}, "none", ""},
		"out of the root":      {nil, links{{"sbin/init", "../../../../../../bin/sh"}}, "none", ""},
		"loop":                 {nil, links{{"sbin/init", "init"}}, "none", ""},
		"script":               {files{"sbin/init": "#!/bin/sh\nexec /bin/service\n", "bin/sh": static}, nil, "none", ""},
		"no interpreter":       {files{"sbin/init": "#!/bin/none\n"}, nil, "none", ""},
		"nothing in it":        {files{"sbin/init": ""}, nil, "none", ""},
		"another machine's":    {files{"sbin/init": elf(arm, "")}, nil, "none", ""},
		"musl":                 {files{"sbin/init": musl, "lib/ld-musl-x86_64.so.1": static}, nil, "other", "/sbin/init"},
		"without its loader":   {files{"sbin/init": musl}, nil, "none", ""},
		"loader of the host's": {files{"sbin/init": elf(x86, "/bin/sh")}, nil, "none", ""},
		"absurd table":         {files{"sbin/init": static[:32] + "\xff\xff\xff\xff\xff\xff\xff\xff" + static[40:]}, nil, "other", "/sbin/init"},
	} {
		root := t.TempDir()
		for f, text := range c.files {
			mode := os.FileMode(0o755)
			if filepath.Dir(f) == "etc" {
				mode = 0o644
			}
			_ = os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755)
			if err := os.WriteFile(filepath.Join(root, f), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range c.links {
			_ = os.MkdirAll(filepath.Join(root, filepath.Dir(l[0])), 0o755)
			if err := os.Symlink(l[1], filepath.Join(root, l[0])); err != nil {
				t.Fatal(err)
			}
		}
		fd := openRoot(t, root)
		if got, program := detectInit(fd); got != c.want || program != c.path {
			t.Errorf("%s: %q %q, want %q %q", name, got, program, c.want, c.path)
		}
	}
	// Busybox by another name.
	root := t.TempDir()
	for _, dir := range []string{"bin", "sbin"} {
		_ = os.Mkdir(filepath.Join(root, dir), 0o755)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), []byte(static), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "bin/busybox"), filepath.Join(root, "sbin/init")); err != nil {
		t.Fatal(err)
	}
	if got, program := detectInit(openRoot(t, root)); got != "none" {
		t.Errorf("a hard link: %q %q", got, program)
	}
}

func openRoot(t *testing.T, root string) int {
	t.Helper()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// The loader of any program is found or left to the kernel, and a head of any bytes is
// no reason to fall over.
func FuzzLoader(f *testing.F) {
	f.Add([]byte(elf(62, "/lib/ld.so")))
	f.Add([]byte(elf(62, ""))[:70])
	f.Fuzz(func(t *testing.T, head []byte) {
		if loader, ok := loaderOf(head); !ok && loader != "" || len(loader) > len(head) {
			t.Errorf("%q %v", loader, ok)
		}
	})
}

// What is in the place of a mount point gives way, and no link is followed.
func TestMountPoint(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	prepare := errors.Join(
		os.WriteFile(filepath.Join(root, "dev"), nil, 0o644), os.Symlink(outside, filepath.Join(root, "proc")),
		os.Symlink("nowhere", filepath.Join(root, "sys")), os.Mkdir(filepath.Join(root, "run"), 0o711), unix.Mkfifo(filepath.Join(root, "pipe"), 0o600))
	if prepare != nil {
		t.Fatal(prepare)
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "pipe", "new"} {
		fd, err := mountPoint(openRoot(t, root), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = unix.Close(fd)
		if st, err := os.Lstat(filepath.Join(root, name)); err != nil || !st.IsDir() || name == "run" && st.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
}

func TestMakeTmp(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(p string) error
		want    os.FileMode
	}{
		"missing":  {func(string) error { return nil }, os.ModeDir | os.ModeSticky | 0o777},
		"dangling": {func(p string) error { return os.Symlink("nowhere", p) }, os.ModeDir | os.ModeSticky | 0o777},
		"there":    {func(p string) error { return os.Mkdir(p, 0o700) }, os.ModeDir | 0o700},
		"a link":   {func(p string) error { return errors.Join(os.Mkdir(p+"x", 0o700), os.Symlink("tmpx", p)) }, os.ModeSymlink | 0o777},
		"a file":   {func(p string) error { return os.WriteFile(p, nil, 0o600) }, 0o600},
	} {
		p := filepath.Join(t.TempDir(), "tmp")
		if err := errors.Join(c.prepare(p), makeTmp(p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := os.Lstat(p); err != nil || st.Mode() != c.want {
			t.Errorf("%s: %v, want %v", name, st.Mode(), c.want)
		}
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

// Debian's scripts for other inits find /tmp emptied where they would empty it, and only
// there.
func TestCleanTmp(t *testing.T) {
	type files map[string]string // by path
	const script = "lib/init/bootclean.sh"
	for name, c := range map[string]struct {
		files   files
		mode    os.FileMode // of /tmp
		emptied bool
	}{
		"no such init":    {files{}, 0o777, false},
		"as it comes":     {files{script: ""}, 0o777, true},
		"by default":      {files{script: "", "etc/default/rcS": "#TMPTIME=7\n"}, 0o777, true},
		"said so":         {files{script: "", "etc/default/rcS": "TMPTIME=7\n TMPTIME='0'\n"}, 0o777, true},
		"what is old":     {files{script: "", "etc/default/rcS": "TMPTIME=7\n"}, 0o777, false},
		"never":           {files{script: "", "etc/default/rcS": "TMPTIME=\"infinite\"\n"}, 0o777, false},
		"not everybody's": {files{script: ""}, 0o755, false},
	} {
		root := t.TempDir()
		c.files["tmp/of an earlier boot"] = ""
		for file, text := range c.files {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755), os.WriteFile(filepath.Join(root, file), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(filepath.Join(root, "tmp"), c.mode); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := cleanTmp(root); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := os.Stat(filepath.Join(root, "tmp/of an earlier boot"))
		_, mark := os.Stat(filepath.Join(root, "tmp", cleanMark))
		if (err != nil) != c.emptied || (mark == nil) != c.emptied {
			t.Errorf("%s: %v, %v", name, err, mark)
		}
	}
	root := t.TempDir() // what a link leads to is not emptied
	other := t.TempDir()
	err := errors.Join(os.MkdirAll(filepath.Join(root, "lib/init"), 0o755), os.WriteFile(filepath.Join(root, script), nil, 0o644),
		os.Symlink(other, filepath.Join(root, "tmp")), os.WriteFile(filepath.Join(other, "x"), nil, 0o644), cleanTmp(root))
	if _, serr := os.Stat(filepath.Join(other, "x")); err != nil || serr != nil {
		t.Error(err, serr)
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
