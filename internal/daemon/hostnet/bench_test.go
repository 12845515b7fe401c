package hostnet

import (
	"fmt"
	"testing"

	"banger/internal/nettest"
)

// BenchmarkAttach is the host's side of a start, and of a stop, with a warm tap and
// a store that costs nothing, among many VMs.
func BenchmarkAttach(b *testing.B) {
	nettest.Require(b)
	m := &memory{leases: map[string]Lease{}}
	s := New(Deps{Memory: m, Leases: m, Bridge: DefaultBridge, MTU: 1500, Pool: 4})
	defer func() { _ = s.Close() }()
	ctx := b.Context()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	const others = 50
	for i := range others {
		_, err := s.Attach(ctx, VM{ID: fmt.Sprint("other", i)})
		must(err)
	}
	for b.Loop() {
		_, err := s.Attach(ctx, VM{ID: "vm", Network: "lab"})
		must(err)
		b.StopTimer()
		must(s.Detach(ctx, "vm"))
		s.batch()
		b.StartTimer()
	}
	b.StopTimer()
	for i := range others {
		must(s.Release(ctx, fmt.Sprint("other", i)))
	}
	must(s.Release(ctx, "vm"))
	must(s.Uninstall(ctx))
}
