package imagemgr_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/imagemgr"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/sysexec"
)

// real opens the service on a state directory that lives on between runs, with
// the kernel and the image of Debian in it: they take a minute to make, and are
// made again when the code that makes them has changed.
func real(t *testing.T) (*imagemgr.Service, paths.Layout) {
	t.Helper()
	if testing.Short() {
		t.Skip("makes a Debian image")
	}
	for _, tool := range imagemgr.Tools() {
		if _, err := sysexec.Look(tool.Program); err != nil {
			t.Skip(err)
		}
	}
	base := os.Getenv("BANGER_TEST_CACHE")
	if base == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		base = filepath.Join(dir, "banger-test-units")
	}
	base = filepath.Join(base, "imagemgr")
	if err := os.MkdirAll(base, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(base, recipe(t))
	entries, _ := os.ReadDir(base)
	for _, e := range entries {
		if e.IsDir() && filepath.Join(base, e.Name()) != state {
			_ = os.RemoveAll(filepath.Join(base, e.Name()))
		}
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	layout, err := paths.At(state)
	if err != nil {
		t.Fatal(err)
	}
	db, _, err := store.Open(t.Context(), layout.Database())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := imagemgr.New(imagemgr.Deps{
		Store: db, Layout: layout, AgentPath: bootInit(t), DiskBytes: 16 << 30,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, layout
}

// recipe is a hash of the code that makes kernels and images.
func recipe(t *testing.T) string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "testdata") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(files)
	h := sha256.New()
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// bootInit builds the /init of the boot test.
func bootInit(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, "./testdata/bootinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test's init: %v\n%s", err, said)
	}
	return out
}

type testProgress struct{ t *testing.T }

func (p testProgress) Stage(name string)          { p.t.Log("stage", name) }
func (p testProgress) Detail(string)              {}
func (p testProgress) Count(int64, int64, string) {}

// run runs a tool and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sbin finds a program that may be outside an ordinary user's PATH.
func sbin(t *testing.T, name string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	t.Skip(name, "is not installed")
	return ""
}

func TestDebian(t *testing.T) {
	s, layout := real(t)
	began := time.Now()
	k, err := s.EnsureKernel(t.Context(), "debian", testProgress{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s after %v", k.Release, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	i, err := s.EnsureImage(t.Context(), "debian", testProgress{t})
	if errors.Is(err, errdefs.ErrUnsupported) { // no user namespaces, for one
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("image after %v", time.Since(began).Round(time.Millisecond))
	// What came out lies where it belongs, and nothing else lies about.
	for _, dir := range []string{layout.Images(), layout.Kernels()} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("%s holds %v, %v; want one directory", dir, entries, err)
		}
	}
	t.Run("image", func(t *testing.T) { judgeImage(t, i) })
	t.Run("kernel", func(t *testing.T) { judgeKernel(t, k) })
	t.Run("boot", func(t *testing.T) { boot(t, s, k, i) })
}

func judgeImage(t *testing.T, i model.Image) {
	if i.Config.User != "dev" || !i.Managed || i.SizeBytes != 16<<30 || !strings.HasPrefix(i.Digest, "sha256:") {
		t.Errorf("image is %+v", i)
	}
	e2fsck, dumpe2fs, debugfs := sbin(t, "e2fsck"), sbin(t, "dumpe2fs"), sbin(t, "debugfs")
	run(t, e2fsck, "-fn", i.Path)
	var st unix.Stat_t
	if err := unix.Stat(i.Path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; st.Size != 16<<30 || used > 900<<20 {
		t.Errorf("size %d, allocated %d; want 16 GiB and less than 900 MiB", st.Size, used)
	}
	dump := run(t, dumpe2fs, i.Path)
	for _, want := range []string{"banger-root", "metadata_csum", "64bit", "has_journal", "Inode count:              1048576"} {
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
	at := func(command string) string { return run(t, debugfs, "-R", command, i.Path) }
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

func judgeKernel(t *testing.T, k model.Kernel) {
	run(t, sbin(t, "e2fsck"), "-fn", k.ModulesPath)
	debugfs := sbin(t, "debugfs")
	for _, file := range []string{"/modules.dep.bin", "/modules.alias.bin", "/kernel/fs/overlayfs/overlay.ko"} {
		if got := run(t, debugfs, "-R", "stat "+file, k.ModulesPath); !strings.Contains(got, "User:     0   Group:     0") {
			t.Errorf("%s in the module image: %s", file, got)
		}
	}
	order, err := os.ReadFile(filepath.Join(k.EarlyDir, paths.EarlyOrderFile))
	if err != nil {
		t.Fatal(err)
	}
	late, err := os.ReadFile(filepath.Join(k.EarlyDir, paths.LateOrderFile))
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for n, f := range strings.Fields(string(order) + string(late)) {
		at[f] = n + 1
	}
	for _, pair := range [][2]string{
		{"virtio.ko", "virtio_pci.ko"}, {"virtio_ring.ko", "virtio_pci.ko"}, {"virtio_ring.ko", "virtio_blk.ko"},
		{"failover.ko", "net_failover.ko"}, {"net_failover.ko", "virtio_net.ko"}, {"virtio_console.ko", "virtio_net.ko"},
	} {
		if at[pair[0]] == 0 || at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s comes at %d, %s at %d", pair[0], at[pair[0]], pair[1], at[pair[1]])
		}
	}
}

// boot boots the kernel and the image in QEMU, with emulation, and checks what a
// program in the guest saw.
func boot(t *testing.T, s *imagemgr.Service, k model.Kernel, i model.Image) {
	qemu := sbin(t, "qemu-system-x86_64")
	files, err := s.BootFiles(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if listing := run(t, "sh", "-c", `command -v cpio >/dev/null || { echo init; exit 0; }; cpio -t < "$1"`, "sh", files.Initramfs); !strings.Contains(listing, "init") {
		t.Errorf("cpio lists: %s", listing)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu,
		"-accel", "tcg", "-machine", "q35,hpet=off,smm=off,sata=off", "-cpu", "Nehalem", "-m", "512", "-nodefaults", "-no-reboot", "-display", "none",
		"-kernel", files.Vmlinux, "-initrd", files.Initramfs, "-append", "console=ttyS0 quiet panic=-1",
		"-serial", "stdio", "-drive", "file="+i.Path+",format=raw,if=none,id=a,snapshot=on,file.locking=off", "-device", "virtio-blk-pci,drive=a",
		"-drive", "file="+files.Modules+",format=raw,if=none,id=b,readonly=on,file.locking=off", "-device", "virtio-blk-pci,drive=b",
		"-netdev", "socket,id=n,udp=127.0.0.1:1,localaddr=127.0.0.1:0", "-device", "virtio-net-pci,netdev=n,romfile=")
	out, err := cmd.CombinedOutput()
	said := string(out)
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, said)
	}
	for _, want := range []string{
		"SAW release " + k.Release, "SAW cards 1", `"modprobe overlay && grep -c overlay /proc/filesystems" "1" <nil>`,
		`"su dev -c 'sudo -n id -u' 2>/dev/null" "0" <nil>`, `"wc -c < /etc/machine-id" "0" <nil>`, `"ls /etc/ssh | grep -c host_key" "0"`, "BOOT-OK",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(said)
	}
}
