package debian

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// daemonEnv makes this test program play a daemon that dies in the middle.
const daemonEnv = "BANGER_TEST_SANDBOX_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		playDaemon(dir)
		return
	}
	os.Exit(m.Run())
}

// playDaemon runs a program that never ends by itself and says when it runs.
func playDaemon(dir string) {
	s, err := newSandbox(context.Background(), dir)
	if err != nil {
		fmt.Println("skip", err)
		return
	}
	_, err = s.run(context.Background(), func(line string) { fmt.Println(line) },
		"sh", "-c", "echo started; sleep 3000 & sleep 3000")
	fmt.Println("ended", err)
}

func needSandbox(t *testing.T) *sandbox {
	t.Helper()
	dir := filepath.Join(t.TempDir(), buildDir)
	s, err := newSandbox(t.Context(), dir)
	if errors.Is(err, errdefs.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSandboxIsRoot(t *testing.T) {
	s := needSandbox(t)
	said, err := s.run(t.Context(), nil, "sh", "-c", `id -u; pwd; mkdir -p own/er; chown 33:33 own/er; chmod 700 own; echo $TMPDIR`)
	if err != nil || len(said) != 3 || said[0] != "0" || said[1] != s.inside || said[2] != s.inside {
		t.Fatalf("it says %q, %v", said, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "own")); err != nil {
		t.Error("what it makes is not in the directory:", err)
	}
	if err := Remove(t.Context(), filepath.Dir(s.dir)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(s.dir)); !os.IsNotExist(err) {
		t.Error("removing left something:", err)
	}
}

func TestSandboxFailureIsKept(t *testing.T) {
	s := needSandbox(t)
	said, err := s.run(t.Context(), nil, "sh", "-c", "echo 'E: it broke' >&2; exit 7")
	var e *sysexec.Error
	if !errors.As(err, &e) || e.Code <= 0 || len(said) == 0 || said[0] != "E: it broke" {
		t.Errorf("got %q, %v", said, err)
	}
	// What the wrapping adds for an ordinary user says less.
	if err := explain(t.Context(), "try", said, err); !strings.HasSuffix(err.Error(), "E: it broke") {
		t.Errorf("explained as %v", err)
	}
}

// waitGone waits until no process has mark in its command line.
func waitGone(t *testing.T, mark string) {
	t.Helper()
	for _, pid := range processes(mark) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 20_000)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(poll, 20_000)
		}
		_ = unix.Close(fd)
		if n != 1 || err != nil {
			t.Errorf("process %d lives on", pid)
		}
	}
	if left := processes(mark); len(left) > 0 {
		t.Errorf("processes %v live on", left)
	}
}

func processes(mark string) []int {
	entries, _ := os.ReadDir("/proc")
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.Contains(cwd, mark) || strings.Contains(string(line), mark) {
			out = append(out, pid)
		}
	}
	return out
}

func TestCancelEndsEverything(t *testing.T) {
	s := needSandbox(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	mark := "4321." + strconv.Itoa(os.Getpid())
	began := time.Now()
	said, err := s.run(ctx, func(line string) {
		if line == "started" {
			cancel(why)
		}
	}, "sh", "-c", "echo started; trap '' TERM; sleep "+mark+" & sleep "+mark)
	if err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("ended with %v after %v", err, time.Since(began))
	}
	if err := explain(ctx, "try", said, err); !errors.Is(err, why) || strings.Contains(err.Error(), "signal") {
		t.Errorf("explained as %v", err)
	}
	waitGone(t, mark)
}

