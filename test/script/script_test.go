// Package script_test runs the scripts beside it: the real programs, a real socket
// and database, and the fake hypervisor, so no root and no virtual machine.
package script_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/sysexec"
)

var update = flag.Bool("update", false, "write what was printed into the scripts")

// programs is the directory of the programs under test, assets that of the files
// all scripts share.
var programs, assets string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "banger-script")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	assets = dir
	if err := prepare(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare builds the programs, unless they are given, and makes a kernel and a root
// filesystem: as much of both as anything looks at when no guest boots from them.
func prepare(dir string) error {
	if programs = os.Getenv("BANGER_TEST_BIN"); programs == "" {
		programs = filepath.Join(dir, "bin")
		build := exec.Command("go", "build", "-o", programs+"/",
			"-ldflags", "-s -w -X banger/internal/version.Version=v0-test", // stripped, as what is installed
			"banger/cmd/banger", "banger/cmd/bangerd", "banger/cmd/banger-agent")
		if overlay := os.Getenv("BANGER_TEST_OVERLAY"); overlay != "" {
			build.Args = append(build.Args[:2], append([]string{"-overlay", overlay}, build.Args[2:]...)...)
		}
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel", "vmlinux"), kernel("6.1.0-tiny"), 0o644); err != nil {
		return err
	}
	rootfs := filepath.Join(dir, "rootfs.ext4")
	mke2fs, err := sysexec.Look("mke2fs") // an ordinary user's PATH lacks it
	if err != nil {
		return err
	}
	if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", "-F", rootfs, "64M").CombinedOutput(); err != nil {
		return fmt.Errorf("make a root filesystem: %w\n%s", err, out)
	}
	return nil
}

// kernel is an ELF executable without anything in it but its name.
func kernel(release string) []byte {
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, field := range []any{
		uint16(2), uint16(62), uint32(1), uint64(0), uint64(0), uint64(0), // executable, x86-64
		uint32(0), uint16(64), uint16(0), uint16(0), uint16(0), uint16(0), uint16(0),
	} {
		_ = binary.Write(&b, binary.LittleEndian, field)
	}
	b.WriteString("Linux version " + release + " (nobody@nowhere) with virtio_blk and virtio_pci\n")
	return b.Bytes()
}

const config = `driver: fake
vm:
  image: mini
  kernel: tiny
  cpus: 1
  memory: 256M
  disk: 64M
  stop_timeout: 2s
`

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: ".", Setup: setup, UpdateScripts: *update, RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "world": world, "kill-daemon": killDaemon, "small-state": smallState,
			"image-config": imageConfig, "free-port": freePort, "listen": listen, "echoes": echoes, "echoes-own": echoesOwn,
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Geteuid() == 0, nil
		},
	})
}

// setup gives a script a state directory of its own, short enough for a socket.
func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "bs")
	if err != nil {
		return err
	}
	vars := map[string]string{
		"PATH":              programs + string(os.PathListSeparator) + os.Getenv("PATH"),
		"HOME":              filepath.Join(env.WorkDir, "home"),
		"BANGER_STATE_DIR":  filepath.Join(dir, "s"),
		"BANGER_CONFIG":     filepath.Join(env.WorkDir, "config.yaml"),
		"BANGER_SOCKET":     "",
		"NO_COLOR":          "1",
		"HTTPS_PROXY":       "http://127.0.0.1:1", // nobody: names of images may be on Docker Hub
		"TERM":              "xterm",
		"ASSETS":            assets,
		"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
		"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
	}
	for k, v := range vars {
		env.Setenv(k, v)
	}
	env.Defer(func() {
		end(env.T().(reporter), env.Getenv("BANGER_STATE_DIR"), env.Getenv("BANGER_CONFIG"))
		_ = unix.Unmount(env.Getenv("BANGER_STATE_DIR"), unix.MNT_DETACH) // of small-state
		_ = os.RemoveAll(dir)
	})
	if err := os.MkdirAll(vars["HOME"], 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(vars["BANGER_CONFIG"]); err == nil {
		return nil // the script brings its own
	}
	return os.WriteFile(vars["BANGER_CONFIG"], []byte(config), 0o644)
}

// reporter is what of a testing.T the end of a script needs.
type reporter interface {
	Errorf(string, ...any)
	Logf(string, ...any)
}

