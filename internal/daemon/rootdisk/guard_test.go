package rootdisk_test

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/rootdisk"
	"banger/internal/disktest"
)

// held makes a disk by device-mapper where there is little space, and watches it.
func held(t *testing.T) (w *world, d rootdisk.Disk, watch rootdisk.Watch, leave func(int64)) {
	t.Helper()
	m := rootdisk.DMSnap(dmsnap.New("/dev"), slog.New(slog.DiscardHandler))
	dir, leave := disktest.Small(t, 512*mib)
	if _, err := m.Check(t.Context(), dir); err != nil {
		t.Skipf("does not work here: %v", err)
	}
	w = &world{T: t, m: m, dir: dir, image: dir + "/image"}
	w.must(os.WriteFile(w.image, make([]byte, mib), 0o600))
	d = w.made(64 * mib)
	w.must(m.Activate(t.Context(), d))
	watch, err := m.Watch(d)
	w.must(err)
	t.Cleanup(func() { w.must(watch.Close()) })
	return w, d, watch, leave
}

// awaitStall waits until the disk is held, or is not.
func awaitStall(t *testing.T, watch rootdisk.Watch, want bool) {
	t.Helper()
	for {
		since, changed := watch.Stalled()
		if since.IsZero() != want {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("held is %v", !want)
		}
	}
}

// writer writes to the disk as a VMM does, until it is told to end.
func writer(w *world, d rootdisk.Disk) (wrote chan error) {
	wrote = make(chan error, 1)
	f, err := os.OpenFile(w.m.View(d).Path, os.O_RDWR|os.O_SYNC, 0)
	w.must(err)
	go func() {
		_, err := f.WriteAt([]byte(strings.Repeat("kept", mib)), 8*mib)
		wrote <- errors.Join(err, f.Close())
	}()
	return wrote
}

// With little space left on the host a disk is held: who writes waits, and loses
// nothing, until there is space.
func TestHeldForSpace(t *testing.T) {
	w, d, watch, leave := held(t)
	awaitStall(t, watch, false)
	leave(64 * mib)
	awaitStall(t, watch, true)
	wrote := writer(w, d)
	select {
	case err := <-wrote:
		t.Fatalf("a held disk was written: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	w.must(watch.Continue(t.Context())) // in vain
	awaitStall(t, watch, true)
	leave(400 * mib)
	w.must(watch.Continue(t.Context()))
	awaitStall(t, watch, false)
	w.must(<-wrote)
	if text := watch.Lost(); text != "" {
		t.Errorf("lost: %s", text)
	}
	w.must(w.m.Deactivate(t.Context(), d))
	w.use(d, func(u *used) {
		if got := u.content()[8*mib:][:4]; string(got) != "kept" {
			t.Errorf("the disk holds %q", got)
		}
	})
}

// A VMM that waits for a held disk can be ended: what it waits for fails, and what the
// disk held before is there. A daemon that comes after one that held it lets it go.
func TestHeldIsReleased(t *testing.T) {
	w, d, watch, leave := held(t)
	leave(64 * mib)
	awaitStall(t, watch, true)
	wrote := writer(w, d)
	w.must(watch.Close())
	watcher := w.m.(rootdisk.Watcher)
	w.must(watcher.Release(d))
	if err := <-wrote; err == nil {
		t.Error("a write to a released disk succeeded")
	}
	leave(400 * mib)
	w.must(w.m.Deactivate(t.Context(), d))
	w.must(w.m.Activate(t.Context(), d))
	other := rootdisk.DMSnap(dmsnap.New("/dev"), slog.New(slog.DiscardHandler))
	leave(64 * mib)
	second, err := other.Watch(d)
	w.must(err)
	awaitStall(t, second, true)
	w.must(second.Close())
	leave(400 * mib)
	third, err := other.Watch(d)
	w.must(err)
	w.must(<-writer(w, d))
	w.must(third.Close())
	w.must(w.m.Deactivate(t.Context(), d))
	w.must(w.m.Deactivate(t.Context(), d))
}

// A daemon that finds a disk held, and a host without any space, leaves it so: what
// waits to be written is let through when there is space.
func TestHeldByTheNextToo(t *testing.T) {
	w, d, watch, leave := held(t)
	leave(64 * mib)
	awaitStall(t, watch, true)
	wrote := writer(w, d)
	w.must(watch.Close())
	leave(0)
	next, err := rootdisk.DMSnap(dmsnap.New("/dev"), slog.New(slog.DiscardHandler)).Watch(d)
	w.must(err)
	defer func() { w.must(next.Close()) }()
	if since, _ := next.Stalled(); since.IsZero() {
		t.Error("the disk is not held")
	}
	select {
	case err := <-wrote:
		t.Fatalf("a held disk was written: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	leave(400 * mib)
	w.must(next.Continue(t.Context()))
	w.must(<-wrote)
	if text := next.Lost(); text != "" {
		t.Errorf("lost: %s", text)
	}
}

// A layer that the kernel has given up is reported while it is used, and when it is to
// be used again, and can be removed.
func TestLostLayer(t *testing.T) {
	w, d, watch, leave := held(t)
	// Faster than anybody could look: nothing holds the disk.
	w.must(watch.Close())
	leave(0)
	if err := <-writer(w, d); err == nil {
		t.Fatal("a write without space succeeded")
	}
	leave(400 * mib)
	watch, err := w.m.(rootdisk.Watcher).Watch(d)
	w.must(err)
	for over := time.After(10 * time.Second); watch.Lost() == ""; {
		select {
		case <-over:
			t.Fatal("nobody noticed")
		case <-time.After(10 * time.Millisecond):
		}
	}
	w.must(watch.Close())
	w.must(w.m.Deactivate(t.Context(), d))
	if err := w.m.Activate(t.Context(), d); err == nil || !strings.Contains(err.Error(), "the disk is lost") {
		t.Errorf("a lost disk is activated: %v", err)
	}
	w.must(w.m.Remove(t.Context(), d))
}
