package hypervisortest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
)

// The handle is lost, and who it belongs to is not.
func testFind(t *testing.T, h Harness) {
	w := newWorld(t, h)
	for _, dir := range []string{w.dir, filepath.Join(w.dir, "none")} {
		_, err := h.New().Find(w.ctx(), dir)
		wantClass(t, err, errdefs.ClassNotFound)
	}
	m := w.start(h.New())
	want := m.Handle()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := h.New().Find(w.ctx(), w.dir)
	if err != nil || found.PID != want.PID || found.StartTime != want.StartTime {
		t.Fatalf("found %+v, %v; want %+v", found, err, want)
	}
	again := w.attach(h.New(), found)
	if got := again.Handle(); got != want {
		t.Errorf("attached to %+v, want %+v", got, want)
	}
	w.alive(again)
	w.kill(again)
	_, err = h.New().Find(w.ctx(), w.dir)
	wantClass(t, err, errdefs.ClassNotFound)
}

// The handle is lost, and nobody answers on the sockets: a VMM that was taken over may
// have closed them, or put something else in their place.
func testHiddenSockets(t *testing.T, h Harness) {
	for name, hide := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600))
		},
		"closed": func(path string) error {
			f, err := dirsock.Listen(filepath.Dir(path), filepath.Base(path))
			if err != nil {
				return err
			}
			return f.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, h)
			d := h.New()
			m := w.start(d)
			want := m.Handle()
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			for _, socket := range h.sockets() {
				if err := hide(filepath.Join(w.dir, socket)); err != nil {
					t.Fatal(err)
				}
			}
			if found, err := d.Find(w.ctx(), w.dir); err != nil || found.PID != want.PID || found.StartTime != want.StartTime {
				t.Errorf("found %+v, %v; want %+v", found, err, want)
			}
			if name != "removed" { // without sockets a driver need not look before a start
				_, err := d.Start(w.ctx(), w.spec)
				wantClass(t, err, errdefs.ClassFailedPrecondition)
			}
			if err := d.Cleanup(w.ctx(), w.dir, hypervisor.Handle{}); err != nil {
				t.Error(err)
			}
			w.gone(want)
			w.noSockets()
			w.noProcess()
		})
	}
}

func testCleanupByHandle(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	if err := dirsock.Remove(w.dir, h.sockets()...); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.New().Cleanup(w.ctx(), w.dir, m.Handle()); err != nil {
			t.Fatal(err)
		}
	}
	w.ended(m)
	w.noSockets()
	w.noProcess()
}

func testCleanupBySocket(t *testing.T, h Harness) {
	w := newWorld(t, h)
	m := w.start(h.New())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.New().Cleanup(w.ctx(), w.dir, hypervisor.Handle{}); err != nil {
			t.Fatal(err)
		}
	}
	w.gone(m.Handle())
	w.noSockets()
	w.noProcess()
}

func testCleanupOfNothing(t *testing.T, h Harness) {
	w := newWorld(t, h)
	d := h.New()
	for _, dir := range []string{w.dir, filepath.Join(w.dir, "none")} {
		for _, handle := range []hypervisor.Handle{{}, {Driver: d.Name(), PID: 1 << 22, StartTime: 1}, {Driver: d.Name(), PID: os.Getpid(), StartTime: 1}} {
			if err := d.Cleanup(w.ctx(), dir, handle); err != nil {
				t.Errorf("cleanup of %s, %+v: %v", dir, handle, err)
			}
		}
	}
}
