//go:build e2e

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// image and kernel are what `image show --json` and `kernel show --json` print, as
// far as tests look at it.
type image struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Managed   bool     `json:"managed"`
	Path      string   `json:"path"`
	SizeBytes int64    `json:"size_bytes"`
	User      string   `json:"user"`
	UsedBy    []string `json:"used_by"`
}

type kernel struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Release string   `json:"release"`
	Vmlinux string   `json:"vmlinux"`
	BzImage string   `json:"bzimage"`
	Modules string   `json:"modules"`
	UsedBy  []string `json:"used_by"`
}

func images(t *testing.T, w *world) []image {
	t.Helper()
	var all []image
	w.decode(t, &all, "image", "list", "--json")
	return all
}

func kernels(t *testing.T, w *world) []kernel {
	t.Helper()
	var all []kernel
	w.decode(t, &all, "kernel", "list", "--json")
	return all
}

// firstUse lets two runs at once fetch the kernel and the image on a machine that
// has neither. They are kept between runs, so mostly there is nothing to do.
func firstUse(t *testing.T, w *world) {
	t.Helper()
	if len(images(t, w)) > 0 && len(kernels(t, w)) > 0 {
		return
	}
	t.Log("fetching kernel and image")
	one := start(t, w.command("vm", "run", "--rm", "--name", "e2e-first-1", "--", "echo", "one"))
	two := start(t, w.command("vm", "run", "--rm", "--name", "e2e-first-2", "--", "echo", "two"))
	for want, r := range map[string]*running{"one\n": one, "two\n": two} {
		<-r.done // making the image takes minutes; the suite's own limit bounds it
		if r.code != 0 || r.out.String() != want {
			t.Errorf("the first run: code %d, stdout %q, stderr: %s", r.code, r.out, r.err)
		}
	}
	if t.Failed() {
		w.explain(t)
		t.FailNow()
	}
	if i, k := images(t, w), kernels(t, w); len(i) != 1 || len(k) != 1 {
		t.Fatalf("two runs at once made %d images and %d kernels, want one of each", len(i), len(k))
	}
	w.noVM(t, "e2e-first-1")
	w.noVM(t, "e2e-first-2")
}

func TestDefaultImageAndKernel(t *testing.T) {
	w := s.main
	w.fetch(t)
	var img image
	w.decode(t, &img, "image", "show", "--json", "debian")
	if img.Name != "debian" || !img.Managed || img.User != "dev" || img.SizeBytes < 1<<30 {
		t.Errorf("the default image is %+v", img)
	}
	var k kernel
	w.decode(t, &k, "kernel", "show", "--json", "debian")
	if k.Name != "debian" || k.Release == "" || k.Modules == "" || k.Vmlinux == "" {
		t.Errorf("the default kernel is %+v", k)
	}
	if text := w.ok(t, "image", "list"); !strings.Contains(text, "debian") || !strings.HasPrefix(text, "NAME") {
		t.Errorf("image list prints:\n%s", text)
	}
	if text := w.ok(t, "kernel", "list"); !strings.Contains(text, k.Release) {
		t.Errorf("kernel list prints:\n%s", text)
	}
	if text := w.ok(t, "image", "show", "debian"); !strings.Contains(text, "debian") {
		t.Errorf("image show prints:\n%s", text)
	}
	// What is there already is not made again.
	w.ok(t, "kernel", "pull", "debian")
	w.ok(t, "image", "pull", "debian")
	var again image
	w.decode(t, &again, "image", "show", "--json", "debian")
	if again.ID != img.ID {
		t.Errorf("a second pull made another image: %s, before %s", again.ID, img.ID)
	}
}

