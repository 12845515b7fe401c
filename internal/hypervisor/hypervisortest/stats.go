package hypervisortest

import (
	"testing"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// What a machine has used only grows, whoever asks, and none is left to ask in the end.
func testStats(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	m := w.start(d)
	sample := func() hypervisor.Stats {
		s, ok := m.(hypervisor.Sampler)
		if !ok {
			t.Skip("the driver takes no samples")
		}
		st, err := s.Stats(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := sample()
	if first.Memory <= 0 || first.CPU < 0 {
		t.Errorf("uses %+v", first)
	}
	m = w.attachAfterClose(d, m)
	second := sample()
	if second.CPU < first.CPU || (second.Disk == nil) != (first.Disk == nil) || (second.Net == nil) != (first.Net == nil) {
		t.Errorf("used %+v, then %+v", first, second)
	}
	if a, b := first.Disk, second.Disk; a != nil && b != nil && (a.ReadBytes > b.ReadBytes || a.WriteBytes > b.WriteBytes || a.Reads > b.Reads || a.Writes > b.Writes) {
		t.Errorf("the disks did %+v, then %+v", *a, *b)
	}
	w.kill(m)
	_, err := m.(hypervisor.Sampler).Stats(w.ctx())
	wantClass(t, err, errdefs.ClassFailedPrecondition)
}

// A machine starts with bounds that its driver can keep, and with no others.
func testDiskLimit(t *testing.T, h Harness) {
	d := h.New()
	w := newWorld(t, h)
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	w.spec.Disks[0].Limit = hypervisor.DiskLimit{BytesPerSecond: 20 << 20, OpsPerSecond: 100}
	if !info.Capabilities.DiskLimits {
		_, err := d.Start(w.ctx(), w.spec)
		wantClass(t, err, errdefs.ClassUnsupported)
		return
	}
	w.kill(w.start(d))
	for _, limit := range []hypervisor.DiskLimit{{BytesPerSecond: -1}, {OpsPerSecond: -1}} {
		w.spec.Disks[0].Limit = limit
		_, err := d.Start(w.ctx(), w.spec)
		wantClass(t, err, errdefs.ClassInvalidArgument)
	}
	w.noProcess()
}
