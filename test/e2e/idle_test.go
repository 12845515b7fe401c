//go:build e2e

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestIdle: a guest in which nothing happens costs close to nothing, with the host
// at the other end of its channel and without one. An agent that asks again and
// again whether there is a host would take a whole processor.
func TestIdle(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-idle", append(small(t, w), "--wait", "system")...)
	connected := share(t, v.PID)
	w.killDaemon(t)
	alone := share(t, v.PID)
	if p, ok := w.daemon(); ok {
		t.Fatalf("daemon %s runs, nothing was shown", p)
	}
	t.Logf("the VMM takes %.1f%% of a processor with a host, %.1f%% without", 100*connected, 100*alone)
	if most := 0.2; connected > most || alone > most {
		t.Errorf("an idle guest takes %.0f%% and %.0f%% of a processor", 100*connected, 100*alone)
	}
	if now := w.show(t, v.ID); now.State != "running" || now.PID != v.PID {
		t.Errorf("found again: %+v", now)
	}
}

// share is what part of one processor a process takes, over some seconds.
func share(t *testing.T, pid int) float64 {
	t.Helper()
	const window = 4 * time.Second
	before := processorTime(t, pid)
	<-time.After(window)
	return (processorTime(t, pid) - before).Seconds() / window.Seconds()
}

// processorTime is what a process has used, with all its threads.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	var ticks int64
	for _, f := range fields[11:13] { // user and system, in ticks of 10 ms
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
