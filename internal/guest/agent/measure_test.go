package agent

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/guest"
)

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// TestVMCostOfExec compares what the guest's processor does for a command with
// what it does for its parts: the same command without the channel, and a round
// trip without a command. The guest's clock counts instructions, so a busy host
// changes nothing.
func TestVMCostOfExec(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for some seconds")
	}
	vm := bootVM(t, vmConfig{root: busyboxRoot(t), counted: true})
	s := vm.connect()
	ctx := vm.context(5 * time.Minute)
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, err := guest.OpenPing(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	busy := func() int {
		var user, nice, system, idle, wait, irq, soft int
		line := vm.sh(s, "head -n 1 /proc/stat")
		_, err := fmt.Sscanf(strings.TrimPrefix(line, "cpu"), "%d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft)
		if err != nil {
			t.Fatal(err)
		}
		return user + nice + system + irq + soft
	}
	const rounds = 400
	before := busy()
	self := busy() - before
	measure := func(what string, f func()) float64 {
		start := busy()
		f()
		cost := float64(busy()-start-self) * 10000 / rounds // ticks of 10 ms
		t.Logf("%-6s %5.0f thousand instructions", what, cost)
		return cost
	}
	spawn := measure("spawn", func() {
		vm.call(s, guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: rounds}})
	})
	ping := measure("ping", func() {
		for range rounds {
			if err := p.Ping(ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
	exec := measure("exec", func() {
		for range rounds {
			if st, _, err := vm.exec(s, guest.Exec{Args: []string{"true"}}, nil); err != nil || st.Code != 0 {
				t.Fatal(st, err)
			}
		}
	})
	if ratio := exec / (spawn + ping); ratio > 1.35 {
		t.Errorf("a command costs %.2f times its parts", ratio)
	} else {
		t.Logf("exec is %.2f times its parts", ratio)
	}
}

// TestVMSpeed prints how fast the channel is on this machine.
func TestVMSpeed(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for some seconds")
	}
	vm := bootVM(t, vmConfig{root: busyboxRoot(t)})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started).Round(time.Millisecond), s.Ready().UptimeMillis)
	ctx := vm.context(3 * time.Minute)
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, err := guest.OpenPing(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var pings, execs []time.Duration
	for range 100 {
		start := time.Now()
		if err := p.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		pings = append(pings, time.Since(start))
		start = time.Now()
		if st, _, err := vm.exec(s, guest.Exec{Args: []string{"true"}}, nil); err != nil || st.Code != 0 {
			t.Fatal(st, err)
		}
		execs = append(execs, time.Since(start))
	}
	var spawns []time.Duration
	for _, n := range vm.call(s, guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: 100}}).Nanos {
		spawns = append(spawns, time.Duration(n))
	}
	t.Logf("median of 100: ping %v, spawn %v, exec %v", median(pings), median(spawns), median(execs))
	const size = 100 << 20
	start := time.Now()
	st, _, err := vm.exec(s, guest.Exec{Args: []string{"sh", "-c", "cat >/dev/null"}}, io.LimitReader(zeros{}, size))
	if err != nil || st.Code != 0 {
		t.Error(st, err)
	}
	t.Logf("into the guest   %4.0f MB/s", size/1e6/time.Since(start).Seconds())
	if conn, err = s.Open(ctx); err != nil {
		t.Fatal(err)
	}
	n := &counter{}
	e := guest.Exec{Args: []string{"dd", "if=/dev/zero", "bs=64k", fmt.Sprint("count=", size>>16)}}
	start = time.Now()
	st, err = guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdout: n})
	if err != nil || st.Code != 0 || n.n != size {
		t.Errorf("%+v %v, %d bytes", st, err, n.n)
	}
	t.Logf("out of the guest %4.0f MB/s", size/1e6/time.Since(start).Seconds())
	t.Log(vm.sh(s, "grep -h Rss /proc/[0-9]*/status | grep -v '^$' | head -n 3"))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }
