//go:build lockcheck

package lockrank

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// lock is one that a goroutine holds.
type lock struct {
	rank int
	name string
}

// held maps a goroutine to the locks it holds. Every lock with a rank is taken and
// released by one goroutine, which is what makes this check possible.
var held = struct {
	sync.Mutex
	locks map[int64][]*lock
}{locks: make(map[int64][]*lock)}

// Take notes that this goroutine takes a lock, and panics when it must not: every
// lock comes after those of a lower rank only, and a claim (the two lowest ranks)
// comes first.
func Take(rank int, name string) (untake func()) {
	id := goroutine()
	held.Lock()
	defer held.Unlock()
	for _, have := range held.locks[id] {
		if rank <= have.rank || rank <= Workspace {
			panic(fmt.Sprintf("lock order: taking %s (rank %d) while holding %s (rank %d)", name, rank, have.name, have.rank))
		}
	}
	l := &lock{rank, name}
	held.locks[id] = append(held.locks[id], l)
	return func() {
		held.Lock()
		defer held.Unlock()
		rest := slices.DeleteFunc(held.locks[id], func(have *lock) bool { return have == l })
		if held.locks[id] = rest; len(rest) == 0 {
			delete(held.locks, id)
		}
	}
}

// Mutex is a lock of rank Brief.
type Mutex struct {
	mu     sync.Mutex
	untake func() // guarded by mu
}

// Lock locks m.
func (m *Mutex) Lock() {
	untake := Take(Brief, "a brief lock")
	m.mu.Lock()
	m.untake = untake
}

// Unlock unlocks m.
func (m *Mutex) Unlock() {
	untake := m.untake
	m.mu.Unlock()
	untake()
}

// goroutine returns the id of the calling goroutine from its stack header.
func goroutine() int64 {
	buf := make([]byte, 64)
	buf = buf[:runtime.Stack(buf, false)]
	field := bytes.Fields(buf)[1]
	id, err := strconv.ParseInt(string(field), 10, 64)
	if err != nil {
		panic(err)
	}
	return id
}
