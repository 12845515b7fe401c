package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// The header of a yamux frame: version, type, flags (2), stream (4), length (4).
const (
	muxHeader    = 12
	muxData      = 0
	muxPing      = 2
	muxGoAway    = 3
	muxFlagSYN   = 1
	muxMost      = MaxFrame + FrameHeader // bytes of payload in one multiplexer frame
	writeChunk   = 32 << 10               // the most a virtio-serial port takes in one write
	hostWindow   = 4 << 20                // bytes per stream in flight out of the guest
	guestWindow  = 2 << 20                // bytes per stream in flight into the guest
	acceptLimit  = 256                    // streams that may wait to be accepted by the agent
	hostTimeout  = 2 * time.Minute
	guestTimeout = 10 * 365 * 24 * time.Hour
)

// errStep means that what came is not the multiplexer's protocol.
var errStep = errors.New("lost step in the channel")

// muxConfig tunes yamux. Keep-alive is off: an idle VM must not wake up. The
// window decides throughput; writeTimeout when a peer that does not take bytes
// counts as dead.
func muxConfig(window uint32, writeTimeout time.Duration) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          acceptLimit,
		KeepAliveInterval:      time.Hour, // unused, but checked
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    window,
		StreamCloseTimeout:     5 * time.Minute,
		Logger:                 quiet{},
	}
}

type quiet struct{}

func (quiet) Print(...any)          {}
func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

// muxConn stands between yamux and the channel, for three reasons. It joins the
// header and the body of a frame into one write, because each write to a
// virtio-serial port costs a trip to the VMM. It follows the frames that come in
// and ends the connection at the first one that the peer has no business to
// send: yamux itself starts a goroutine for every ping, and keeps data for every
// stream that a peer opens. And it keeps what it refused, which on the guest's
// side is where the next handshake begins.
type muxConn struct {
	r     io.Reader
	w     io.Writer
	close func() error
	guest bool   // the guest's end: streams may be opened by the peer
	ahead []byte // read from r already; comes first

	// What follows is used by yamux's reading goroutine only, until it ended.
	head    [muxHeader]byte
	nhead   int
	body    uint32 // bytes of the current frame still to come
	err     error
	refused []byte // starts with the header that broke the rules

	// Used by yamux's sending goroutine only.
	pending []byte
}

func (c *muxConn) Close() error { return c.close() }

func (c *muxConn) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	var n int
	var err error
	if len(c.ahead) > 0 {
		n = copy(p, c.ahead)
		c.ahead = c.ahead[n:]
	} else {
		n, err = c.r.Read(p)
	}
	good := c.follow(p[:n])
	if c.err != nil {
		c.refused = append(c.refused, c.ahead...)
		if good > 0 {
			return good, nil
		}
		return 0, c.err
	}
	c.err = err
	if n > 0 {
		return n, nil
	}
	return n, err
}

// follow walks the frames in p and returns how much of it is in order. At a
// violation it sets err and refused.
func (c *muxConn) follow(p []byte) int {
	for i := 0; i < len(p); {
		if c.body > 0 {
			n := min(int64(c.body), int64(len(p)-i))
			c.body -= uint32(n)
			i += int(n)
			continue
		}
		start := i
		n := copy(c.head[c.nhead:], p[i:])
		c.nhead += n
		i += n
		if c.nhead < muxHeader {
			return len(p)
		}
		if !c.allowed() {
			c.refused = append(append([]byte(nil), c.head[:]...), p[i:]...)
			c.err = errStep
			return start
		}
		if c.head[1] == muxData {
			c.body = binary.BigEndian.Uint32(c.head[8:])
		}
		c.nhead = 0
	}
	return len(p)
}

func (c *muxConn) allowed() bool {
	kind := c.head[1]
	flags := binary.BigEndian.Uint16(c.head[2:])
	if c.head[0] != 0 || kind > muxGoAway || kind == muxPing {
		return false
	}
	if kind == muxData && binary.BigEndian.Uint32(c.head[8:]) > muxMost {
		return false
	}
	return c.guest || flags&muxFlagSYN == 0
}

// Write holds back the header of a data frame until its body comes, which yamux
// always writes next.
func (c *muxConn) Write(p []byte) (int, error) {
	if len(c.pending) == 0 {
		if len(p) == muxHeader && p[1] == muxData && binary.BigEndian.Uint32(p[8:]) > 0 {
			c.pending = append(c.pending, p...)
			return len(p), nil
		}
		return c.w.Write(p)
	}
	first := min(len(p), writeChunk-muxHeader)
	c.pending = append(c.pending, p[:first]...)
	_, err := c.w.Write(c.pending)
	c.pending = c.pending[:0]
	if err == nil && first < len(p) {
		_, err = c.w.Write(p[first:])
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
