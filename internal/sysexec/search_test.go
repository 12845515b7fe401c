package sysexec_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/sysexec"
)

// leaderEnv makes the test binary a program whose first thread ends, and no other.
const leaderEnv = "BANGER_TEST_LEADERLESS"

// leaderless is made while packages are, as only that is sure to run in the first thread.
var leaderless = endFirstThread()

func endFirstThread() bool {
	if os.Getenv(leaderEnv) == "" {
		return false
	}
	go func() {
		first := fmt.Sprintf("/proc/self/task/%d/cwd", os.Getpid())
		for {
			if _, err := os.Stat(first); err != nil {
				fmt.Println("gone")
				select {}
			}
			runtime.Gosched()
		}
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
	return true
}

// A program that was taken over may end its first thread, by which processes are known.
func TestFirstThreadEnds(t *testing.T) {
	if leaderless {
		t.Fatal("the first thread lives on")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	p, err := sysexec.StartDetached(sysexec.Detached{Path: self, Dir: dir, Env: []string{leaderEnv + "=1"}, Stdout: w})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	if _, err := r.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	works := func(pid int) bool { return sysexec.WorksIn(pid, dir) }
	if pid, start, err := sysexec.Search(works); pid != p.PID || start != p.StartTime || err != nil {
		t.Errorf("found %d since %d, %v; want %d since %d", pid, start, err, p.PID, p.StartTime)
	}
	again, err := sysexec.Find(p.PID, p.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-p.Done()
	if pid, _, err := sysexec.Search(works); pid != 0 || err != nil {
		t.Errorf("found %d, %v, after its end", pid, err)
	}
}

func TestSearch(t *testing.T) {
	dir := t.TempDir()
	works := func(pid int) bool { return sysexec.WorksIn(pid, dir) }
	if pid, _, err := sysexec.Search(works); pid != 0 || err != nil {
		t.Errorf("found %d, %v", pid, err)
	}
	p, err := sysexec.StartDetached(sysexec.Detached{Path: "/bin/sleep", Args: []string{"1000"}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	if pid, start, err := sysexec.Search(works); pid != p.PID || start != p.StartTime || err != nil {
		t.Errorf("found %d since %d, %v; want %d since %d", pid, start, err, p.PID, p.StartTime)
	}
	if sysexec.WorksIn(p.PID, filepath.Dir(dir)) || sysexec.WorksIn(p.PID, filepath.Join(dir, "none")) {
		t.Error("it works elsewhere")
	}
	self := func(pid int) bool { return pid == os.Getpid() }
	if pid, _, err := sysexec.Search(self); pid != 0 || err != nil {
		t.Errorf("this process was found: %d, %v", pid, err)
	}
}

// The time is that of the process there was before anything was made of it.
func TestIdentifyReadsTheTimeFirst(t *testing.T) {
	p, err := sysexec.StartDetached(sysexec.Detached{Path: "/bin/sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	start, ok := sysexec.Identify(p.PID, func(int) bool { return p.Kill(t.Context()) == nil })
	if !ok || start != p.StartTime {
		t.Errorf("got %d, %v; want %d", start, ok, p.StartTime)
	}
	if _, err := sysexec.Find(p.PID, start); err == nil {
		t.Error("it was found")
	}
}

// A shell in which somebody looks around in a directory does not work there.
func TestWorksInAndTerminals(t *testing.T) {
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer ptmx.Close()
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	shell := exec.Command("/bin/sleep", "1000")
	shell.Dir, shell.Stdin = t.TempDir(), terminal
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shell.Process.Kill(); _ = shell.Wait() })
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", shell.Process.Pid)); err != nil || cwd != shell.Dir {
		t.Fatalf("it is in %q, %v", cwd, err)
	}
	if sysexec.WorksIn(shell.Process.Pid, shell.Dir) {
		t.Error("somebody at a terminal is taken for who works there")
	}
}
