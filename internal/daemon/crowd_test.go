package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/api/bangerv1"
)

// meeting lets nobody pass a point before all have reached it.
type meeting struct {
	mu    sync.Mutex
	count map[string]int
	open  map[string]chan struct{}
	all   int
}

// wait errors when the others do not come: somebody keeps them out.
func (m *meeting) wait(point string) error {
	m.mu.Lock()
	m.count[point]++
	c, ok := m.open[point]
	if !ok {
		c = make(chan struct{})
		m.open[point] = c
	}
	if m.count[point] == m.all {
		close(c)
	}
	m.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-time.After(time.Minute):
		m.mu.Lock()
		defer m.mu.Unlock()
		return fmt.Errorf("only %d of %d have reached %s", m.count[point], m.all, point)
	}
}

// Fifty creates are in the same step at the same time, in every step up to the one in
// which they take turns to boot: none holds a lock over it that another needs. What
// they waited for is in the mutex profile, whose worst is told.
func TestCreatesPassEachOther(t *testing.T) {
	const crowd = 50
	m := &meeting{count: map[string]int{}, open: map[string]chan struct{}{}, all: crowd}
	turned := func(step string) bool {
		return !slices.Contains([]string{"reserve", "directory", "disk", "prepare"}, step)
	}
	h := newHost(t)
	h.opts.faults = func(step string, done bool) error {
		if turned(step) {
			return nil
		}
		return m.wait(when(done) + " " + step)
	}
	h.artifacts()
	d := h.serve()
	was := runtime.SetMutexProfileFraction(1)
	defer runtime.SetMutexProfileFraction(was)
	ctx := context.Background()
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() {
			op, err := d.client.CreateVM(ctx, &bangerv1.CreateRequest{})
			if err == nil {
				_, err = d.client.WaitOperation(ctx, op, nil)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	h.must(errors.Join(errs...))
	for point, n := range m.count {
		if n != crowd {
			t.Errorf("%s was reached %d times", point, n)
		}
	}
	if len(m.count) != 8 {
		t.Errorf("they met at %v", m.count)
	}
	t.Log(worstWaits(3))
	all, err := d.client.ListVMs(ctx)
	h.must(err)
	for _, v := range all {
		d.remove(h, v.GetId())
	}
}

// worstWaits says, of the locks that others waited for longest, where they were let go.
func worstWaits(most int) string {
	records := make([]runtime.BlockProfileRecord, 10_000)
	n, _ := runtime.MutexProfile(records)
	records = records[:n]
	slices.SortFunc(records, func(a, b runtime.BlockProfileRecord) int { return int(b.Cycles - a.Cycles) })
	var out strings.Builder
	for _, r := range records[:min(most, n)] {
		fmt.Fprintf(&out, "%d waits, %d cycles:", r.Count, r.Cycles)
		for frames := runtime.CallersFrames(r.Stack()); ; {
			f, more := frames.Next()
			fmt.Fprintf(&out, " %s", f.Function[strings.LastIndexByte(f.Function, '/')+1:])
			if !more {
				break
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}
