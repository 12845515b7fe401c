package hypervisortest

import (
	"errors"
	"net"
	"testing"

	"banger/internal/daemon/tapdev"
	"banger/internal/nettest"
)

// NewTap makes a tap as hostnet does, which the user uid may open, and returns its name.
func NewTap(t *testing.T, uid int) string {
	t.Helper()
	nettest.Require(t)
	bridge := tapdev.BridgeSpec{Name: "tt0", MAC: net.HardwareAddr{6, 1, 2, 3, 4, 5}, Alias: "test", MTU: 1500}
	tap := tapdev.TapSpec{Name: tapdev.TapName(bridge.Name, 0), Alias: "test", Bridge: bridge.Name, MTU: bridge.MTU, VNet: true}
	t.Cleanup(func() {
		if err := errors.Join(tapdev.Delete(tap.Name), tapdev.DeleteBridge(bridge.Name, bridge.MAC)); err != nil {
			t.Error(err)
		}
	})
	err := tapdev.EnsureBridge(bridge)
	if err == nil {
		err = tapdev.CreateTap(tap)
	}
	if err == nil {
		err = tapdev.SetOwner(tap.Name, true, uid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return tap.Name
}

// The VMM holds the tap for as long as it runs, and can begin anew with it.
func testTap(t *testing.T, h Harness) {
	if !h.Taps {
		t.Skip("the driver opens no tap")
	}
	d := h.New()
	w := newWorld(t, h)
	w.spec.Tap, w.spec.LinkUp = NewTap(t, w.spec.UID), true
	info, err := d.Info(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if !info.Capabilities.Tap {
		t.Fatal("it does not say that it connects cards to taps")
	}
	held := func() bool {
		f, err := tapdev.OpenTap(w.spec.Tap, true)
		if errors.Is(err, tapdev.ErrTaken) {
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		return false
	}
	for range 2 {
		m := w.start(d)
		if !held() {
			t.Error("it does not hold its tap")
		}
		m = w.attachAfterClose(d, m)
		if err := m.SetLink(w.ctx(), true); err != nil {
			t.Errorf("the link that is up: %v", err)
		}
		w.kill(m)
		if held() {
			t.Error("the tap outlives the machine")
		}
		if err := d.Cleanup(w.ctx(), w.dir, m.Handle()); err != nil {
			t.Error(err)
		}
	}
	w.spec.Tap = "no-such-tap"
	if _, err := d.Start(w.ctx(), w.spec); err == nil {
		t.Error("it starts with a tap that is not there")
	}
	w.noProcess()
	w.noSockets()
}
