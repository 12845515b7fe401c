package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/guest"
)

// The tests in this file's company boot real VMs. They need:
//
//	BANGER_TEST_KERNEL   an unpacked kernel package: boot/vmlinuz-*, lib/modules/*
//	BANGER_TEST_ROOTFS   a tar of a root tree with systemd (for some tests)
//	BANGER_TEST_BUSYBOX  a static busybox (default: /bin/busybox)
//
// and QEMU and mke2fs. What is missing makes them skip.

// early are the modules the rig puts in the initramfs, with what they depend on.
func early() (order, late []string) {
	return []string{"virtio_pci", "virtio_blk", "virtio_console"}, []string{"virtio_net", "virtio-rng"}
}

type testKernel struct {
	image, modules, release string
}

func needKernel(t testing.TB) testKernel {
	t.Helper()
	dir := os.Getenv("BANGER_TEST_KERNEL")
	if dir == "" {
		t.Skip("BANGER_TEST_KERNEL does not name an unpacked kernel package")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("QEMU is not installed")
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		t.Skipf("%d kernels in %s/boot, want one", len(images), dir)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return testKernel{image: images[0], modules: filepath.Join(dir, "lib", "modules", release), release: release}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// buildAgent compiles the agent as it ships.
func buildAgent(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "banger-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, "banger/cmd/banger-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, b)
	}
	return out
}

// cpio writes an archive in the format of an initramfs.
type cpio struct {
	bytes.Buffer
	ino int
}

func (c *cpio) add(name string, mode uint32, rdev [2]int, data []byte) {
	c.ino++
	fmt.Fprintf(c, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name)+1, 0)
	c.WriteString(name)
	c.WriteByte(0)
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}

