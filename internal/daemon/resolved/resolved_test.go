package resolved

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"banger/internal/daemon/sysbus"
	"banger/internal/daemon/sysbus/bustest"
	"banger/internal/errdefs"
)

// fake stands in for resolved: it writes down what it is told.
type fake struct {
	mu   sync.Mutex
	told []string
	fail map[string]*dbus.Error // by method
	hang context.CancelFunc     // when not nil: called by SetLinkDomains, which then does not answer
	end  <-chan struct{}        // of the test
}

func (f *fake) tell(method string, args ...any) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, method+fmt.Sprint(args...))
	return f.fail[method]
}

func (f *fake) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := f.told
	f.told = nil
	return told
}

// fakeOn puts a fake on a bus. Methods in without are not there.
func fakeOn(t *testing.T, socket string, without ...string) *fake {
	t.Helper()
	f := &fake{fail: map[string]*dbus.Error{}, end: t.Context().Done()}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	conn, err := sysbus.Connect(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	methods := map[string]any{
		"SetLinkDefaultRoute": func(i int32, yes bool) *dbus.Error { return f.tell("SetLinkDefaultRoute", i, yes) },
		"SetLinkDNSSEC":       func(i int32, mode string) *dbus.Error { return f.tell("SetLinkDNSSEC", i, mode) },
		"SetLinkDNSOverTLS":   func(i int32, mode string) *dbus.Error { return f.tell("SetLinkDNSOverTLS", i, mode) },
		"SetLinkLLMNR":        func(i int32, mode string) *dbus.Error { return f.tell("SetLinkLLMNR", i, mode) },
		"SetLinkMulticastDNS": func(i int32, mode string) *dbus.Error { return f.tell("SetLinkMulticastDNS", i, mode) },
		"SetLinkDomains": func(i int32, d []domain) *dbus.Error {
			err := f.tell("SetLinkDomains", i, d)
			if f.hang != nil {
				f.hang()
				<-f.end
			}
			return err
		},
		"SetLinkDNSEx": func(i int32, s []server) *dbus.Error { return f.tell("SetLinkDNSEx", i, s) },
		"RevertLink":   func(i int32) *dbus.Error { return f.tell("RevertLink", i) },
	}
	for _, name := range without {
		delete(methods, name)
	}
	if err := conn.ExportMethodTable(methods, object, service+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(service, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("%v, %v", reply, err)
	}
	return f
}

var link = Link{
	Index: 7, Domains: []string{"vm", "42.10.in-addr.arpa"},
	Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.42:53"), netip.MustParseAddrPort("[fd42::1]:5300")},
}

func TestPointAndRevert(t *testing.T) {
	socket := bustest.New(t)
	f := fakeOn(t, socket)
	m := New(socket)
	if there, err := m.Point(t.Context(), link); !there || err != nil {
		t.Fatalf("%v, %v", there, err)
	}
	want := []string{
		"SetLinkDefaultRoute7 false", "SetLinkDNSSEC7no", "SetLinkDNSOverTLS7no", "SetLinkLLMNR7no", "SetLinkMulticastDNS7no",
		"SetLinkDomains7 [{vm true} {42.10.in-addr.arpa true}]",
		"SetLinkDNSEx7 [{2 [127 0 0 42] 53 } {10 [253 66 0 0 0 0 0 0 0 0 0 0 0 0 0 1] 5300 }]",
	}
	if told := f.take(); !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
	if there, err := m.Revert(t.Context(), 7); !there || err != nil {
		t.Fatalf("%v, %v", there, err)
	}
	if told := f.take(); !slices.Equal(told, []string{"RevertLink7"}) {
		t.Errorf("told %q", told)
	}
	f.fail["RevertLink"] = dbus.NewError(service+".NoSuchLink", []any{"Link 7 not known"})
	if there, err := m.Revert(t.Context(), 7); !there || err != nil {
		t.Errorf("a link that is gone: %v, %v", there, err)
	}
}

// Where nobody is told, nobody is missed.
func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	sockets := map[string]string{"no bus": filepath.Join(dir, "none"), "a bus that ended": dead}
	if _, err := exec.LookPath("dbus-daemon"); err == nil {
		sockets["no resolved"] = bustest.New(t)
	}
	for what, socket := range sockets {
		if there, err := New(socket).Point(t.Context(), link); there || err != nil {
			t.Errorf("%s: point: %v, %v", what, there, err)
		}
		if there, err := New(socket).Revert(t.Context(), 7); there || err != nil {
			t.Errorf("%s: revert: %v, %v", what, there, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	socket := bustest.New(t)
	f := fakeOn(t, socket)
	for _, tc := range []struct {
		method, name string
		class        error
		hint         string
	}{
		{"SetLinkDNSEx", sysbus.ErrorPrefix + "AccessDenied", errdefs.ErrPermission, "docs/dns.md"},
		{"SetLinkDefaultRoute", sysbus.ErrorPrefix + "InteractiveAuthorizationRequired", errdefs.ErrPermission, "docs/dns.md"},
		{"SetLinkDomains", service + ".LinkBusy", errdefs.ErrUnavailable, "journalctl -u systemd-resolved"},
		{"SetLinkDNSSEC", sysbus.ErrorPrefix + "UnknownMethod", errdefs.ErrUnsupported, "systemd 246"},
	} {
		f.fail = map[string]*dbus.Error{tc.method: dbus.NewError(tc.name, []any{"no, says resolved"})}
		there, err := New(socket).Point(t.Context(), link)
		if !there || !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.method) ||
			!strings.Contains(err.Error(), "no, says resolved") || !strings.Contains(errdefs.HintOf(err), tc.hint) {
			t.Errorf("%s %s: %v, %v (hint %q)", tc.method, tc.name, there, err, errdefs.HintOf(err))
		}
		// What was said before is taken back.
		if told := f.take(); told[len(told)-1] != "RevertLink7" {
			t.Errorf("%s: told %q", tc.method, told)
		}
	}
}

func TestOldResolved(t *testing.T) {
	socket := bustest.New(t)
	fakeOn(t, socket, "SetLinkDNSEx")
	if _, err := New(socket).Point(t.Context(), link); !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "systemd 246") {
		t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
	}
}

// Who gives up in the middle leaves nothing half told.
func TestGivenUp(t *testing.T) {
	socket := bustest.New(t)
	f := fakeOn(t, socket)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.hang = cancel
	if there, err := New(socket).Point(ctx, link); !there || !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("%v, %v", there, err)
	}
	if told := f.take(); len(told) != 7 || told[6] != "RevertLink7" {
		t.Errorf("told %q", told)
	}
}
