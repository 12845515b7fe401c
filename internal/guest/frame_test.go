package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"banger/internal/errdefs"
)

func TestFramesRoundTrip(t *testing.T) {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	big := bytes.Repeat([]byte("x"), MaxFrame+10)
	reserved := append(make([]byte, FrameHeader), "reserved"...)
	for _, err := range []error{
		w.Request(Request{Kind: KindExec, Exec: &Exec{Args: []string{"true"}}}),
		w.Write(ChanStdin, []byte("in")), w.Write(ChanStdout, big), w.Write(ChanStdin, nil),
		w.WriteReserved(ChanStderr, reserved), w.Control(Control{Type: ControlExit, Code: 3}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := NewFrameReader(&b)
	req, err := r.Request()
	if err != nil || req.Kind != KindExec || req.Exec.Args[0] != "true" {
		t.Fatalf("request = %+v, %v", req, err)
	}
	for _, want := range []struct {
		channel byte
		payload string
	}{
		{ChanStdin, "in"}, {ChanStdout, string(big[:MaxFrame])}, {ChanStdout, string(big[MaxFrame:])},
		{ChanStdin, ""}, {ChanStderr, "reserved"}, {ChanControl, `{"type":"exit","code":3}`},
	} {
		channel, payload, err := r.Next()
		if err != nil || channel != want.channel || string(payload) != want.payload {
			t.Fatalf("frame = %d, %d bytes, %v; want %d, %d bytes", channel, len(payload), err, want.channel, len(want.payload))
		}
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestFrameLimits(t *testing.T) {
	frame := func(channel byte, size uint32) io.Reader {
		head := binary.BigEndian.AppendUint32([]byte{channel}, size)
		return io.MultiReader(bytes.NewReader(head), io.LimitReader(zeroes{}, int64(size)))
	}
	for name, c := range map[string]struct {
		r  io.Reader
		ok bool
	}{
		"largest":          {frame(ChanStdout, MaxFrame), true},
		"too large":        {frame(ChanStdout, MaxFrame+1), false},
		"largest control":  {frame(ChanControl, MaxControl), true},
		"too much control": {frame(ChanControl, MaxControl+1), false},
		"absurd":           {frame(ChanStdin, 1<<32-1), false},
		"channel 0":        {frame(0, 1), false},
		"channel 5":        {frame(5, 1), false},
	} {
		_, _, err := NewFrameReader(c.r).Next()
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err := NewFrameReader(bytes.NewReader([]byte{ChanStdout, 0, 0, 0, 9, 'x'})).Next()
	if err != io.ErrUnexpectedEOF {
		t.Errorf("cut frame: %v", err)
	}
	_, _, err = NewFrameReader(bytes.NewReader([]byte{ChanStdout, 0})).Next()
	if err != io.ErrUnexpectedEOF {
		t.Errorf("cut header: %v", err)
	}
	big := Request{Kind: KindExec, Exec: &Exec{Args: []string{strings.Repeat("a", MaxRequest)}}}
	if err := NewFrameWriter(io.Discard).Request(big); !errors.Is(err, errdefs.ErrExhausted) {
		t.Errorf("large request: %v", err)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestReadRequestTakesNoMore: the rest of the stream belongs to somebody else.
func TestReadRequestTakesNoMore(t *testing.T) {
	var b bytes.Buffer
	if err := NewFrameWriter(&b).Request(Request{Kind: KindSync}); err != nil {
		t.Fatal(err)
	}
	b.WriteString("rest")
	if req, err := ReadRequest(&b); err != nil || req.Kind != KindSync {
		t.Fatal(req, err)
	}
	if b.String() != "rest" {
		t.Errorf("left = %q", b.String())
	}
}

func TestConcurrentWritersKeepFramesWhole(t *testing.T) {
	pr, pw := io.Pipe()
	w := NewFrameWriter(pw)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 100 {
				_ = w.Write(ChanStdout, bytes.Repeat([]byte{byte(i)}, 1000+i))
			}
		})
	}
	go func() { all.Wait(); _ = pw.Close() }()
	r := NewFrameReader(pr)
	count := 0
	for {
		_, p, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(p) != 1000+int(p[0]) || bytes.Count(p, p[:1]) != len(p) {
			t.Fatal("frames are mixed")
		}
		count++
	}
	if count != 800 {
		t.Errorf("%d frames", count)
	}
}

func TestReaderDoesNotAllocatePerFrame(t *testing.T) {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	for range 300 {
		_ = w.Write(ChanStdout, make([]byte, 900))
	}
	r := NewFrameReader(&b)
	_, _, _ = r.Next()
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations per frame", n)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	in := errdefs.NotFound("no such thing").WithHint("look elsewhere")
	out := ErrorControl(errdefs.Wrap(in, "find it")).Err()
	if !errors.Is(out, errdefs.ErrNotFound) || out.Error() != "find it: no such thing" || errdefs.HintOf(out) != "look elsewhere" {
		t.Errorf("%v %q", out, errdefs.HintOf(out))
	}
	evil := Control{Type: ControlError, Class: "root", Message: "a\x1b[31mb\r\nc\u202e" + strings.Repeat("x", 10000), Hint: "\x07"}.Err()
	if errdefs.ClassOf(evil) != errdefs.ClassInternal || len(evil.Error()) > 5000 || strings.ContainsAny(evil.Error(), "\x1b\r\n\u202e") {
		t.Errorf("%.60q", evil.Error())
	}
}

func FuzzFrameReader(f *testing.F) {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	_ = w.Request(Request{Kind: KindExec, Exec: &Exec{Args: []string{"a"}}})
	_ = w.Write(ChanStdin, []byte("x"))
	_ = w.Control(Control{Type: ControlResize, Rows: 1})
	f.Add(b.Bytes())
	f.Add([]byte{ChanControl, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		if req, err := r.Request(); err == nil {
			if req.Validate() != nil {
				t.Fatal("a request that is not valid was returned")
			}
			if exact, err := ReadRequest(bytes.NewReader(data)); err != nil || exact.Kind != req.Kind {
				t.Fatal("the two readers differ")
			}
		}
		for {
			channel, p, err := r.Next()
			if err != nil {
				return
			}
			if len(p) > MaxFrame || channel == ChanControl && len(p) > MaxControl {
				t.Fatal("a frame beyond the limits")
			}
			if channel == ChanControl {
				if c, err := DecodeControl(p); err == nil && c.Type == ControlError {
					_ = c.Err()
				}
			}
		}
	})
}

func FuzzMuxGuard(f *testing.F) {
	f.Add([]byte(HelloMagic), false)
	f.Add([]byte{0, muxData, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i'}, true)
	f.Fuzz(func(t *testing.T, data []byte, guestEnd bool) {
		// Whatever way the input is cut, the same bytes pass.
		read := func(chunk int) ([]byte, []byte) {
			c := &muxConn{r: &chunked{data, chunk}, guest: guestEnd}
			passed, _ := io.ReadAll(c)
			return passed, c.refused
		}
		whole, _ := read(len(data) + 1)
		pieces, refused := read(3)
		if !bytes.HasPrefix(data, whole) || !bytes.HasPrefix(data, pieces) {
			t.Fatal("bytes were changed")
		}
		// A refused header may have passed in part, in pieces; never the other way.
		if len(whole) > len(pieces) && refused == nil {
			t.Fatal("pieces lost bytes")
		}
	})
}

type chunked struct {
	data []byte
	n    int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.data)
	c.data = c.data[n:]
	return n, nil
}
