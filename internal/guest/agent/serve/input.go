package serve

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

const (
	grantEvery = guest.InitialWindow / 4 // bytes consumed before the host is told
	inputChunk = 64 << 10
	firstRing  = 16 << 10
	endOfInput = 0x04 // what a terminal's user types to end the input
)

// input holds what the host sent and the command has not read yet: at most
// InitialWindow bytes, which is why the stream itself never has to stop.
type input struct {
	f   *os.File
	tty bool

	mu      sync.Mutex // guards what follows
	wake    sync.Cond
	ring    []byte
	start   int
	length  int
	eof     bool
	stopped bool // the command ended: input is thrown away
}

func newInput(f *os.File, tty bool) *input {
	in := &input{f: f, tty: tty}
	in.wake.L = &in.mu
	return in
}

// push takes over a copy of p.
func (in *input) push(p []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return nil // the command ended; the host cannot know yet
	}
	if in.eof {
		return errdefs.Invalid("input after its end")
	}
	if in.length+len(p) > guest.InitialWindow {
		return errdefs.Invalid("more input than was granted")
	}
	in.grow(in.length + len(p))
	at := (in.start + in.length) % len(in.ring)
	n := copy(in.ring[at:], p)
	copy(in.ring, p[n:])
	in.length += len(p)
	in.wake.Signal()
	return nil
}

// grow makes the ring at least n bytes large, while the pump may still be writing
// from the old one, which is therefore left as it is.
func (in *input) grow(n int) {
	if n <= len(in.ring) {
		return
	}
	size := max(firstRing, len(in.ring))
	for size < n {
		size *= 2
	}
	ring := make([]byte, size)
	if in.length > 0 {
		k := copy(ring, in.ring[in.start:min(len(in.ring), in.start+in.length)])
		copy(ring[k:], in.ring[:in.length-k])
	}
	in.ring, in.start = ring, 0
}

// end marks the end of the input.
func (in *input) end() {
	in.mu.Lock()
	in.eof = true
	in.wake.Signal()
	in.mu.Unlock()
}

// stop ends the pump, whatever it is doing.
func (in *input) stop() {
	in.mu.Lock()
	in.eof, in.stopped, in.length = true, true, 0
	in.wake.Signal()
	in.mu.Unlock()
	_ = in.f.SetWriteDeadline(time.Unix(1, 0))
}

// next waits for input and returns some of it; nil at the end.
func (in *input) next() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.length == 0 && !in.eof {
		in.wake.Wait()
	}
	if in.length == 0 {
		return nil
	}
	end := min(in.start+in.length, len(in.ring))
	return in.ring[in.start:min(end, in.start+largePipe)]
}

// consumed frees n bytes that next returned.
func (in *input) consumed(n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return
	}
	in.length -= n
	in.start = (in.start + n) % len(in.ring)
}

// pump writes the input to the command and grants the host as much again.
func (in *input) pump(w *guest.FrameWriter) {
	if !in.tty {
		defer in.f.Close()
	}
	owed, broken, large := 0, false, false
	for {
		p := in.next()
		if p == nil {
			break
		}
		if len(p) > inputChunk && !large && !in.tty {
			large = true
			in.enlarge()
		}
		if !broken {
			// The command may close its input early; that is its right.
			_, err := in.f.Write(p)
			broken = err != nil
		}
		in.consumed(len(p))
		if owed += len(p); owed >= grantEvery {
			if w.Control(guest.Control{Type: guest.ControlWindow, Bytes: int64(owed)}) != nil {
				return
			}
			owed = 0
		}
	}
	if in.tty && !broken {
		_, _ = in.f.Write([]byte{endOfInput})
	}
}

func (in *input) enlarge() {
	if raw, err := in.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, largePipe)
		})
	}
}
