package agent

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"banger/internal/guest"
)

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// TestVMSpeed prints what the channel and commands cost in a VM, and fails when a
// command costs much more than what it is made of.
func TestVMSpeed(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for some seconds")
	}
	vm := bootVM(t, vmConfig{root: busyboxRoot(t)})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started), s.Ready().UptimeMillis)
	ctx := vm.context(2 * time.Minute)
	const rounds = 200

	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, err := guest.OpenPing(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var pings, execs, fresh []time.Duration
	spawn := func() time.Duration {
		c := vm.call(s, guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: rounds}})
		var d []time.Duration
		for _, n := range c.Nanos {
			d = append(d, time.Duration(n))
		}
		return median(d)
	}
	first := spawn()
	for range rounds {
		start := time.Now()
		if err := p.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		pings = append(pings, time.Since(start))
		start = time.Now()
		vm.call(s, guest.Request{Kind: guest.KindPing})
		fresh = append(fresh, time.Since(start))
		start = time.Now()
		if st, _, err := vm.exec(s, guest.Exec{Args: []string{"true"}}, nil); err != nil || st.Code != 0 {
			t.Fatal(st, err)
		}
		execs = append(execs, time.Since(start))
	}
	second := spawn()
	floor := (first+second)/2 + median(pings)
	t.Logf("ping %v, ping on a new stream %v, spawn %v %v, exec %v: %.2f times spawn and ping",
		median(pings), median(fresh), first, second, median(execs), float64(median(execs))/float64(floor))

	const size = 200 << 20
	start := time.Now()
	_, out, err := vm.exec(s, guest.Exec{Args: []string{"sh", "-c", "cat >/dev/null"}}, io.LimitReader(zeros{}, size))
	t.Logf("in  %4.0f MB/s %q %v", size/1e6/time.Since(start).Seconds(), out, err)
	conn, _ = s.Open(ctx)
	sum := sha256.New()
	n := &counter{}
	start = time.Now()
	st, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"head", "-c", fmt.Sprint(size), "/dev/zero"}}}, guest.ExecIO{Stdout: n})
	t.Logf("out %4.0f MB/s %v %v %d", size/1e6/time.Since(start).Seconds(), st, err, n.n)
	_ = sum
	_ = bytes.MinRead
	t.Log(vm.sh(s, "cat /proc/$(ps | grep '[@]banger' | head -1 | (read a b; echo $a))/status | head -60; cat /proc/meminfo | head -3"))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }
