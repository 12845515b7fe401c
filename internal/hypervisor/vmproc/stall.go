package vmproc

import (
	"sync"
	"time"
)

// Stall is whether a guest stands still because a disk of it cannot grow: what a
// driver hears of that, for Machine.Stalled. The zero Stall is of a guest that runs.
type Stall struct {
	mu      sync.Mutex // a leaf; guards the fields below
	since   time.Time
	changed chan struct{} // closed at the next change; made by who waits for it
}

// Set notes whether the guest is stalled now.
func (s *Stall) Set(stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stalled != s.since.IsZero() {
		return
	}
	s.since = time.Time{}
	if stalled {
		s.since = time.Now()
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Stalled implements Machine.
func (s *Stall) Stalled() (since time.Time, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.since, s.changed
}
