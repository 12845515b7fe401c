//go:build lockcheck

package daemon

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"
	"sync"
)

// held maps a goroutine to the ranks of the keyed claims it holds. Claims are
// taken and released by one goroutine, which is what makes this check possible.
var held = struct {
	sync.Mutex
	ranks map[int64][]int
}{ranks: make(map[int64][]int)}

// watchLocks returns a vmlock.Set.OnTake that panics when a goroutine takes a
// claim while it holds another of the two keyed ranks: they are never held together.
func watchLocks(rank int) func(string) func() {
	return func(key string) func() {
		id := goroutine()
		held.Lock()
		defer held.Unlock()
		if have := held.ranks[id]; len(have) > 0 {
			panic(fmt.Sprintf("lock order: taking rank %d (%s) while holding %v", rank, key, have))
		}
		held.ranks[id] = append(held.ranks[id], rank)
		return func() {
			held.Lock()
			defer held.Unlock()
			delete(held.ranks, id)
		}
	}
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
