package vmproc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/sysexec"
)

// watch watches a process that ends with the test, at the latest.
func watch(t *testing.T, script string, hangUp func() error) *vmproc.Process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	proc, err := sysexec.StartDetached(sysexec.Detached{
		Path: "/bin/sh", Args: []string{"-c", script}, Dir: t.TempDir(), Env: []string{"PATH=/usr/bin:/bin"}, Stderr: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := vmproc.Watch(vmproc.Config{
		Name: "the VMM", Handle: hypervisor.Handle{PID: proc.PID, StartTime: proc.StartTime}, Proc: proc, Log: log, HangUp: hangUp,
	})
	t.Cleanup(func() {
		if err := errors.Join(vmproc.End(context.Background(), proc.PID, proc.StartTime), p.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

const endless = "exec sleep 1000"

func TestEnd(t *testing.T) {
	p := watch(t, "echo one >&2; echo two >&2; exit 3", func() error { return nil })
	<-p.Done()
	if got, want := p.Exit(), (hypervisor.Exit{Known: true, Code: 3, Detail: "one; two"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if p.Life().Err() == nil || !p.Ended() || p.Closed() {
		t.Error("it does not know that it has ended")
	}
	if err := p.Use(t.Context(), "ask", func() error { return nil }); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("use: %v", err)
	}
}

func TestOffIsAnOrderlyEnd(t *testing.T) {
	p := watch(t, endless, nil)
	p.Off()
	<-p.Done()
	if got, want := p.Exit(), (hypervisor.Exit{Known: true}); got != want {
		t.Errorf("got %+v", got)
	}
}

// Whoever waits for the end finds the connections gone, and Close lets go of a process
// that runs on.
func TestClose(t *testing.T) {
	hung := make(chan struct{}, 2)
	p := watch(t, endless, func() error { hung <- struct{}{}; return io.ErrNoProgress })
	if err := p.Close(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
	if len(hung) != 1 || p.Ended() || p.Life().Err() == nil {
		t.Errorf("hung up %d times, ended %v", len(hung), p.Ended())
	}
	if st, err := sysexec.StartTime(p.Handle().PID); err != nil || st != p.Handle().StartTime {
		t.Errorf("the process is gone: %v", err)
	}
	for _, err := range []error{p.Kill(t.Context()), p.Use(t.Context(), "ask", nil)} {
		if !errors.Is(err, vmproc.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneChannel(t *testing.T) {
	p := watch(t, endless, nil)
	ours, _ := net.Pipe()
	dial := func() (net.Conn, error) { return ours, nil }
	// One that is still being dialed counts.
	_, err := p.Dial(func() (net.Conn, error) {
		_, err := p.Dial(dial)
		return nil, err
	})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("second channel: %v", err)
	}
	c, err := p.Dial(dial)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Dial(dial); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("second channel: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	dial = func() (net.Conn, error) { return ours, nil }
	if _, err = p.Dial(dial); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // a pipe returns it bare
		t.Errorf("the channel outlives the machine: %v", err)
	}
	if _, err := p.Dial(dial); !errors.Is(err, vmproc.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// What is dialed when the machine is closed is closed too.
func TestCloseWhileDialing(t *testing.T) {
	p := watch(t, endless, nil)
	ours, theirs := net.Pipe()
	_, err := p.Dial(func() (net.Conn, error) { return ours, p.Close() })
	if !errors.Is(err, vmproc.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // a pipe returns it bare
		t.Errorf("the channel outlives the machine: %v", err)
	}
}

func TestAttachAndEnd(t *testing.T) {
	p := watch(t, endless, nil)
	h := p.Handle()
	h.StartTime++
	if _, err := vmproc.Attach("the VMM", h, nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("another process of that pid: %v", err)
	}
	if err := vmproc.End(t.Context(), h.PID, h.StartTime); err != nil || p.Ended() {
		t.Errorf("another process was ended: %v", err)
	}
	var proc *sysexec.Proc
	if _, err := vmproc.Attach("the VMM", p.Handle(), func(found *sysexec.Proc) (hypervisor.Machine, error) {
		proc = found
		return nil, io.ErrNoProgress
	}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a machine that cannot be made: %v", err)
	}
	if err := proc.Signal(0); !errors.Is(err, sysexec.ErrGone) {
		t.Errorf("its process was not let go of: %v", err)
	}
	proc, err := sysexec.Find(p.Handle().PID, p.Handle().StartTime)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Release()
	during, cancel := vmproc.While(t.Context(), proc)
	defer cancel()
	if err := vmproc.End(t.Context(), p.Handle().PID, p.Handle().StartTime); err != nil {
		t.Error(err)
	}
	<-during.Done()
	<-p.Done()
	if e := p.Exit(); e.Signal != int(unix.SIGKILL) {
		t.Errorf("exit %+v", e)
	}
}
