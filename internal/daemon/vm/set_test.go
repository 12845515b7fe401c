package vm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/steps"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

func (w *world) set(req *bangerv1.SetRequest) error {
	req.Ref = "dev"
	return w.wait(w.svc.Handlers().Set(context.Background(), connect.NewRequest(req)))
}

func (w *world) setDisk(mib int64) error {
	n := mib << 20
	return w.set(&bangerv1.SetRequest{DiskBytes: &n})
}

// diskSize is the size of the file of the only VM's disk, in MiB.
func (w *world) diskSize() int64 {
	w.t.Helper()
	st, err := os.Stat(filepath.Join(w.layout.VM(w.vms()[0].ID), paths.RootRawFile))
	w.must(err)
	return st.Size() >> 20
}

// A stopped VM gets another shape. What it cannot have changes nothing.
func TestSet(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", false))
	was := w.snapshot()
	cpus, memory, disk := int32(runtime.NumCPU()), int64(256), int64(96<<20)
	tooMany, tooLittle, negative, zero := cpus+1, int64(1), int64(-1), int32(0)
	for _, bad := range []*bangerv1.SetRequest{
		{}, {Cpus: &tooMany}, {Cpus: &zero}, {MemoryMib: &tooLittle}, {DiskBytes: &negative}, {DiskBytes: &tooLittle},
		{Cpus: &cpus, MemoryMib: &negative}, {MemoryMib: &memory, DiskBytes: &tooLittle},
	} {
		if err := w.set(bad); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
	w.must(w.set(&bangerv1.SetRequest{Cpus: &cpus, MemoryMib: &memory, DiskBytes: &disk}))
	if s := w.vms()[0].Spec; s.CPUs != int(cpus) || s.MemoryMiB != memory || s.DiskBytes != disk || w.diskSize() != 96 {
		t.Errorf("the shape is %+v with %d MiB of disk", s, w.diskSize())
	}
	if err := w.setDisk(64); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "cannot become smaller") {
		t.Errorf("shrinking: %v", err)
	}
	w.must(w.setDisk(96)) // as it is
	w.must(w.start("dev"))
	w.checkLegal()
}

// The disk of a running VM grows, and nothing else of it changes.
func TestSetRunning(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	cpus, memory := int32(1), int64(256)
	w.must(w.set(&bangerv1.SetRequest{Cpus: &cpus})) // as it is
	if err := w.set(&bangerv1.SetRequest{MemoryMib: &memory}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "banger vm stop dev") {
		t.Errorf("memory of a running vm: %v (hint %q)", err, errdefs.HintOf(err))
	}
	w.disks.growsInUse = false
	if err := w.setDisk(96); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "banger vm stop dev") {
		t.Errorf("a disk that cannot: %v (hint %q)", err, errdefs.HintOf(err))
	}
	w.disks.growsInUse = true
	w.must(w.setDisk(96))
	if w.vms()[0].Spec.DiskBytes != 96<<20 || w.diskSize() != 96 {
		t.Errorf("the disk is %d, and %d MiB", w.vms()[0].Spec.DiskBytes, w.diskSize())
	}
	w.checkLegal()
}

// A set that fails changes nothing; one that is cut off by a crash after it was
// recorded holds when the VM starts next.
func TestSetFails(t *testing.T) {
	for _, crash := range []bool{false, true} {
		w := newWorld(t)
		w.must(w.create("dev", false))
		was := w.snapshot()
		fault := errInjected
		if crash {
			fault = steps.ErrCrash
		}
		w.inject(func(step string) error {
			if step == "record" {
				return fault
			}
			return nil
		})
		if err := w.setDisk(96); err == nil {
			t.Fatal("set succeeded")
		}
		w.inject(nil)
		if !crash {
			if now := w.snapshot(); now != was {
				t.Errorf("the world is\n%swas\n%s", now, was)
			}
			continue
		}
		w.restart()
		if w.vms()[0].Spec.DiskBytes != 96<<20 || w.diskSize() != 64 {
			t.Errorf("after a crash the disk is %d, and %d MiB", w.vms()[0].Spec.DiskBytes, w.diskSize())
		}
		w.must(w.start("dev"))
		if w.diskSize() != 96 || w.vms()[0].State != model.StateRunning {
			t.Errorf("after a start the disk has %d MiB", w.diskSize())
		}
	}
}
