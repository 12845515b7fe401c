package guest

import (
	"context"
	"io"
	"net"

	"banger/internal/errdefs"
)

// OpenSSH sends an ssh request on conn and waits until the agent serves it. conn carries
// SSH's own bytes from then on, and not one of them has been read. ctx bounds the opening
// alone. It closes conn when it fails.
func OpenSSH(ctx context.Context, conn net.Conn, q SSH) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	err := NewFrameWriter(conn).Request(Request{Kind: KindSSH, SSH: &q})
	if err == nil {
		err = readStarted(conn)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return lost(ctx, err)
	}
	return nil
}

// readStarted reads the frame by which an agent agrees.
func readStarted(conn io.Reader) error {
	var head [FrameHeader]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	channel, size, err := parseHeader(head[:], MaxControl)
	if err != nil {
		return err
	}
	if channel != ChanControl {
		return errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(conn, payload); err != nil {
		return err
	}
	c, err := DecodeControl(payload)
	switch {
	case err != nil:
		return err
	case c.Type == ControlStarted:
		return nil
	case c.Type == ControlError:
		return c.Err()
	}
	return unexpected(c)
}
