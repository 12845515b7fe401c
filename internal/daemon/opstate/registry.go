// Package opstate keeps the book of long operations: what runs, how far it is,
// how it ended. Operations are children of the daemon, not of the request that
// began them: a client may leave and join again, and cancels by id.
package opstate

import (
	"sync"
)

// AsyncOp is what a Registry needs to know of an operation.
type AsyncOp interface {
	OpID() string
	Ended() bool
}

// Registry is a bounded map of operations in order of insertion. It forgets the
// oldest ended ones beyond Keep and never one that runs.
type Registry[T AsyncOp] struct {
	Keep int // ended operations to remember; 0: 256

	mu    sync.Mutex // a leaf; guards the fields below
	byID  map[string]T
	order []string
}

const defaultKeep = 256

// Insert adds op and prunes.
func (r *Registry[T]) Insert(op T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = make(map[string]T)
	}
	r.byID[op.OpID()] = op
	r.order = append(r.order, op.OpID())
	keep := r.Keep
	if keep == 0 {
		keep = defaultKeep
	}
	ended := 0
	for _, id := range r.order {
		if r.byID[id].Ended() {
			ended++
		}
	}
	if ended <= keep {
		return
	}
	kept := r.order[:0]
	for _, id := range r.order {
		if ended > keep && r.byID[id].Ended() {
			delete(r.byID, id)
			ended--
			continue
		}
		kept = append(kept, id)
	}
	clear(r.order[len(kept):])
	r.order = kept
}

// Get returns the operation with that id.
func (r *Registry[T]) Get(id string) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op, ok := r.byID[id]
	return op, ok
}

// List returns all remembered operations, oldest first.
func (r *Registry[T]) List() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]T, 0, len(r.order))
	for _, id := range r.order {
		out = append(out, r.byID[id])
	}
	return out
}
