package vm_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// held is the disk of the VM "dev", whose fake VMM never stalls by itself.
func (f *full) held() *heldDisk {
	f.disks.mu.Lock()
	defer f.disks.mu.Unlock()
	return f.disks.held
}

// A guest whose disk is held is paused like one that its VMM has stopped, and goes on
// as soon as the disk is let go.
func TestHeldDiskPausesAVM(t *testing.T) {
	f := newFull(t)
	f.must(f.start("dev"))
	f.held().hold()
	b := f.bell()
	f.paused()
	b.over() // no space yet
	b = f.bell()
	f.paused()
	f.held().full.Store(false)
	f.goesOn(b)
	if got := <-f.exec("echo runs"); got != "runs\n" {
		t.Errorf("the guest said %q", got)
	}
	// The guest's own stall is seen as well.
	f.fill()
	f.exec("echo kept >/root/file")
	b = f.bell()
	f.paused()
	f.must(os.Remove(f.file))
	f.goesOn(b)
}

// A VMM that waits for a held disk is let go before it is ended: by kill, by a stop
// that has to give up, and by a daemon that has lost it.
func TestHeldDiskLetsAVMMEnd(t *testing.T) {
	f := newFull(t)
	for _, end := range []func() error{
		func() error { return f.kill("dev") },
		func() error { f.refused("stop", f.stop("dev")); return nil },
	} {
		f.disks.full.Store(false)
		f.must(f.start("dev"))
		f.held().hold()
		f.bell()
		f.disks.mu.Lock()
		f.disks.released = nil
		f.disks.mu.Unlock()
		f.must(end())
		f.disks.mu.Lock()
		if !slices.Contains(f.disks.released, f.vms()[0].ID) {
			t.Error("the disk was not released")
		}
		f.disks.mu.Unlock()
		if got := f.settled("dev"); got != model.StateStopped {
			t.Errorf("the VM is %s", got)
		}
		f.checkLegal()
	}
}

// A disk that the kernel has given up is told of, and the VM can be ended.
func TestLostDisk(t *testing.T) {
	f := newFull(t)
	f.must(f.start("dev"))
	why := "the disk is lost: of the test"
	f.held().lost.Store(&why)
	if v := f.get(); !strings.Contains(v.LastError, why) {
		t.Errorf("last error %q", v.LastError)
	}
	f.must(f.kill("dev"))
	f.checkLegal()
}

// A VM whose disk is watched says what it uses like any other.
func TestStatsOfAWatchedDisk(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	resp, err := w.svc.Handlers().Stats(t.Context(), connect.NewRequest(&bangerv1.VMRef{Ref: "dev"}))
	if err != nil || resp.Msg.MemoryBytes <= 0 {
		t.Errorf("got %v, %v", resp, err)
	}
}

// A daemon that comes after one that held a disk lets it go on, before it asks the VMM
// anything: one that waits for its disk does not answer.
func TestHeldDiskOutlivesADaemon(t *testing.T) {
	f := newFull(t)
	f.must(f.start("dev"))
	f.held().hold()
	f.bell()
	f.close()
	f.disks.full.Store(false)
	f.open()
	f.must(f.svc.Restore(t.Context()))
	if got := <-f.exec("echo runs"); got != "runs\n" {
		t.Errorf("the guest said %q", got)
	}
	f.checkLegal()
}

// A VMM that does not answer, as there is still no space for its disk, is found when
// there is; until then it can be ended.
func TestVMMIsFoundWhenItsDiskGoesOn(t *testing.T) {
	f := newFull(t)
	for _, end := range []bool{false, true} {
		f.must(f.start("dev"))
		f.held().hold()
		f.bell()
		f.restart()
		b := f.bell()
		if err := f.start("dev"); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("start: %v", err)
		}
		f.checkLegal()
		b.over() // no space yet
		b = f.bell()
		if end {
			f.must(f.kill("dev"))
			f.checkLegal()
			if !f.held().closed.Load() {
				t.Error("the disk of a VM that has ended is still watched")
			}
			continue
		}
		f.disks.full.Store(false)
		b.over()
		for over := time.After(30 * time.Second); f.start("dev") != nil; { // it runs, or is lost
			select {
			case <-over:
				t.Fatal("the VM is not found again")
			case <-time.After(10 * time.Millisecond):
			}
		}
		if got := <-f.exec("echo runs"); got != "runs\n" {
			t.Errorf("the guest said %q", got)
		}
		f.checkLegal()
		f.must(f.stop("dev"))
	}
	f.disks.full.Store(false)
	f.must(f.start("dev"))
}
