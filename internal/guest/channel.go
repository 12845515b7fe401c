package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"banger/internal/errdefs"
)

// Port is the agent's end of the byte channel. Read gives io.EOF when the host
// hangs up; a later host is served on the same Port.
type Port interface {
	io.ReadWriter
	SetDeadline(time.Time) error
}

// Channel accepts sessions on a Port, one after the other. It is for one
// goroutine.
type Channel struct {
	port Port
	scan scanner
	nak  bool // the last session lost step
}

// NewChannel makes the agent's end over port.
func NewChannel(port Port) *Channel {
	return &Channel{port: port, scan: scanner{r: port, limit: math.MaxInt64}}
}

// Accept waits for a hello, calls ready for what to answer, and returns the
// session. ready may block, for a hello is only answered when there is something
// to say. The session must be closed before the next Accept. The error is io.EOF
// when the host hung up.
func (c *Channel) Accept(ready func() Ready) (*Incoming, error) {
	if err := c.port.SetDeadline(time.Time{}); err != nil {
		return nil, errdefs.Wrap(err, "reset the channel")
	}
	if c.nak {
		if _, err := c.port.Write([]byte(NakMagic)); err != nil {
			return nil, err
		}
		c.nak = false
	}
	for {
		magic, err := c.scan.magic()
		if err != nil {
			return nil, err
		}
		if string(magic) != HelloMagic {
			continue
		}
		nonce, err := c.scan.peek(NonceSize)
		if err != nil {
			return nil, err
		}
		ack := append([]byte(AckMagic), nonce...)
		c.scan.skip(NonceSize)
		record, err := json.Marshal(ready())
		if err != nil {
			return nil, errdefs.Internal("encode greeting: %w", err)
		}
		ack = binary.BigEndian.AppendUint32(ack, uint32(len(record)))
		if _, err := c.port.Write(append(ack, record...)); err != nil {
			return nil, err
		}
		return c.incoming()
	}
}

func (c *Channel) incoming() (*Incoming, error) {
	conn := &muxConn{r: c.port, w: c.port, guest: true, ahead: bytes.Clone(c.scan.rest()), close: func() error {
		// The port stays open for the next host: only wake who waits for it.
		return c.port.SetDeadline(time.Unix(1, 0))
	}}
	c.scan.buf = c.scan.buf[:0]
	c.scan.at, c.scan.dropped = 0, 0
	mux, err := yamux.Server(conn, muxConfig(guestWindow, guestTimeout))
	if err != nil {
		return nil, errdefs.Internal("start the multiplexer: %w", err)
	}
	return &Incoming{channel: c, conn: conn, mux: mux}, nil
}

// Incoming is a session, the agent's end.
type Incoming struct {
	channel *Channel
	conn    *muxConn
	mux     *yamux.Session
}

// Accept waits for the next stream. It fails when the session has ended.
func (i *Incoming) Accept() (net.Conn, error) { return i.mux.Accept() }

// Done is closed when the session has ended.
func (i *Incoming) Done() <-chan struct{} { return i.mux.CloseChan() }

// Close ends the session and its streams. What came in and was not the
// session's, because another host had already begun, is kept for Accept.
func (i *Incoming) Close() {
	_ = i.mux.Close()
	if errors.Is(i.conn.err, errStep) && i.conn.refused != nil {
		c := i.channel
		c.scan.buf = append(c.scan.buf[:0], i.conn.refused...)
		c.scan.at = 0
		// A hello in its right place needs no nak: it will be answered.
		c.nak = !strings.HasPrefix(HelloMagic, string(i.conn.refused[:muxHeader]))
	}
}
