// Package lockrank is the order in which locks are taken, as numbers, and the check
// of it. Only builds with the tag lockcheck (those of the unit tests) check; in
// others Take does nothing and Mutex is sync.Mutex.
package lockrank

// The ranks; docs/locking.md says what has which.
const (
	VM          = 10 // a claim, held over I/O
	Workspace   = 20 // a claim, held over I/O
	Brief       = 30 // of a Mutex that is held for a rename and one transaction
	Transaction = 50 // of the store
)