// buildInitramfs makes the initramfs of package boot's contract.
func buildInitramfs(t testing.TB, k testKernel, agent string) string {
	t.Helper()
	var c cpio
	for _, d := range []string{"dev", "proc", "sys", "run", "newroot", "modules"} {
		c.add(d, 0o40755, [2]int{}, nil)
	}
	c.add("dev/console", 0o20600, [2]int{5, 1}, nil)
	bin, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	c.add("init", 0o100755, [2]int{}, bin)
	done := map[string]bool{}
	order, late := early()
	for list, names := range map[string][]string{"order": order, "order-late": late} {
		var b strings.Builder
		for _, n := range names {
			addModule(t, &c, k, n, done, &b)
		}
		c.add("modules/"+list, 0o100644, [2]int{}, []byte(b.String()))
	}
	c.add("TRAILER!!!", 0, [2]int{}, nil)
	out := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(out, c.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

// addModule adds a module after those it depends on. Both lists get what they
// need; loading one twice is harmless.
func addModule(t testing.TB, c *cpio, k testKernel, name string, done map[string]bool, order *strings.Builder) {
	t.Helper()
	var found string
	_ = filepath.Walk(k.modules, func(p string, _ os.FileInfo, err error) error {
		base := strings.TrimSuffix(filepath.Base(p), ".ko")
		if err == nil && strings.HasSuffix(p, ".ko") && strings.ReplaceAll(base, "-", "_") == strings.ReplaceAll(name, "-", "_") {
			found = p
		}
		return nil
	})
	if found == "" {
		return // built in
	}
	f, err := elf.Open(found)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if deps, ok := strings.CutPrefix(field, "depends="); ok {
			for dep := range strings.SplitSeq(deps, ",") {
				if dep != "" {
					addModule(t, c, k, dep, done, order)
				}
			}
		}
	}
	order.WriteString(filepath.Base(found) + "\n")
	if !done[found] {
		done[found] = true
		data, err := os.ReadFile(found)
		if err != nil {
			t.Fatal(err)
		}
		c.add("modules/"+filepath.Base(found), 0o100644, [2]int{}, data)
	}
}

// busyboxRoot makes a root disk with nothing but busybox in it.
func busyboxRoot(t testing.TB) string {
	t.Helper()
	busybox := os.Getenv("BANGER_TEST_BUSYBOX")
	if busybox == "" {
		busybox = "/bin/busybox"
	}
	if f, err := elf.Open(busybox); err != nil || f.Section(".interp") != nil {
		t.Skip("there is no static busybox; BANGER_TEST_BUSYBOX may name one")
	}
	tree := t.TempDir()
	for _, d := range []string{"bin", "etc", "root", "tmp", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", busybox, filepath.Join(tree, "bin/busybox"))
	for _, n := range []string{"sh", "cat", "echo", "sleep", "true", "dd", "sha256sum", "ls", "id", "grep", "tail", "ip", "stty", "kill", "head", "ps", "mount", "touch", "df", "cp", "pwd", "date", "seq", "hostname", "init"} {
		dir := "bin"
		if n == "init" {
			dir = "sbin" // busybox's name that must not be taken for an init
			_ = os.MkdirAll(filepath.Join(tree, dir), 0o755)
		}
		if err := os.Symlink("/bin/busybox", filepath.Join(tree, dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(tree, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/home/dev:/bin/sh\n")
	write("etc/group", "root:x:0:\ndev:x:1000:\nwheel:x:10:dev\n")
	return makeDisk(t, tree, "64M", "300M")
}

// debianRoot makes a root disk of BANGER_TEST_ROOTFS.
func debianRoot(t testing.TB) string {
	t.Helper()
	tarball := os.Getenv("BANGER_TEST_ROOTFS")
	if tarball == "" {
		t.Skip("BANGER_TEST_ROOTFS does not name a tar of a root tree")
	}
	if os.Geteuid() != 0 {
		t.Skip("unpacking a root tree needs root")
	}
	tree := t.TempDir()
	run(t, "tar", "-xpf", tarball, "-C", tree, "--numeric-owner")
	return makeDisk(t, tree, "1500M", "3G")
}

// makeDisk makes an ext4 file of one size and then enlarges the disk, not the
// file system.
func makeDisk(t testing.TB, tree, fs, disk string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "root.img")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", tree, out, fs)
	run(t, "truncate", "-s", disk, out)
	return out
}

// testVM is a running QEMU.
type testVM struct {
	t       testing.TB
	dir     string
	console string
	cmd     *exec.Cmd
	started time.Time
	done    chan struct{}
}

type vmConfig struct {
	root    string
	append  string
	modules bool // with the disk of the kernel's modules
	counted bool // the guest's clock counts its instructions, whatever else the host does
}

// boot starts a VM.
func bootVM(t testing.TB, c vmConfig) *testVM {
	t.Helper()
	k := needKernel(t)
	initramfs := buildInitramfs(t, k, buildAgent(t))
	dir, err := os.MkdirTemp("", "bvm") // short: a socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	vm := &testVM{t: t, dir: dir, console: filepath.Join(dir, "console"), done: make(chan struct{})}
	accel := []string{"-accel", "tcg,thread=multi,tb-size=128", "-smp", "2"}
	if c.counted {
		accel = []string{"-accel", "tcg,thread=single,tb-size=128", "-smp", "1", "-icount", "shift=0,sleep=off"}
	}
	args := append(accel,
		"-machine", "q35,hpet=off,smm=off,vmport=off,sata=off", "-cpu", "Nehalem",
		"-m", "512", "-nodefaults", "-display", "none", "-no-user-config", "-no-reboot",
		"-serial", "file:console", "-kernel", k.image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 "+c.append,
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name="+guest.PortName,
		"-netdev", "socket,id=net,udp=127.0.0.1:1,localaddr=127.0.0.1:0", "-device", "virtio-net-pci,netdev=net,romfile=",
	)
	if c.root != "" {
		args = append(args, "-drive", "if=none,id=root,format=raw,cache=unsafe,file="+c.root, "-device", "virtio-blk-pci,drive=root,serial=root")
	}
	if c.modules {
		mods := makeDisk(t, k.modules, "200M", "200M")
		args = append(args, "-drive", "if=none,id=mods,format=raw,readonly=on,file="+mods, "-device", "virtio-blk-pci,drive=mods,serial=modules")
	}
	vm.cmd = exec.Command("qemu-system-x86_64", args...)
	vm.cmd.Dir = dir
	vm.cmd.Stderr = os.Stderr
	vm.started = time.Now()
	if err := vm.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = vm.cmd.Wait()
		close(vm.done)
	}()
	t.Cleanup(func() {
		_ = vm.cmd.Process.Kill()
		<-vm.done
		if t.Failed() {
			b, _ := os.ReadFile(vm.console)
			t.Logf("console:\n%s", b[max(0, len(b)-8000):])
		}
	})
	return vm
}

func (vm *testVM) context(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(vm.t.Context(), limit)
	vm.t.Cleanup(cancel)
	return ctx
}

// dial connects to the port; QEMU makes the socket before the guest starts.
func (vm *testVM) dial() net.Conn {
	vm.t.Helper()
	path := filepath.Join(vm.dir, "agent.sock")
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn
		}
		select {
		case <-vm.done:
			vm.t.Fatal("QEMU ended")
		case <-tick.C:
		}
	}
}

func (vm *testVM) connect() *guest.Session {
	vm.t.Helper()
	s, err := guest.Connect(vm.context(2*time.Minute), vm.dial())
	if err != nil {
		vm.t.Fatal(err)
	}
	vm.t.Cleanup(func() { _ = s.Close() })
	return s
}

// call makes one request that must succeed.
func (vm *testVM) call(s *guest.Session, r guest.Request) guest.Control {
	vm.t.Helper()
	ctx := vm.context(5 * time.Minute) // the machine may be busy with other things
	conn, err := s.Open(ctx)
	if err != nil {
		vm.t.Fatal(err)
	}
	c, err := guest.Call(ctx, conn, r)
	if err != nil {
		vm.t.Fatalf("%s: %v", r.Kind, err)
	}
	return c
}

// exec runs a command and returns what it printed.
func (vm *testVM) exec(s *guest.Session, e guest.Exec, in io.Reader) (guest.ExitStatus, string, error) {
	vm.t.Helper()
	ctx := vm.context(2 * time.Minute)
	conn, err := s.Open(ctx)
	if err != nil {
		vm.t.Fatal(err)
	}
	var out bytes.Buffer
	e.Stdin = in != nil
	st, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdin: in, Stdout: &out, Stderr: &out})
	return st, out.String(), err
}

// sh runs a shell line that must succeed.
func (vm *testVM) sh(s *guest.Session, line string) string {
	vm.t.Helper()
	st, out, err := vm.exec(s, guest.Exec{Args: []string{"sh", "-c", line}}, nil)
	if err != nil || st.Code != 0 {
		vm.t.Fatalf("%s: %v %v\n%s", line, st, err, out)
	}
	return strings.TrimSpace(out)
}

// tarList lists a tar with its contents and what must be kept; owners are not.
func tarList(t testing.TB, tarball []byte) string {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(tarball))
	var lines []string
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %c %o %d %s %x", h.Name, h.Typeflag, h.Mode, h.ModTime.UnixNano(), h.Linkname, sum.Sum(nil)[:4]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
