// Package firewalld asks firewalld, where it runs, to let the bridge of VMs through. It
// refuses what comes from a device of no zone, and an accept in a table of ours cannot
// overrule that. The zone "trusted" is where it leaves devices to others.
//
// What is asked for is of firewalld's run time: its configuration is not changed, and a
// reload forgets it.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"banger/internal/daemon/sysbus"
	"banger/internal/errdefs"
)

const (
	service = "org.fedoraproject.FirewallD1"
	object  = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	zones   = service + ".zone."
)

// Zone lets through whatever comes from its devices.
const Zone = "trusted"

// callTimeout is how long all calls of one change may take. firewalld writes its rules
// in them.
const callTimeout = 10 * time.Second

// Manager is firewalld, as seen over a bus.
type Manager struct {
	bus string // socket
}

// New returns the firewalld on the bus with that socket. It has touched nothing yet.
func New(bus string) *Manager { return &Manager{bus: bus} }

// Command is what a person says to have it for good.
func Command(device string) string {
	return "firewall-cmd --permanent --zone=" + Zone + " --add-interface=" + device + " && firewall-cmd --reload"
}

// Trust puts the device into the zone trusted, unless somebody has put it into some zone
// already: that is theirs to choose. It reports false when there is no firewalld on this
// host.
func (m *Manager) Trust(ctx context.Context, device string) (bool, error) {
	return m.talk(ctx, device, func(call func(method string, args ...any) *dbus.Call, zone string) error {
		if zone != "" {
			return nil
		}
		err := call("addInterface", Zone, device).Err
		if says(err, "ZONE_ALREADY_SET") || says(err, "ZONE_CONFLICT") { // somebody was quicker
			return nil
		}
		return err
	})
}

// Leave takes the device out of the zone trusted. One that is in another zone, or none,
// stays as it is.
func (m *Manager) Leave(ctx context.Context, device string) error {
	_, err := m.talk(ctx, device, func(call func(method string, args ...any) *dbus.Call, zone string) error {
		if zone != Zone {
			return nil
		}
		err := call("removeInterface", Zone, device).Err
		if says(err, "UNKNOWN_INTERFACE") {
			return nil
		}
		return err
	})
	return err
}

// Running reports whether there is a firewalld, and which zone the device is in.
func (m *Manager) Running(ctx context.Context, device string) (there bool, zone string, err error) {
	there, err = m.talk(ctx, device, func(_ func(string, ...any) *dbus.Call, z string) error {
		zone = z
		return nil
	})
	return there, zone, err
}

// talk calls fn with the device's zone, or reports that nobody is there.
func (m *Manager) talk(ctx context.Context, device string, fn func(call func(method string, args ...any) *dbus.Call, zone string) error) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := sysbus.Connect(ctx, m.bus)
	if err != nil {
		return false, explain(device, err)
	}
	if conn == nil {
		return false, nil
	}
	defer func() { _ = conn.Close() }()
	firewall := conn.Object(service, object)
	call := func(method string, args ...any) *dbus.Call {
		return firewall.CallWithContext(ctx, zones+method, dbus.FlagNoAutoStart, args...)
	}
	var zone string
	err = call("getZoneOfInterface", device).Store(&zone)
	if sysbus.Absent(err) {
		return false, nil
	}
	if err == nil {
		err = fn(call, zone)
	}
	return true, explain(device, err)
}

// says reports whether firewalld refused for that reason, with which its messages begin.
func says(err error, reason string) bool {
	var failed dbus.Error
	return errors.As(err, &failed) && len(failed.Body) > 0 && strings.HasPrefix(fmt.Sprint(failed.Body[0]), reason)
}

func explain(device string, err error) error {
	if err == nil {
		return nil
	}
	return errdefs.Unavailable("tell firewalld of %s: %w", device, err).WithHint("do it by hand: %s", Command(device))
}
