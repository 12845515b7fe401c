//go:build lockcheck

package lockrank_test

import (
	"strings"
	"testing"

	"banger/internal/lockrank"
)

// refused reports whether taking a lock panics.
func refused(take func()) (yes bool) {
	defer func() {
		text, _ := recover().(string)
		yes = strings.HasPrefix(text, "lock order: ")
	}()
	take()
	return false
}

func TestOrder(t *testing.T) {
	all := []int{lockrank.VM, lockrank.Workspace, lockrank.Brief, lockrank.Transaction}
	for _, first := range all {
		for _, second := range all {
			untake := lockrank.Take(first, "first")
			got := refused(func() { lockrank.Take(second, "second")() })
			untake()
			if want := second <= first || second == lockrank.Workspace; got != want {
				t.Errorf("rank %d after %d is refused: %v, want %v", second, first, got, want)
			}
		}
	}
	// What is released, in whatever order, does not count; nor do other goroutines.
	a, b := lockrank.Take(lockrank.VM, "a"), lockrank.Take(lockrank.Brief, "b")
	a()
	b()
	lockrank.Take(lockrank.VM, "again")()
	defer lockrank.Take(lockrank.Transaction, "here")()
	done := make(chan bool)
	go func() { done <- refused(func() { lockrank.Take(lockrank.VM, "there")() }) }()
	if <-done {
		t.Error("a lock of another goroutine counts")
	}
}

func TestMutex(t *testing.T) {
	var a, b lockrank.Mutex
	a.Lock()
	if !refused(b.Lock) {
		t.Error("two locks of one rank were taken together")
	}
	if !refused(func() { lockrank.Take(lockrank.VM, "claim")() }) {
		t.Error("a claim was taken under a brief lock")
	}
	a.Unlock()
	b.Lock() // nothing is held any more
	defer b.Unlock()
}