func TestNothingOutlivesTheDaemon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outlive-"+strconv.Itoa(os.Getpid()), buildDir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), daemonEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.HasPrefix(line, "skip") {
		t.Skip(line)
	}
	if line != "started\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	mark := filepath.Dir(dir)
	if len(processes(mark)) == 0 {
		t.Fatal("no process found; the test proves nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitGone(t, mark)
}

func TestExplain(t *testing.T) {
	failed := &sysexec.Error{Program: "mmdebstrap", Code: 25, Err: errors.New("exit status 25")}
	for said, want := range map[string]struct {
		class errdefs.Class
		hint  string
	}{
		"dpkg: error: write: No space left on device":                          {errdefs.ClassExhausted, "space"},
		"mke2fs: Could not allocate block in ext2 filesystem while populating": {errdefs.ClassExhausted, "space"},
		"W: GPG error: NO_PUBKEY 6ED0E7B82643E131":                             {errdefs.ClassFailedPrecondition, "debian-archive-keyring"},
		"E: Failed to fetch http://m/x  Temporary failure resolving 'm'":       {errdefs.ClassUnavailable, "network"},
		"E: Unable to locate package linux-image-cloud-amd64":                  {errdefs.ClassNotFound, "release"},
		"E: Release file for http://m/InRelease is expired (invalid since 3d)": {errdefs.ClassFailedPrecondition, "clock"},
		"W: no entry in /etc/subuid for somebody":                              {errdefs.ClassUnsupported, "subuid"},
		"something nobody has thought of":                                      {errdefs.ClassInternal, ""},
	} {
		err := explain(t.Context(), "make it", []string{"first line", said}, failed)
		if errdefs.ClassOf(err) != want.class || !strings.Contains(errdefs.HintOf(err), want.hint) {
			t.Errorf("%q: %v, hint %q", said, err, errdefs.HintOf(err))
		}
	}
}

type recorder struct{ strings.Builder }

func (r *recorder) Stage(s string)                    { fmt.Fprintf(r, "[%s]", s) }
func (r *recorder) Detail(s string)                   {}
func (r *recorder) Count(done, total int64, u string) { fmt.Fprintf(r, " %d/%d", done, total) }

func TestTracker(t *testing.T) {
	r := &recorder{}
	tr := &tracker{p: r, stage: "resolve"}
	l := &lines{each: tr.line}
	_, _ = io.WriteString(l, `I: running apt-get update...
Get:1 http://deb.example.org/debian bookworm InRelease [151 kB]
Get:4 http://deb.example.org/debian bookworm/main amd64 Packages [8790 kB]
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.example.org/debian bookworm/main amd64 gcc-12-base amd64 12.2 [37 kB]`+"\rGet:2 http://deb.example.org/debian bookworm/main amd64 libc6 amd64 2.36 [2 MB]\n"+`Unpacking libc6 (2.36) ...
Setting up libc6 (2.36) ...
Setting up gcc-12-base (12.2) ...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.example.org/debian bookworm/main amd64 less amd64 590 [37 kB]
Setting up less (590) ...
`)
	if want := "[download] 1/2 2/2[install] 1/2 2/2 3/3"; r.String() != want {
		t.Errorf("got  %s\nwant %s", r.String(), want)
	}
}

func TestLinesAreBounded(t *testing.T) {
	l := &lines{}
	for range 3 * keepLines {
		fmt.Fprintln(l, strings.Repeat("x", 3*maxLine))
	}
	_, _ = io.WriteString(l, strings.Repeat("y", 2*maxLine))
	last := l.last()
	if len(last) != keepLines || len(last[0]) > maxLine || !strings.HasPrefix(last[keepLines-1], "y") || len(last[keepLines-1]) > maxLine {
		t.Errorf("kept %d lines, the last of %d bytes", len(last), len(last[len(last)-1]))
	}
}

func TestOverlay(t *testing.T) {
	src := Sources{Suite: "trixie", Keyring: "/k", Archives: []Archive{{"http://m.example/debian", "trixie"}}}
	path := filepath.Join(t.TempDir(), "overlay.tar")
	now := time.Now()
	if err := writeOverlay(path, overlay(src, []string{`Acquire::Retries "3"`}), now); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]*tar.Header{}
	content := map[string]string{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if seen[h.Name] != nil || h.Uid != 0 || h.Gid != 0 || strings.HasPrefix(h.Name, "/") {
			t.Errorf("entry %+v", h)
		}
		for _, dir := range parents(h.Name) {
			if dir != "etc" && dir != "var" && dir != "etc/sudoers.d" && seen[dir+"/"] == nil && !strings.HasSuffix(h.Name, "/") {
				t.Errorf("%s comes before its directory %s", h.Name, dir)
			}
		}
		data, _ := io.ReadAll(tr)
		seen[h.Name], content[h.Name] = h, string(data)
	}
	if h := seen["etc/sudoers.d/dev"]; h == nil || h.Mode != 0o440 {
		t.Errorf("sudoers: %+v", h)
	}
	if h := seen["etc/.updated"]; h == nil || !h.ModTime.After(now) {
		t.Errorf(".updated: %+v", h)
	}
	if got := content["etc/apt/apt.conf.d/80banger"]; !strings.HasSuffix(got, "Acquire::Retries \"3\";\n") {
		t.Errorf("apt configuration: %s", got)
	}
	if h := seen["etc/systemd/system/apt-daily.timer"]; h == nil || h.Linkname != "/dev/null" {
		t.Errorf("a masked unit: %+v", h)
	}
}

func TestModulesImage(t *testing.T) {
	if _, err := sysexec.Look("mke2fs"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	size := 0
	for n := range 60 {
		sub := filepath.Join(tree, fmt.Sprintf("dir-%d", n%5))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		data := strings.Repeat("module", 3000*n)
		size += len(data)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("m%d.ko", n)), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 { // as a tree of an ordinary user's
		if err := os.Chown(filepath.Join(tree, "dir-1/m1.ko"), 1234, 1234); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "modules")
	if err := ModulesImage(t.Context(), tree, image, "6.1"); err != nil {
		t.Fatal(err)
	}
	tool := func(name string, args ...string) string {
		path, err := sysexec.Look(name)
		if err != nil {
			t.Fatal(err)
		}
		said, err := exec.Command(path, append(args, image)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, said)
		}
		return string(said)
	}
	tool("e2fsck", "-fn")
	for _, file := range []string{"/", "/dir-1", "/dir-1/m1.ko", "/dir-4/m59.ko"} {
		if got := tool("debugfs", "-R", "stat "+file); !strings.Contains(got, "User:     0   Group:     0") {
			t.Errorf("%s: %s", file, got)
		}
	}
	if got := tool("dumpe2fs", "-h"); strings.Contains(got, "has_journal") || !strings.Contains(got, "banger-modules") {
		t.Errorf("features: %s", got)
	}
	st, err := os.Stat(image)
	if err != nil || st.Size() > int64(size)*105/100+1<<20 || st.Mode().Perm() != 0o444 {
		t.Errorf("image of %d bytes for %d, mode %v, %v", st.Size(), size, st.Mode(), err)
	}
}
