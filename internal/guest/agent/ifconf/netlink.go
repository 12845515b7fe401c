// Package ifconf configures the guest's network card by rtnetlink, with the few
// messages that takes.
package ifconf

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// conn is a route netlink socket. Requests are answered one by one, at once, by
// the kernel itself, so it blocks and needs no poller.
type conn struct {
	fd  int
	seq uint32
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errdefs.Wrap(err, "open route socket")
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, errdefs.Wrap(err, "bind route socket")
	}
	return &conn{fd: fd}, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// attr appends one route attribute to b.
func attr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// do sends one request and waits for its acknowledgement.
func (c *conn) do(kind, flags uint16, body []byte) error {
	c.seq++
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = binary.NativeEndian.AppendUint32(msg, c.seq)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	msg = append(msg, body...)
	if err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 8<<10)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if found, err := answer(buf[:n], c.seq); found {
			return err
		}
	}
}

// answer looks for the acknowledgement of seq in what the kernel sent.
func answer(b []byte, seq uint32) (bool, error) {
	for len(b) >= unix.SizeofNlMsghdr+4 {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return false, nil
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && binary.NativeEndian.Uint32(b[8:]) == seq {
			errno := -int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:]))
			if errno == 0 {
				return true, nil
			}
			return true, unix.Errno(errno)
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return false, nil
}

// link sends RTM_NEWLINK for an existing card.
func (c *conn) link(index int, flags, change uint32, attrs []byte) error {
	body := make([]byte, 4, unix.SizeofIfInfomsg+len(attrs))
	body = append(body, u32(uint32(index))...)
	body = append(body, u32(flags)...)
	body = append(body, u32(change)...)
	return c.do(unix.RTM_NEWLINK, 0, append(body, attrs...))
}
