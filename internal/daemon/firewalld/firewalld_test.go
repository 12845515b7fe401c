package firewalld

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"banger/internal/daemon/sysbus"
	"banger/internal/daemon/sysbus/bustest"
	"banger/internal/errdefs"
)

// fake stands in for firewalld.
type fake struct {
	mu    sync.Mutex
	zones map[string]string // by device
	told  []string
	fail  *dbus.Error // of changes
}

func refusal(text string) *dbus.Error { return dbus.NewError(service+".Exception", []any{text}) }

func fakeOn(t *testing.T, socket string) *fake {
	t.Helper()
	f := &fake{zones: map[string]string{}}
	conn, err := sysbus.Connect(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	change := func(what, zone, device, becomes string) (string, *dbus.Error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.told = append(f.told, what+" "+zone+" "+device)
		if f.fail == nil {
			f.zones[device] = becomes
		}
		return zone, f.fail
	}
	err = conn.ExportMethodTable(map[string]any{
		"getZoneOfInterface": func(device string) (string, *dbus.Error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.zones[device], nil
		},
		"addInterface":    func(zone, device string) (string, *dbus.Error) { return change("add", zone, device, zone) },
		"removeInterface": func(zone, device string) (string, *dbus.Error) { return change("remove", zone, device, "") },
	}, object, strings.TrimSuffix(zones, "."))
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(service, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("%v, %v", reply, err)
	}
	return f
}

func (f *fake) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := f.told
	f.told = nil
	return told
}

func TestTrustAndLeave(t *testing.T) {
	socket := bustest.New(t)
	f, m := fakeOn(t, socket), New(socket)
	for range 2 {
		if there, err := m.Trust(t.Context(), "bgr0"); !there || err != nil {
			t.Fatalf("%v, %v", there, err)
		}
	}
	if there, zone, err := m.Running(t.Context(), "bgr0"); !there || zone != "trusted" || err != nil {
		t.Errorf("%v, %q, %v", there, zone, err)
	}
	for range 2 {
		if err := m.Leave(t.Context(), "bgr0"); err != nil {
			t.Fatal(err)
		}
	}
	if told := f.take(); !slices.Equal(told, []string{"add trusted bgr0", "remove trusted bgr0"}) {
		t.Errorf("told %q", told)
	}
	// A zone that somebody has chosen is left alone.
	f.zones["bgr0"] = "work"
	if there, err := m.Trust(t.Context(), "bgr0"); !there || err != nil {
		t.Errorf("%v, %v", there, err)
	}
	if err := m.Leave(t.Context(), "bgr0"); err != nil {
		t.Error(err)
	}
	if told := f.take(); len(told) > 0 {
		t.Errorf("told %q", told)
	}
}

func TestRefusals(t *testing.T) {
	socket := bustest.New(t)
	f, m := fakeOn(t, socket), New(socket)
	f.fail = refusal("COMMAND_FAILED: no")
	_, err := m.Trust(t.Context(), "bgr0")
	f.zones["bgr0"] = "trusted"
	for _, err := range []error{err, m.Leave(t.Context(), "bgr0")} {
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "COMMAND_FAILED: no") || !strings.Contains(errdefs.HintOf(err), "--add-interface=bgr0") {
			t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
		}
	}
	// What is so already is no failure.
	f.fail = refusal("UNKNOWN_INTERFACE: 'bgr0' is not in any zone")
	if err := m.Leave(t.Context(), "bgr0"); err != nil {
		t.Error(err)
	}
	f.zones["bgr0"] = ""
	f.fail = refusal("ZONE_ALREADY_SET: 'bgr0' already bound to 'trusted'")
	if there, err := m.Trust(t.Context(), "bgr0"); !there || err != nil {
		t.Errorf("%v, %v", there, err)
	}
}

func TestNobodyThere(t *testing.T) {
	for what, socket := range map[string]string{"no bus": filepath.Join(t.TempDir(), "none"), "no firewalld": bustest.New(t)} {
		if there, err := New(socket).Trust(t.Context(), "bgr0"); there || err != nil {
			t.Errorf("%s: trust: %v, %v", what, there, err)
		}
		if err := New(socket).Leave(t.Context(), "bgr0"); err != nil {
			t.Errorf("%s: leave: %v", what, err)
		}
	}
}
