package guest

import (
	"context"
	"net"
)

// OpenSSH sends an ssh request on conn and waits until the agent serves it. conn carries
// SSH's own bytes from then on, and not one of them has been read. ctx bounds the opening
// alone. It closes conn when it fails.
func OpenSSH(ctx context.Context, conn net.Conn, q SSH) error {
	_, err := begin(ctx, conn, Request{Kind: KindSSH, SSH: &q}, func() (byte, []byte, error) { return readExactly(conn, MaxControl) })
	return err
}

// OpenMount sends a mount request on conn and waits until the agent has mounted. r reads what
// the agent sends from then on. ctx bounds the opening alone. It closes conn when it fails.
func OpenMount(ctx context.Context, conn net.Conn, q Mount) (started Control, r *FrameReader, err error) {
	r = NewFrameReader(conn)
	started, err = begin(ctx, conn, Request{Kind: KindMount, Mount: &q}, r.Next)
	return started, r, err
}

// begin sends a request and waits until the agent serves it, which the first frame that read
// returns says.
func begin(ctx context.Context, conn net.Conn, q Request, read func() (byte, []byte, error)) (started Control, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	err = NewFrameWriter(conn).Request(q)
	if err == nil {
		var channel byte
		var payload []byte
		if channel, payload, err = read(); err == nil {
			started, err = agreed(channel, payload)
		}
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return started, lost(ctx, err)
	}
	return started, nil
}
