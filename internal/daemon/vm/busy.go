package vm

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
)

// use is what a client does with a VM through this daemon, and loses with it.
type use struct {
	vm   string // id
	what string
}

// use notes a use, for Busy, until done is called; calling it twice is harmless.
func (s *Service) use(id, what string) (done func()) {
	u := use{id, what}
	s.mu.Lock()
	s.uses[u]++
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.uses[u]--; s.uses[u] == 0 {
			delete(s.uses, u)
		}
	})
}

// used is a stream to an agent, which is in use until it is closed.
type used struct {
	net.Conn
	done func()
}

func (u *used) Close() error {
	u.done()
	return u.Conn.Close()
}

// Busy says what of clients the daemon's end would cut off, in words for people.
// A VM that is to vanish with its client counts while it runs, in between that
// client's streams too: the next daemon would take the client for gone.
func (s *Service) Busy(ctx context.Context) []string {
	s.mu.Lock()
	uses := maps.Clone(s.uses)
	leased := make(map[string]bool)
	for id, l := range s.live {
		if l.lease != nil {
			leased[id] = true
		}
	}
	s.mu.Unlock()
	var words []string
	for u, n := range uses {
		delete(leased, u.vm)
		text := fmt.Sprintf("%s of vm %q", u.what, s.nameOf(ctx, u.vm))
		if n > 1 {
			text += fmt.Sprintf(" (%d times)", n)
		}
		words = append(words, text)
	}
	for id := range leased {
		words = append(words, fmt.Sprintf("vm %q, which goes with its client", s.nameOf(ctx, id)))
	}
	slices.Sort(words)
	return words
}

// nameOf is a VM's name, or its id when that is all there is.
func (s *Service) nameOf(ctx context.Context, id string) string {
	if v, err := s.Store.GetVM(ctx, id); err == nil {
		return v.Name
	}
	return id
}