func TestImageAndKernelErrors(t *testing.T) {
	w := s.main
	w.fetch(t)
	w.fails(t, 1, []string{`"debain"`, "debian"}, "vm", "create", "--name", "e2e-none", "--image", "debain")
	w.fails(t, 1, []string{`"debain"`, "debian"}, "vm", "create", "--name", "e2e-none", "--kernel", "debain")
	w.fails(t, 1, []string{"nosuch"}, "image", "show", "nosuch")
	w.fails(t, 1, []string{"nosuch"}, "image", "rm", "nosuch")
	w.fails(t, 1, []string{"nosuch"}, "image", "pull", "nosuch")
	w.fails(t, 1, []string{"nosuch"}, "kernel", "show", "nosuch")
	w.fails(t, 1, []string{"nosuch"}, "kernel", "rm", "nosuch")
	w.fails(t, 1, []string{"nosuch"}, "kernel", "pull", "nosuch")
	w.fails(t, 1, []string{"/nonexistent/rootfs.ext4"}, "image", "register", "--rootfs", "/nonexistent/rootfs.ext4", "e2e-bad")
	w.fails(t, 1, []string{"ext4"}, "image", "register", "--rootfs", filepath.Join(s.bin, "banger"), "e2e-bad")
	w.fails(t, 1, []string{"/nonexistent"}, "kernel", "import", "--from", "/nonexistent", "e2e-bad")
	w.fails(t, 1, []string{"kernel"}, "kernel", "import", "--from", t.TempDir(), "e2e-bad")
	// In use: the VM's disk is a view of the image.
	v := sharedVM(t)
	w.fails(t, 1, []string{v.Name}, "image", "rm", "debian")
	w.fails(t, 1, []string{v.Name}, "kernel", "rm", "debian")
	w.noVM(t, "e2e-none")
}

// ext4 makes a file system of a tree, in a file that lives as long as the test.
func ext4(t *testing.T, name, tree string) string {
	t.Helper()
	file := filepath.Join(s.scratch, name+".ext4")
	t.Cleanup(func() { _ = os.Remove(file) })
	makeExt4(t, tree, file)
	return file
}

func makeExt4(t *testing.T, tree, file string) {
	t.Helper()
	cmd := exec.Command(tool(t, "mke2fs"), "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", tree, file, "96M")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
}

