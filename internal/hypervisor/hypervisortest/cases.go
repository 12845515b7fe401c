package hypervisortest

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/sysexec"
)

func testInfo(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if info.Driver != d.Name() || info.Driver == "" || info.Version == "" || info.Machine == "" || info.CPUModel == "" || info.Accel == "" {
		t.Errorf("incomplete: %+v", info)
	}
	if !filepath.IsAbs(info.Binary) {
		t.Errorf("binary %q is not absolute", info.Binary)
	}
	again, err := d.Info(w.ctx())
	if err != nil || again != info {
		t.Errorf("second answer %+v, %v differs from %+v", again, err, info)
	}
}

func testStartAndKill(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	m := w.start(d)
	handle := m.Handle()
	if handle.Driver != d.Name() || handle.PID <= 0 || handle.StartTime == 0 {
		t.Errorf("incomplete handle: %+v", handle)
	}
	w.alive(m)
	if e := m.Exit(); e != (hypervisor.Exit{}) {
		t.Errorf("exit of a live machine: %+v", e)
	}
	// Its own session: a signal to ours, or a terminal that hangs up, cannot end it.
	if sid, err := unix.Getsid(handle.PID); err != nil || sid != handle.PID {
		t.Errorf("session %d, %v; want its own", sid, err)
	}
	w.kill(m)
	if e := m.Exit(); !e.Known || e.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit %+v, want signal 9", e)
	}
	if err := m.Kill(w.ctx()); err != nil {
		t.Errorf("second kill: %v", err)
	}
	_, err := m.DialAgent(w.ctx())
	wantClass(t, err, errdefs.ClassFailedPrecondition)
	wantClass(t, m.SetLink(w.ctx(), true), errdefs.ClassFailedPrecondition)
	wantClass(t, m.PowerButton(w.ctx()), errdefs.ClassFailedPrecondition)
}

