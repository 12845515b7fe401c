// Package vmlock is a set of named claims, one per key: a lock whose waiters give
// up with their context, whose holder can be asked for and can be asked to let go.
//
// A claim is held over I/O (a whole start, a whole import). Functions that need
// one take the *Held as a parameter, so forgetting to acquire it does not compile.
package vmlock

import (
	"context"
	"errors"
	"sync"
	"time"

	"banger/internal/errdefs"
	"banger/internal/lockrank"
)

// Set holds the claims. The zero value is ready. Entries exist only while somebody
// holds or waits, so the set never grows.
type Set struct {
	mu      sync.Mutex // guards claims and everything in it
	claims  map[string]*claim
	Noun    string                  // what a key is, for messages: "vm"
	Display func(key string) string // how people know the key; nil: as it is
	Rank    int                     // in the order of locks; 0: none, as in tests
}

type claim struct {
	free    chan struct{} // holds one token while nobody holds the claim
	waiters int           // holders and waiters; the entry goes at zero
	seizing int           // waiters in Seize: everybody else lets go
	action  string
	since   time.Time
	cancel  context.CancelCauseFunc // cancels the holder's work; nil: it cannot be taken away
}

// Held is the proof that its owner holds the claim on Key.
type Held struct {
	Key       string
	preempted context.Context
	once      sync.Once
	release   func()
}

// Context returns a context that ends with parent, when Seize takes the claim
// away, and when the claim is released.
func (h *Held) Context(parent context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	if h.preempted.Err() != nil {
		cancel(context.Cause(h.preempted)) // at once: it was lost before it was held
	}
	stop := context.AfterFunc(h.preempted, func() { cancel(context.Cause(h.preempted)) })
	context.AfterFunc(ctx, func() { stop() })
	return ctx
}

// errReleased ends contexts of a claim that was given up; nobody should see it.
var errReleased = errors.New("the claim was released")

// ErrPreempted is the cause of a holder's context when another verb (kill, forced
// delete) took the claim away from it.
var ErrPreempted = errdefs.New(errdefs.ClassCanceled, "another request ended it (kill or forced delete)")

// Acquire waits for the claim on key until ctx ends; the error then names the
// holder and since when. action is what the caller is about to do ("start").
func (s *Set) Acquire(ctx context.Context, key, action string) (*Held, error) {
	c := s.enter(key)
	if err := s.wait(ctx, key, c); err != nil {
		return nil, err
	}
	preempted, cancel := context.WithCancelCause(context.Background())
	s.mu.Lock()
	c.action, c.since, c.cancel = action, time.Now(), cancel
	if c.seizing > 0 {
		cancel(ErrPreempted) // it was queued ahead of who seizes
	}
	s.mu.Unlock()
	return s.held(key, c, preempted, cancel), nil
}

// Seize is Acquire for verbs that must not queue: it cancels the work of whoever
// holds the claim, and of those queued before it, who let go once they have
// undone. A claim that was seized cannot be taken away.
func (s *Set) Seize(ctx context.Context, key, action string) (*Held, error) {
	c := s.enter(key)
	s.mu.Lock()
	c.seizing++
	if c.cancel != nil {
		c.cancel(ErrPreempted)
	}
	s.mu.Unlock()
	err := s.wait(ctx, key, c)
	s.mu.Lock()
	c.seizing--
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	c.action, c.since = action, time.Now()
	s.mu.Unlock()
	preempted, cancel := context.WithCancelCause(context.Background())
	return s.held(key, c, preempted, cancel), nil
}

// wait takes the token of c, or leaves it with an error.
func (s *Set) wait(ctx context.Context, key string, c *claim) error {
	select {
	case <-c.free:
		return nil
	default:
	}
	select {
	case <-c.free:
		return nil
	case <-ctx.Done():
		err := s.busy(key, context.Cause(ctx))
		s.leave(key, c)
		return err
	}
}

func (s *Set) held(key string, c *claim, preempted context.Context, cancel context.CancelCauseFunc) *Held {
	untake := func() {}
	if s.Rank != 0 {
		untake = lockrank.Take(s.Rank, "the claim on "+key)
	}
	return &Held{Key: key, preempted: preempted, release: func() {
		untake()
		s.mu.Lock()
		c.action, c.cancel = "", nil
		s.mu.Unlock()
		cancel(errReleased)
		c.free <- struct{}{}
		s.leave(key, c)
	}}
}

// Holder says what holds the claim on key now, as "start since 10:03:12", or "".
func (s *Set) Holder(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.claims[key]; c != nil && c.action != "" {
		return c.action + " since " + c.since.Format(time.TimeOnly)
	}
	return ""
}

// Release gives the claim up. Further calls do nothing.
func (h *Held) Release() { h.once.Do(h.release) }

func (s *Set) enter(key string) *claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[key]
	if c == nil {
		c = &claim{free: make(chan struct{}, 1)}
		c.free <- struct{}{}
		if s.claims == nil {
			s.claims = make(map[string]*claim)
		}
		s.claims[key] = c
	}
	c.waiters++
	return c
}

func (s *Set) leave(key string, c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.waiters--; c.waiters == 0 {
		delete(s.claims, key)
	}
}

func (s *Set) busy(key string, cause error) error {
	name := key
	if s.Display != nil {
		name = s.Display(key)
	}
	holder := s.Holder(key)
	if holder == "" {
		holder = "another request"
	}
	return errdefs.New(errdefs.ClassBusy, "%s %s is busy: %s: %w", s.Noun, name, holder, cause).
		WithHint("wait for it, or end it: banger vm kill %s", name)
}
