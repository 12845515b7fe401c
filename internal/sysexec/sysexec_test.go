package sysexec_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

func TestOutputAndErrors(t *testing.T) {
	ctx := context.Background()
	out, err := sysexec.Output(ctx, sysexec.Cmd{Path: "cat", Stdin: strings.NewReader("hello")})
	if err != nil || string(out) != "hello" {
		t.Errorf("%q, %v", out, err)
	}
	err = sysexec.Run(ctx, sysexec.Cmd{Path: "sh", Args: []string{"-c", "echo reason >&2; exit 3"}})
	var e *sysexec.Error
	if !errors.As(err, &e) || e.Code != 3 || !strings.Contains(err.Error(), "reason") {
		t.Errorf("%v", err)
	}
	if err := sysexec.Run(ctx, sysexec.Cmd{Path: "no-such-program-here"}); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	var log bytes.Buffer
	if err := sysexec.Run(ctx, sysexec.Cmd{Path: "sh", Args: []string{"-c", "echo x >&2"}, Stderr: &log}); err != nil || log.String() != "x\n" {
		t.Errorf("%q, %v", log.String(), err)
	}
}

func TestCancelEndsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	done := make(chan error, 1)
	go func() {
		done <- sysexec.Run(ctx, sysexec.Cmd{Path: "sh", Args: []string{"-c", "echo up; sleep 1000 & wait"}, Stdout: w})
		_ = w.Close()
	}()
	buf := make([]byte, 3)
	if _, err := r.Read(buf); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// The pipe reaches its end only when the grandchild is gone too.
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(buf); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestDetachedIsWatchedAndFoundAgain(t *testing.T) {
	p, err := sysexec.StartDetached(sysexec.Detached{Path: "/bin/sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	again, err := sysexec.Find(p.PID, p.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sysexec.Find(p.PID, p.StartTime+1); !errors.Is(err, sysexec.ErrGone) {
		t.Errorf("another start time: %v", err)
	}
	select {
	case <-p.Done():
		t.Fatal("ended by itself")
	default:
	}
	if err := again.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if e := p.Exit(); e != (sysexec.Exit{Known: true, Code: -1, Signal: int(unix.SIGKILL)}) {
		t.Errorf("exit %+v", e)
	}
	if e := again.Exit(); e != (sysexec.Exit{}) {
		t.Errorf("the found process has an exit it cannot know: %+v", e)
	}
	if _, err := sysexec.Find(p.PID, p.StartTime); !errors.Is(err, sysexec.ErrGone) {
		t.Errorf("after the end: %v", err)
	}
	if err := again.Kill(ctx); err != nil {
		t.Errorf("killing it again: %v", err)
	}
}

func TestDetachedThatEndsAtOnce(t *testing.T) {
	p, err := sysexec.StartDetached(sysexec.Detached{Path: "/bin/sh", Args: []string{"-c", "exit 7"}})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if e := p.Exit(); e != (sysexec.Exit{Known: true, Code: 7}) {
		t.Errorf("exit %+v", e)
	}
}

func TestDetachedEntersItsDirectoryBeforeItsIdentity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change identity")
	}
	const other = 65534
	dir := t.TempDir()
	deep := dir + "/closed/own"
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(deep, other, other); err != nil {
		t.Fatal(err)
	}
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p, err := sysexec.StartDetached(sysexec.Detached{
		Path: "/bin/sh", Args: []string{"-c", "id -u > who"}, Dir: deep, Env: []string{"PATH=/usr/bin:/bin"},
		Credential: &syscall.Credential{Uid: other, Gid: other},
	})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	who, err := os.ReadFile(deep + "/who")
	if err != nil || strings.TrimSpace(string(who)) != "65534" {
		t.Errorf("ran as %q, %v", who, err)
	}
	if after, err := os.Getwd(); err != nil || after != before {
		t.Errorf("our own directory is %s, %v", after, err)
	}
}

// Wherever the Go runtime puts the call, this process is not seen to work there.
func TestDetachedLeavesItsDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change identity")
	}
	dir := t.TempDir()
	for range 100 {
		p, err := sysexec.StartDetached(sysexec.Detached{
			Path: "/bin/true", Dir: dir, Env: []string{}, Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
		})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if sysexec.WorksIn(os.Getpid(), dir) {
			t.Fatal("its first thread stays in the directory of the other")
		}
	}
}

// In a user namespace a process is who started it, can become nobody else, and has
// no secrets from that user outside: by /proc it is found like any other.
func TestDetachedInAUserNamespace(t *testing.T) {
	dir := t.TempDir()
	out, err := os.Create(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p, err := sysexec.StartDetached(sysexec.Detached{
		Path: "/bin/sh", Args: []string{"-c", "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups; kill -STOP $$"}, Dir: dir,
		Env: []string{"PATH=/usr/bin:/bin"}, Stdout: out, Cloneflags: unix.CLONE_NEWUSER,
	})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("this host allows no user namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	if _, err := unix.Wait4(p.PID, nil, unix.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	uid, gid := os.Geteuid(), os.Getegid()
	said, err := os.ReadFile(out.Name())
	if want := fmt.Sprintf("%d %d %d %d 1 deny", uid, gid, uid, uid); err != nil || strings.Join(strings.Fields(string(said)), " ") != want {
		t.Errorf("it says %q, %v, want %q", said, err, want)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.PID)); err != nil || cwd != dir {
		t.Errorf("its directory is %q, %v", cwd, err)
	}
	again, err := sysexec.Find(p.PID, p.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-p.Done()
}