// busybox makes the tree of a system without an init.
func busybox(t *testing.T, tree string) {
	t.Helper()
	for _, dir := range []string{"bin", "etc", "tmp", "root"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := tool(t, "busybox")
	place(t, program, filepath.Join(tree, "bin/busybox"))
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		t.Fatalf("%s --list: %v", program, err)
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
}

// small are the flags of a VM that boots in a moment and then rests: for tests
// that do not care what runs in it.
func small(t *testing.T, w *world) []string {
	t.Helper()
	w.fetch(t)
	s.small.Do(func() {
		tree := t.TempDir()
		busybox(t, tree)
		file := filepath.Join(s.scratch, "small.ext4")
		makeExt4(t, tree, file)
		w.ok(t, "image", "register", "--rootfs", file, "e2e-small")
	})
	return []string{"--image", "e2e-small", "--disk", "128M", "--memory", "192M"}
}

// rootfs makes an ext4 file of a tree and registers it as an image.
func rootfs(t *testing.T, w *world, name, tree string) {
	t.Helper()
	w.fetch(t)
	file := ext4(t, name, tree)
	t.Cleanup(func() { w.run(t, "image", "rm", name) })
	w.ok(t, "image", "register", "--rootfs", file, name)
	var img image
	w.decode(t, &img, "image", "show", "--json", name)
	if img.Managed || img.Path != file {
		t.Fatalf("the registered image is %+v", img)
	}
}

// TestImageWithoutInit boots an image that holds busybox and nothing else.
func TestImageWithoutInit(t *testing.T) {
	w := s.main
	tree := t.TempDir()
	busybox(t, tree)
	rootfs(t, w, "e2e-busybox", tree)
	v := w.create(t, "e2e-busybox", "--image", "e2e-busybox", "--disk", "256M", "--memory", "192M")
	if got := w.exec(t, v, "/bin/busybox", "id", "-u"); got != "0" {
		t.Errorf("commands run as uid %s, want 0: the image names no user", got)
	}
	if got := w.exec(t, v, "/bin/sh", "-c", "cat /proc/1/comm"); !strings.Contains(got, "agent") && got != "init" {
		t.Errorf("pid 1 is %q, want the agent", got)
	}
	if got := w.exec(t, v, "sh", "-c", "busybox hostname"); got != "e2e-busybox" {
		t.Errorf("the host name is %q", got)
	}
	// The agent reaps what is orphaned.
	w.exec(t, v, "sh", "-c", "(busybox true & exec busybox true) & wait")
	if got := w.exec(t, v, "sh", "-c", "busybox grep -l '^State:.Z' /proc/[0-9]*/status; busybox true"); got != "" {
		t.Errorf("zombies are left: %s", got)
	}
	w.exec(t, v, "sh", "-c", "echo kept > /root/file")
	w.fails(t, 127, []string{"nosuch"}, "exec", v.ID, "--", "nosuch")
	w.ok(t, "vm", "stop", v.ID)
	w.ok(t, "vm", "start", "--wait", "system", v.ID)
	if got := w.exec(t, v, "/bin/busybox", "cat", "/root/file"); got != "kept" {
		t.Errorf("the file holds %q after a stop", got)
	}
	if got := w.exec(t, v, "/bin/sh", "-c", "busybox df -m / | busybox tail -1 | busybox awk '{ print ($2 > 200) }'"); got != "1" {
		t.Error("the file system did not grow to the disk's size")
	}
	w.fails(t, 1, []string{v.Name}, "image", "rm", "e2e-busybox")
}

// TestImageWithOneProgram boots an image without even a shell.
func TestImageWithOneProgram(t *testing.T) {
	w := s.main
	tree := t.TempDir()
	place(t, filepath.Join(s.bin, "banger"), filepath.Join(tree, "program"))
	rootfs(t, w, "e2e-one", tree)
	v := w.create(t, "e2e-one", "--image", "e2e-one", "--disk", "128M", "--memory", "192M")
	if got, want := w.exec(t, v, "/program", "version"), w.ok(t, "version"); got != want {
		t.Errorf("the program printed %q, want %q", got, want)
	}
	w.fails(t, 127, []string{"/bin/true"}, "exec", v.ID, "--", "/bin/true")
	w.fails(t, 127, []string{"sh"}, "exec", v.ID, "--", "sh", "-c", "true")
	shell := w.command("shell", v.ID)
	shell.Stdin = strings.NewReader("exit 0\n")
	r := call(t, shell)
	r.check(t, 127, "/bin/sh")
	if !strings.Contains(r.stderr, "try: ") {
		t.Errorf("no hint: %s", r)
	}
	w.ok(t, "vm", "stop", v.ID)
}

// kernelDir makes a directory to import a kernel from: the default kernel's image
// and the modules of its early boot.
func kernelDir(t *testing.T) string {
	t.Helper()
	var k kernel
	s.main.decode(t, &k, "kernel", "show", "--json", "debian")
	dir := t.TempDir()
	place(t, k.Vmlinux, filepath.Join(dir, "vmlinux"))
	modules := filepath.Join(dir, "lib/modules", k.Release, "kernel")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	early, err := filepath.Glob(filepath.Join(filepath.Dir(k.Vmlinux), "early/*.ko*"))
	if err != nil || len(early) == 0 {
		t.Fatalf("the default kernel has no early modules: %v", err)
	}
	for _, m := range early {
		place(t, m, filepath.Join(modules, filepath.Base(m)))
	}
	return dir
}

// TestKernelImport boots a kernel from a directory.
func TestKernelImport(t *testing.T) {
	w := s.main
	w.fetch(t)
	w.fails(t, 1, []string{`"debian"`}, "kernel", "import", "--from", kernelDir(t), "debian")
	if got := w.ok(t, "kernel", "import", "--from", kernelDir(t), "e2e-kernel"); got != "e2e-kernel" {
		t.Errorf("import printed %q", got)
	}
	t.Cleanup(func() { w.run(t, "kernel", "rm", "e2e-kernel") })
	var k, imported kernel
	w.decode(t, &k, "kernel", "show", "--json", "debian")
	w.decode(t, &imported, "kernel", "show", "--json", "e2e-kernel")
	if imported.Release != k.Release || imported.Vmlinux == k.Vmlinux {
		t.Errorf("imported %+v, want release %s in files of its own", imported, k.Release)
	}
	v := w.create(t, "e2e-imported", append(small(t, w), "--kernel", "e2e-kernel", "--net", "none")...)
	if got := w.exec(t, v, "uname", "-r"); got != k.Release {
		t.Errorf("the guest runs %s", got)
	}
	w.fails(t, 1, []string{"e2e-imported"}, "kernel", "rm", "e2e-kernel")
	w.ok(t, "vm", "delete", "-f", "e2e-imported")
	w.ok(t, "kernel", "rm", "e2e-kernel")
	w.fails(t, 1, []string{"e2e-kernel"}, "kernel", "show", "e2e-kernel")
}

// place copies an executable.
func place(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, raw, 0o755); err != nil {
		t.Fatal(err)
	}
}