// end deletes the VMs of a state directory, stops its daemon, and fails the test if
// one of its processes is left.
func end(t reporter, state, config string) {
	banger := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(programs, "banger"), args...)
		cmd.Env = append(os.Environ(), "BANGER_STATE_DIR="+state, "BANGER_CONFIG="+config, "BANGER_SOCKET=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if _, err := banger("daemon", "status"); err == nil {
		ids, err := banger("vm", "list", "-q")
		if err != nil {
			t.Errorf("list what is left: %s", ids)
		}
		if list := strings.Fields(ids); len(list) > 0 {
			if out, err := banger(append([]string{"vm", "delete", "--force"}, list...)...); err != nil {
				t.Errorf("delete what is left: %s", out)
			}
		}
		if out, err := banger("daemon", "stop"); err != nil {
			t.Errorf("stop the daemon: %s", out)
		}
	}
	for _, pid := range processesOf(state) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		text := strings.ReplaceAll(string(cmdline), "\x00", " ")
		// The network helper outlives the daemon on purpose, and ends by itself a
		// while after its last VM.
		if !strings.Contains(text, "bangerd usernet") {
			t.Errorf("left behind: process %d: %s", pid, text)
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
	if log, err := os.ReadFile(filepath.Join(state, "bangerd.log")); err == nil {
		t.Logf("the daemon's log:\n%s", log)
	}
}

// processesOf lists the processes that work in, or were given, a state directory.
func processesOf(state string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if strings.Contains(string(cmdline), state) || strings.HasPrefix(cwd, state) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// smallState puts a small file system where the state directory will be:
//
//	small-state SIZE
func smallState(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: small-state SIZE")
	}
	state := ts.Getenv("BANGER_STATE_DIR")
	ts.Check(os.Mkdir(state, 0o700))
	ts.Check(unix.Mount("bs-small", state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size="+args[0]+",mode=700"))
}

// exits runs a program that must end with an exit code:
//
//	exits CODE PROGRAM ARG...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with %d, want %d", args[1], got, want)
	}
}

// freePort sets variables to ports that nobody listens on:
//
//	free-port VAR...
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: free-port VAR...")
	}
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer func() { _ = l.Close() }() // all at once: each is another one
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ts.Setenv(name, port)
	}
}

// listen takes a port of the host until the script ends:
//
//	listen PORT
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen PORT")
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
}

// echoes sends a line to a TCP address and checks that it comes back; negated, that
// nobody listens there:
//
//	[!] echoes ADDRESS PORT
func echoes(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: echoes ADDRESS PORT")
	}
	const line = "are you there?\n"
	addr := net.JoinHostPort(args[0], args[1])
	conn, err := net.Dial("tcp", addr)
	if neg {
		if !errors.Is(err, unix.ECONNREFUSED) {
			ts.Fatalf("somebody listens on %s: %v", addr, err)
		}
		return
	}
	ts.Check(err)
	defer func() { _ = conn.Close() }()
	ts.Check(conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(conn, line)
	ts.Check(err)
	ts.Check(conn.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(conn)
	ts.Check(err)
	if string(got) != line {
		ts.Fatalf("%s answers %q", addr, got)
	}
}

// echoesOwn is echoes at the first address of a VM:
//
//	echoes-own VM PORT
func echoesOwn(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: echoes-own VM PORT")
	}
	ts.Check(ts.Exec("banger", "vm", "show", "--json", args[0]))
	var shown struct{ Addresses []string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &shown))
	if len(shown.Addresses) == 0 {
		ts.Fatalf("vm %s has no address", args[0])
	}
	echoes(ts, false, []string{shown.Addresses[0], args[1]})
}

// world makes the kernel and the image that the config names.
func world(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: world")
	}
	ts.Check(ts.Exec("banger", "kernel", "import", "tiny", "--from", filepath.Join(assets, "kernel")))
	ts.Check(ts.Exec("banger", "image", "register", "mini", "--rootfs", filepath.Join(assets, "rootfs.ext4"), "--kernel", "tiny", "--user", "dev"))
}

// imageConfig adds an image that is like another but for its config, which is JSON of a
// model.ImageConfig; no daemon runs meanwhile:
//
//	image-config FROM NAME JSON
func imageConfig(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: image-config FROM NAME JSON")
	}
	ts.Check(ts.Exec("banger", "daemon", "stop"))
	ts.Check(putImage(ts.Getenv("BANGER_STATE_DIR"), args[0], args[1], args[2]))
}

func putImage(state, from, name, config string) error {
	db, _, err := store.Open(context.Background(), paths.Layout{State: state}.Database())
	if err != nil {
		return err
	}
	image, err := db.ImageByName(context.Background(), from)
	if err == nil {
		image.Name, image.ID, image.Config = name, rand.Text()[:12], model.ImageConfig{}
		err = json.Unmarshal([]byte(config), &image.Config)
	}
	if err == nil {
		err = db.PutImage(context.Background(), image)
	}
	return errors.Join(err, db.Close())
}

// killDaemon kills the daemon of the script and returns when its process is gone.
func killDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: kill-daemon")
	}
	ts.Check(killDaemonOf(ts.Getenv("BANGER_STATE_DIR")))
}

func killDaemonOf(state string) error {
	text, err := os.ReadFile(filepath.Join(state, "bangerd.lock"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	start, err := sysexec.StartTime(pid)
	if err != nil {
		return err
	}
	proc, err := sysexec.Find(pid, start)
	if err != nil {
		return err
	}
	return proc.Kill(context.Background())
}