func testKilledFromOutside(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	if err := syscall.Kill(m.Handle().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(m); !e.Known || e.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit %+v, want signal 9", e)
	}
	found := w.attachAfterClose(h.New(), w.start(h.New()))
	if err := syscall.Kill(found.Handle().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(found); e.Known {
		t.Errorf("exit of a process that was no child is known: %+v", e)
	}
}

func testPowerButton(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	if err := m.PowerButton(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(m); !e.Known || e.Code != 0 || e.Signal != 0 {
		t.Errorf("exit %+v, want status 0", e)
	}
}

func testSetLink(t *testing.T, h Harness) {
	w := newWorld(t, h)
	w.spec.LinkUp = false
	d := h.New()
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	m := w.start(d)
	if !info.Capabilities.Link {
		if err := m.SetLink(w.ctx(), false); err != nil {
			t.Error(err)
		}
		wantClass(t, m.SetLink(w.ctx(), true), errdefs.ClassUnsupported)
		w.kill(m)
		return
	}
	for _, up := range []bool{true, true, false, true} {
		if err := m.SetLink(w.ctx(), up); err != nil {
			t.Fatalf("set link up=%v: %v", up, err)
		}
	}
	w.kill(m)
}

func testPause(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	m := w.start(d)
	p, ok := m.(hypervisor.Pauser)
	if ok != info.Capabilities.Pause {
		t.Fatalf("implements Pauser: %v, declared: %v", ok, info.Capabilities.Pause)
	}
	if ok {
		if err := p.Pause(w.ctx()); err != nil {
			t.Fatal(err)
		}
		// A paused machine is found again like any other.
		w.alive(w.attachAfterClose(d, m))
		return
	}
	w.kill(m)
}

func testResize(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	m := w.start(d)
	_, ok := m.(hypervisor.Resizer)
	if ok != info.Capabilities.Resize {
		t.Fatalf("implements Resizer: %v, declared: %v", ok, info.Capabilities.Resize)
	}
	if ok {
		m = w.attachAfterClose(d, m)
		r := m.(hypervisor.Resizer)
		disk := w.spec.Disks[0]
		before, err := os.Stat(disk.Path)
		if err != nil {
			t.Fatal(err)
		}
		size := before.Size() + 1<<20
		if err := r.ResizeDisk(w.ctx(), disk.Serial, size); err != nil {
			t.Fatal(err)
		}
		if now, err := os.Stat(disk.Path); err != nil || now.Size() != size {
			t.Errorf("the disk has %d bytes, %v; want %d", now.Size(), err, size)
		}
		wantClass(t, r.ResizeDisk(w.ctx(), "nobody", size), errdefs.ClassNotFound)
	}
	w.kill(m)
}

func testStall(t *testing.T, h Harness) {
	w := newWorld(t, h)
	d := h.New()
	m := w.start(d)
	if since, _ := m.Stalled(); !since.IsZero() {
		t.Errorf("stalled since %s, with all the space it wants", since)
	}
	if err := m.Continue(w.ctx()); err != nil {
		t.Errorf("continue what runs: %v", err)
	}
	w.kill(m)
	if h.Full == nil {
		return
	}
	free := h.Full(t, w.dir)
	m = w.start(d)
	w.stalls(m)
	if err := m.Continue(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.stalls(m)
	m = w.attachAfterClose(h.New(), m)
	if since, _ := m.Stalled(); since.IsZero() {
		t.Error("a new daemon does not see that the guest is stalled")
	}
	free()
	_, changed := m.Stalled()
	if err := m.Continue(w.ctx()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told that it runs")
	}
	if since, _ := m.Stalled(); !since.IsZero() {
		t.Errorf("stalled since %s, and there is space", since)
	}
	w.kill(m)
}

// stalls waits until m is stalled.
func (w *world) stalls(m hypervisor.Machine) {
	w.t.Helper()
	since, changed := m.Stalled()
	for ctx := w.ctx(); since.IsZero(); since, changed = m.Stalled() {
		select {
		case <-changed:
		case <-ctx.Done():
			w.t.Fatal("the machine does not stall")
		}
	}
}

// attachAfterClose lets go of m and finds the machine again, as a new daemon does.
func (w *world) attachAfterClose(d hypervisor.Driver, m hypervisor.Machine) hypervisor.Machine {
	w.t.Helper()
	if err := m.Close(); err != nil {
		w.t.Fatalf("close: %v", err)
	}
	return w.attach(d, m.Handle())
}

func testDialAgent(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	for range 3 {
		c, err := m.DialAgent(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.DialAgent(w.ctx())
		wantClass(t, err, errdefs.ClassFailedPrecondition)
		if err := say(c, "anything"); err != nil {
			t.Errorf("write to the agent: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Done while a channel is open: nothing waits for it.
	if _, err := m.DialAgent(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.kill(m)
}

func testCloseAndAttach(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	c, err := m.DialAgent(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	found := w.attachAfterClose(h.New(), m)
	if _, err := c.Write([]byte("x")); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the guest channel survived Close")
	}
	_, err = m.DialAgent(w.ctx())
	wantClass(t, err, errdefs.ClassFailedPrecondition)
	if err := m.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if found.Handle() != m.Handle() {
		t.Errorf("handle %+v, want %+v", found.Handle(), m.Handle())
	}
	w.alive(found)
	if err := found.SetLink(w.ctx(), false); err != nil {
		t.Error(err)
	}
	if c, err = found.DialAgent(w.ctx()); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	w.kill(found)
	select {
	case <-m.Done():
		t.Error("a closed machine reports an end")
	default:
	}
}

// The daemon is another process here, and is gone for good.
func testDaemonDies(t *testing.T, h Harness) {
	w := newWorld(t, h)
	spec, err := json.Marshal(w.spec)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sysexec.Output(w.ctx(), sysexec.Cmd{Path: exe, Args: []string{starterArg, string(spec)}})
	if err != nil {
		t.Fatal(err)
	}
	var handle hypervisor.Handle
	if err := json.Unmarshal(out, &handle); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	d := h.New()
	m := w.attach(d, handle)
	w.alive(m)
	c, err := m.DialAgent(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if w.h.Booted != nil {
		w.h.Booted(t, w.dir)
	}
	if err := m.PowerButton(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if e := w.ended(m); e.Known {
		t.Errorf("exit of a process that was no child is known: %+v", e)
	}
	if err := d.Cleanup(w.ctx(), w.dir, handle); err != nil {
		t.Error(err)
	}
	w.noSockets()
}

func testAttachToTheDead(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	handle := m.Handle()
	wrong := handle
	wrong.StartTime++
	_, err := h.New().Attach(w.ctx(), w.spec, wrong)
	wantClass(t, err, errdefs.ClassNotFound)
	_, err = h.New().Attach(w.ctx(), w.spec, hypervisor.Handle{})
	wantClass(t, err, errdefs.ClassNotFound)
	w.alive(m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	// A process that lives and is another: the handle came from elsewhere.
	start, err := sysexec.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.New().Attach(w.ctx(), w.spec, hypervisor.Handle{Driver: handle.Driver, PID: os.Getpid(), StartTime: start})
	wantClass(t, err, errdefs.ClassUnavailable)
	m = w.attach(h.New(), handle)
	w.alive(m)
	w.kill(m)
	_, err = h.New().Attach(w.ctx(), w.spec, handle)
	wantClass(t, err, errdefs.ClassNotFound)
}

func testStaleSockets(t *testing.T, h Harness) {
	w := newWorld(t, h)
	for i, name := range h.sockets() {
		path := filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		f, err := dirsock.Listen(filepath.Dir(path), filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	m := w.start(h.New())
	c, err := m.DialAgent(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	w.kill(m)
}

func testStartTwice(t *testing.T, h Harness) {
	w := newWorld(t, h)
	d := h.New()
	m := w.start(d)
	_, err := d.Start(w.ctx(), w.spec)
	wantClass(t, err, errdefs.ClassFailedPrecondition)
	w.alive(m)
	c, err := m.DialAgent(w.ctx())
	if err != nil {
		t.Fatalf("the second start broke the first machine: %v", err)
	}
	_ = c.Close()
	w.kill(m)
}

func testStartFails(t *testing.T, h Harness) {
	w := newWorld(t, h)
	h.Break(&w.spec)
	m, err := h.New().Start(w.ctx(), w.spec)
	if err == nil {
		_ = m.Kill(w.ctx())
		t.Fatal("a broken spec started")
	}
	t.Logf("%v (%s)", err, errdefs.HintOf(err))
	if errdefs.ClassOf(err) == errdefs.ClassInternal || errdefs.HintOf(err) == "" {
		t.Errorf("error has class %s and hint %q", errdefs.ClassOf(err), errdefs.HintOf(err))
	}
	w.noProcess()
	w.noSockets()
}

// Wherever in a start the caller gives up: either it succeeded, or nothing is left.
func testStartCancelled(t *testing.T, h Harness) {
	w := newWorld(t, h)
	d := h.New()
	begin := time.Now()
	if m, err := d.Start(w.ctx(), w.spec); err != nil {
		t.Fatal(err)
	} else if err := d.Cleanup(w.ctx(), w.dir, m.Handle()); err != nil {
		t.Fatal(err)
	} else {
		_ = m.Close()
	}
	const steps = 8
	whole := time.Since(begin)
	for i := range steps {
		ctx, cancel := context.WithTimeout(t.Context(), whole*time.Duration(i)/steps)
		m, err := d.Start(ctx, w.spec)
		cancel()
		if err != nil {
			if c := errdefs.ClassOf(err); c != errdefs.ClassTimeout {
				t.Errorf("after %d/%d: got %v (class %s), want class timeout", i, steps, err, c)
			}
			w.noProcess()
			w.noSockets()
			continue
		}
		// The context is over, and the machine lives on.
		w.alive(m)
		w.kill(m)
		_ = m.Close()
		if err := d.Cleanup(w.ctx(), w.dir, m.Handle()); err != nil {
			t.Error(err)
		}
	}
}

func testRestart(t *testing.T, h Harness) {
	w := newWorld(t, h)
	d := h.New()
	var last hypervisor.Handle
	for range 2 {
		m := w.start(d)
		if m.Handle() == last {
			t.Error("two machines have one handle")
		}
		last = m.Handle()
		w.kill(m)
	}
}

func testTwoMachines(t *testing.T, h Harness) {
	a, b := newWorld(t, h), newWorld(t, h)
	b.spec.VMID += "b"
	d := h.New()
	ma, mb := a.start(d), b.start(d)
	a.kill(ma)
	b.alive(mb)
	if err := d.Cleanup(a.ctx(), a.dir, ma.Handle()); err != nil {
		t.Error(err)
	}
	b.alive(mb)
	b.kill(mb)
}

func testDeepDirectory(t *testing.T, h Harness) {
	w := newWorld(t, h, longName(), "with space, and comma", longName())
	m := w.start(h.New())
	found := w.attachAfterClose(h.New(), m)
	c, err := found.DialAgent(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if st, err := os.Lstat(filepath.Join(w.dir, h.sockets()[0])); err != nil || st.Mode().Type() != fs.ModeSocket {
		t.Errorf("agent socket: %v, %v", st, err)
	}
	w.kill(found)
}
