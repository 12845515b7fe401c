// Package sysbus joins the system's message bus, over which other services of the host
// are told of what is ours. Nothing is started for that: where a service does not run,
// there is nobody to tell.
package sysbus

import (
	"context"
	"errors"
	"io/fs"
	"net"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Socket is where the system's bus is.
const Socket = "/run/dbus/system_bus_socket"

// ErrorPrefix begins the names of the bus's own errors.
const ErrorPrefix = "org.freedesktop.DBus.Error."

// Connect joins the bus with that socket. The connection ends with ctx. It returns nil
// where there is no bus.
func Connect(ctx context.Context, socket string) (*dbus.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(raw, dbus.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil { // then err only says that the connection is closed
			return nil, ctx.Err()
		}
		return nil, err
	}
	return conn, nil
}

// Absent reports whether err says that a service is not on the bus. Calls with
// dbus.FlagNoAutoStart get such an error.
func Absent(err error) bool {
	var failed dbus.Error
	return errors.As(err, &failed) &&
		(failed.Name == ErrorPrefix+"ServiceUnknown" || failed.Name == ErrorPrefix+"NameHasNoOwner")
}
