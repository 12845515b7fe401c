package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"

	"banger/internal/errdefs"
)

// FrameHeader is the size of what stands before a frame's payload: the channel
// byte and the length.
const FrameHeader = 5

// readBuffer is the read-ahead of a FrameReader; larger payloads bypass it.
const readBuffer = 16 << 10

// FrameReader reads the frames of one stream. It is for one goroutine.
type FrameReader struct {
	r   *bufio.Reader
	buf []byte
}

// NewFrameReader reads frames from r, ahead of what it returns.
func NewFrameReader(r io.Reader) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, readBuffer)}
}

// Next returns the next frame. The payload is valid until the following call.
// The error is io.EOF at the end of the stream between two frames,
// io.ErrUnexpectedEOF within one, and of class invalid_argument for a frame that
// breaks the limits, after which the stream cannot be read on.
func (f *FrameReader) Next() (channel byte, payload []byte, err error) {
	return f.next(MaxControl)
}

// Plain is conn, from which f reads, after the last frame that was returned: without frames.
// The reader itself is not to be used any more.
func (f *FrameReader) Plain(conn net.Conn) net.Conn { return &plainConn{conn, f.r} }

type plainConn struct {
	net.Conn
	r *bufio.Reader // of conn, and what it has read ahead
}

func (p *plainConn) Read(b []byte) (int, error) { return p.r.Read(b) }

// Request reads the first frame of a stream and decodes and validates it.
func (f *FrameReader) Request() (Request, error) {
	channel, payload, err := f.next(MaxRequest)
	if err != nil {
		return Request{}, err
	}
	return decodeRequest(channel, payload)
}

func (f *FrameReader) next(maxControl int) (byte, []byte, error) {
	head, err := f.r.Peek(FrameHeader)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	channel, size, err := parseHeader(head, maxControl)
	if err != nil {
		return 0, nil, err
	}
	_, _ = f.r.Discard(FrameHeader)
	if size > cap(f.buf) {
		// One growth to the usual large frame instead of several small ones.
		f.buf = make([]byte, max(size, 4<<10))
	}
	payload := f.buf[:size]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return channel, payload, nil
}

func parseHeader(head []byte, maxControl int) (channel byte, size int, err error) {
	channel = head[0]
	length := binary.BigEndian.Uint32(head[1:FrameHeader])
	limit := uint32(MaxFrame)
	switch channel {
	case ChanStdin, ChanStdout, ChanStderr:
	case ChanControl:
		limit = uint32(maxControl)
	default:
		return 0, 0, errdefs.Invalid("read frame: unknown channel %d", channel)
	}
	if length > limit {
		return 0, 0, errdefs.Invalid("read frame: %d bytes on channel %d, at most %d are allowed", length, channel, limit)
	}
	return channel, int(length), nil
}

// FrameWriter writes the frames of one stream. It is safe for concurrent use;
// every frame reaches the stream in one Write.
type FrameWriter struct {
	mu  sync.Mutex // keeps frames whole; guards buf
	w   io.Writer
	buf []byte
}

// NewFrameWriter writes frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write sends p as frames of at most MaxFrame bytes. An empty p sends one empty
// frame, which on ChanStdin means end of file.
func (f *FrameWriter) Write(channel byte, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		n := min(len(p), MaxFrame)
		f.buf = append(f.buf[:0], 0, 0, 0, 0, 0)
		f.buf = append(f.buf, p[:n]...)
		putHeader(f.buf, channel)
		if _, err := f.w.Write(f.buf); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// WriteReserved sends buf[FrameHeader:] as one frame without copying it: the
// caller leaves the first FrameHeader bytes of buf free.
func (f *FrameWriter) WriteReserved(channel byte, buf []byte) error {
	if len(buf) < FrameHeader || len(buf)-FrameHeader > MaxFrame {
		return errdefs.Internal("write frame: %d bytes", len(buf)-FrameHeader)
	}
	putHeader(buf, channel)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(buf)
	return err
}

// Control sends c as a control frame.
func (f *FrameWriter) Control(c Control) error {
	b, err := json.Marshal(c)
	if err != nil {
		return errdefs.Internal("encode %s frame: %w", c.Type, err)
	}
	if len(b) > MaxControl {
		return errdefs.Internal("encode %s frame: %d bytes, at most %d are allowed", c.Type, len(b), MaxControl)
	}
	return f.Write(ChanControl, b)
}

// Request sends r as the first frame of a stream.
func (f *FrameWriter) Request(r Request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return errdefs.Internal("encode request: %w", err)
	}
	if len(b) > MaxRequest {
		return errdefs.Exhausted("encode %s request: %d bytes, at most %d are allowed", r.Kind, len(b), MaxRequest).
			WithHint("make the command line or the environment smaller")
	}
	return f.Write(ChanControl, b)
}

func putHeader(buf []byte, channel byte) {
	buf[0] = channel
	binary.BigEndian.PutUint32(buf[1:FrameHeader], uint32(len(buf)-FrameHeader))
}

// ReadRequest reads the first frame of a stream and not one byte more, so that
// the rest can be copied elsewhere without being looked at.
func ReadRequest(r io.Reader) (Request, error) {
	channel, payload, err := readExactly(r, MaxRequest)
	if err != nil {
		return Request{}, err
	}
	return decodeRequest(channel, payload)
}

// readExactly reads one frame, and nothing of what follows it.
func readExactly(r io.Reader, maxControl int) (channel byte, payload []byte, err error) {
	var head [FrameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	channel, size, err := parseHeader(head[:], maxControl)
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(r, payload)
	return channel, payload, err
}

// WriteRequest sends r as the first frame of the stream conn. A guest that does
// not take it in is left by ctx; conn is then good for nothing but Close.
func WriteRequest(ctx context.Context, conn net.Conn, r Request) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(past) })
	err := NewFrameWriter(conn).Request(r)
	if !stop() {
		err = context.Cause(ctx)
	}
	return err
}

// DecodeControl decodes the payload of a control frame that is not the first.
func DecodeControl(payload []byte) (Control, error) {
	var c Control
	if err := json.Unmarshal(payload, &c); err != nil {
		return Control{}, errdefs.Invalid("decode control frame: %w", err)
	}
	return c, nil
}

func decodeRequest(channel byte, payload []byte) (Request, error) {
	if channel != ChanControl {
		return Request{}, errdefs.Invalid("read request: first frame is on channel %d", channel)
	}
	var r Request
	if err := json.Unmarshal(payload, &r); err != nil {
		return Request{}, errdefs.Invalid("decode request: %w", err)
	}
	return r, r.Validate()
}

// isEnd reports whether err only says that the peer is gone.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe)
}
