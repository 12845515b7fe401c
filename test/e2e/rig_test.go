//go:build e2e

package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
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

	"banger/internal/daemon/imagemgr/initramfs"
	"banger/internal/daemon/qemuproc"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

// boot is what a guest of the suite boots from: the default kernel, and the
// initramfs of that kernel and of the agent under test.
type boot struct {
	vmlinux, modules, initramfs string
}

func bootFiles(t *testing.T) boot {
	t.Helper()
	s.main.fetch(t)
	var k kernel
	s.main.decode(t, &k, "kernel", "show", "--json", "debian")
	early := filepath.Join(filepath.Dir(k.Vmlinux), paths.EarlyModulesDir)
	archive, err := initramfs.New(t.TempDir()).Ensure(t.Context(), early, filepath.Join(s.bin, "banger-agent"))
	if err != nil {
		t.Fatal(err)
	}
	return boot{vmlinux: k.Vmlinux, modules: k.Modules, initramfs: archive}
}

// defaultRootfs is the default image's file. Nothing may write to it.
func defaultRootfs(t *testing.T) string {
	t.Helper()
	s.main.fetch(t)
	var img image
	s.main.decode(t, &img, "image", "show", "--json", "debian")
	return img.Path
}

// bareRoot makes a root disk with nothing but busybox in it and two users; its
// file system is smaller than the disk.
func bareRoot(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	busybox(t, tree)
	for _, dir := range []string{"usr/lib", "sbin"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"lib": "usr/lib", "sbin/init": "/bin/busybox"} { // which must not be taken for an init
		if err := os.Symlink(to, filepath.Join(tree, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(tree, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	// An id that is not the one of who makes the tree.
	write(t, filepath.Join(tree, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\ndev:x:54321:54321::/home/dev:/bin/sh\n")
	write(t, filepath.Join(tree, "etc/group"), "root:x:0:\ndev:x:54321:\nwheel:x:10:dev\n")
	disk := ext4(t, "bare", tree)
	if err := os.Truncate(disk, 300<<20); err != nil {
		t.Fatal(err)
	}
	return disk
}

// bareVM is a QEMU without a daemon: the test itself is the host at the other end
// of the guest channel, and may be a bad one.
type bareVM struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	started time.Time
	done    chan struct{}
}

type bareConfig struct {
	root     string
	readOnly bool // what the guest writes to the root disk is thrown away
	modules  bool // with the disk of the kernel's modules
}

func bootBare(t *testing.T, c bareConfig) *bareVM {
	t.Helper()
	files := bootFiles(t)
	dir, err := os.MkdirTemp(s.scratch, "bare-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// It listens before QEMU runs: who connects early waits.
	socket, err := dirsock.Listen(dir, paths.AgentSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	vm := &bareVM{t: t, dir: dir, done: make(chan struct{})}
	// The product's command line: without what it says of the time stamp counter, one
	// boot in some hundred never ends on a busy host.
	args, line := []string{"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "Nehalem"}, qemuproc.Cmdline(hypervisor.AccelTCG, "")
	if s.main.hardware(t) {
		args, line = []string{"-accel", "kvm", "-cpu", "host"}, qemuproc.Cmdline(hypervisor.AccelKVM, "")
	}
	args = append(args,
		"-machine", "q35,hpet=off,smm=off,vmport=off,sata=off", "-smp", "2", "-m", "512", "-nodefaults", "-display", "none", "-no-user-config", "-no-reboot",
		"-serial", "file:"+paths.ConsoleLog, "-kernel", files.vmlinux, "-initrd", files.initramfs,
		"-append", line,
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=3,server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name="+guest.PortName,
		"-netdev", "socket,id=net,udp=127.0.0.1:1,localaddr=127.0.0.1:0", "-device", "virtio-net-pci,netdev=net,romfile=",
	)
	if c.root != "" {
		mode := ""
		if c.readOnly {
			mode = "snapshot=on,"
		}
		args = append(args, "-drive", "if=none,id=root,format=raw,cache=unsafe,"+mode+"file="+c.root, "-device", "virtio-blk-pci,drive=root,serial=root")
	}
	if c.modules {
		args = append(args, "-drive", "if=none,id=mods,format=raw,readonly=on,file="+files.modules, "-device", "virtio-blk-pci,drive=mods,serial=modules")
	}
	vm.cmd = exec.Command(tool(t, "qemu-system-x86_64"), args...)
	vm.cmd.Dir, vm.cmd.Stderr, vm.cmd.ExtraFiles = dir, os.Stderr, []*os.File{socket}
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
			t.Logf("the console ends with:\n%s", tail(vm.console(), 8<<10))
		}
	})
	return vm
}

func (vm *bareVM) console() string { return filepath.Join(vm.dir, paths.ConsoleLog) }

func (vm *bareVM) context(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(vm.t.Context(), limit)
	vm.t.Cleanup(cancel)
	return ctx
}

// dial connects to the port.
func (vm *bareVM) dial() net.Conn {
	vm.t.Helper()
	conn, err := dirsock.Dial(vm.context(time.Minute), vm.dir, paths.AgentSocket)
	if err != nil {
		vm.t.Fatal(err)
	}
	return conn
}

func (vm *bareVM) connect() *guest.Session {
	vm.t.Helper()
	s, err := guest.Connect(vm.context(2*time.Minute), vm.dial())
	if err != nil {
		vm.t.Fatal(err)
	}
	vm.t.Cleanup(func() { _ = s.Close() })
	return s
}

// call makes one request that must succeed.
func (vm *bareVM) call(s *guest.Session, r guest.Request) guest.Control {
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
func (vm *bareVM) exec(s *guest.Session, e guest.Exec, in io.Reader) (guest.ExitStatus, string, error) {
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
func (vm *bareVM) sh(s *guest.Session, line string) string {
	vm.t.Helper()
	st, out, err := vm.exec(s, guest.Exec{Args: []string{"sh", "-c", line}}, nil)
	if err != nil || st.Code != 0 {
		vm.t.Fatalf("%s: %v %v\n%s", line, st, err, out)
	}
	return strings.TrimSpace(out)
}

// tarList lists a tar with its contents and what must be kept; owners are not.
func tarList(t *testing.T, tarball []byte) string {
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
