// Package opstate keeps the book of long operations: what runs, how far it is,
// how it ended. Operations are children of the daemon, not of the request that
// began them: a client may leave and join again, and cancels by id.
package opstate

import (
	"cmp"
	"slices"
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
	if r.byID == nil {
		r.byID = make(map[string]T)
	}
	r.byID[op.OpID()] = op
	r.order = append(r.order, op.OpID())
	r.mu.Unlock()
	r.prune()
}

// prune forgets the oldest ended operations. They have locks of their own, so they are
// asked outside of ours; one that has ended stays so.
func (r *Registry[T]) prune() {
	var ended []string
	for _, op := range r.List() {
		if op.Ended() {
			ended = append(ended, op.OpID())
		}
	}
	extra := len(ended) - cmp.Or(r.Keep, defaultKeep)
	if extra <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ended[:extra] {
		delete(r.byID, id)
	}
	r.order = slices.DeleteFunc(r.order, func(id string) bool {
		_, known := r.byID[id]
		return !known
	})
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
