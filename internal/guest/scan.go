package guest

import (
	"bytes"
	"io"

	"banger/internal/errdefs"
)

// scanner looks for the magics of the handshake in a stream that may hold any
// amount of old bytes before them. It keeps at most one buffer of them.
type scanner struct {
	r       io.Reader
	buf     []byte // buf[at:] is unread
	at      int
	limit   int64 // bytes that may be discarded in search of a magic
	dropped int64
}

// fill reads more input behind what is there.
func (s *scanner) fill() error {
	if s.buf == nil {
		s.buf = make([]byte, 0, scanBuffer)
	}
	if s.at > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[s.at:])]
		s.at = 0
	}
	if len(s.buf) == cap(s.buf) {
		s.buf = append(make([]byte, 0, 2*cap(s.buf)), s.buf...)
	}
	n, err := s.r.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// peek returns the next n bytes; they stay unread.
func (s *scanner) peek(n int) ([]byte, error) {
	for len(s.buf)-s.at < n {
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
	return s.buf[s.at : s.at+n], nil
}

func (s *scanner) skip(n int) { s.at += n }

// rest returns what was read ahead.
func (s *scanner) rest() []byte { return s.buf[s.at:] }

// magic discards input up to and including the next magic, and returns it.
func (s *scanner) magic() ([]byte, error) {
	const size = len(HelloMagic)
	for {
		rest := s.buf[s.at:]
		i := bytes.Index(rest, magicPrefix)
		switch {
		case i < 0:
			// The tail may be the beginning of a magic.
			drop := max(0, len(rest)-len(magicPrefix)+1)
			s.skip(drop)
			s.dropped += int64(drop)
		case len(rest)-i >= size:
			s.dropped += int64(i)
			found := rest[i : i+size]
			switch string(found) {
			case HelloMagic, AckMagic, NakMagic:
				s.skip(i + size)
				return found, nil
			}
			s.skip(i + 1)
			continue
		default:
			s.skip(i)
			s.dropped += int64(i)
		}
		if s.dropped > s.limit {
			return nil, errdefs.Exhausted("no answer of the agent within %d MiB of data from the VM", s.limit>>20).
				WithHint("stop and start the VM")
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
}
