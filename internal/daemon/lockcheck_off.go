//go:build !lockcheck

package daemon

// watchLocks does nothing in ordinary builds; see lockcheck_on.go.
func watchLocks(int) func(string) func() { return nil }
