package imagemgr

import (
	"context"
	"sync"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// flights runs one piece of work per key at a time and lets everybody who asks
// for it meanwhile wait for the same. The work belongs to the service: a waiter's
// context ends only its waiting. When the last waiter has gone, the work is
// cancelled, and that waiter stays until everything is undone.
type flights[T any] struct {
	owner *Service

	mu      sync.Mutex // a leaf; guards running and the waiters of each flight
	running map[string]*flight[T]
}

type flight[T any] struct {
	waiters int
	cancel  context.CancelCauseFunc
	fan     fan
	done    chan struct{}
	value   T // after done
	err     error
}

func (fs *flights[T]) do(ctx context.Context, key string, p model.Progress, work func(context.Context, model.Progress) (T, error)) (T, error) {
	fs.mu.Lock()
	f := fs.running[key]
	if f == nil {
		f = fs.startLocked(key, work)
	}
	f.waiters++
	fs.mu.Unlock()
	leave := f.fan.join(p)
	defer leave()

	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
	}
	fs.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && fs.running[key] == f {
		delete(fs.running, key) // who asks from now on starts anew
	}
	fs.mu.Unlock()
	if last {
		f.cancel(context.Cause(ctx))
		<-f.done
	}
	var none T
	return none, errdefs.Wrap(context.Cause(ctx), "wait for %s", key)
}

func (fs *flights[T]) startLocked(key string, work func(context.Context, model.Progress) (T, error)) *flight[T] {
	ctx, cancel := context.WithCancelCause(fs.owner.ctx)
	f := &flight[T]{cancel: cancel, done: make(chan struct{})}
	if fs.running == nil {
		fs.running = map[string]*flight[T]{}
	}
	fs.running[key] = f
	fs.owner.wg.Go(func() {
		defer cancel(nil)
		f.value, f.err = work(ctx, &f.fan)
		fs.mu.Lock()
		if fs.running[key] == f {
			delete(fs.running, key)
		}
		fs.mu.Unlock()
		close(f.done)
	})
	return f
}

// fan hands progress to everybody who waits. Who joins late is told where the
// work stands.
type fan struct {
	mu          sync.Mutex // a leaf; guards the fields below
	next        int
	sinks       map[int]model.Progress
	stage       string
	detail      string
	done, total int64
	unit        string
}

func (f *fan) join(p model.Progress) (leave func()) {
	if p == nil {
		return func() {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stage != "" {
		p.Stage(f.stage)
	}
	if f.detail != "" {
		p.Detail(f.detail)
	}
	if f.unit != "" {
		p.Count(f.done, f.total, f.unit)
	}
	if f.sinks == nil {
		f.sinks = map[int]model.Progress{}
	}
	id := f.next
	f.next++
	f.sinks[id] = p
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sinks, id)
	}
}

func (f *fan) each(note func(), tell func(model.Progress)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	note()
	for _, p := range f.sinks {
		tell(p)
	}
}

// Stage implements model.Progress.
func (f *fan) Stage(name string) {
	f.each(func() { f.stage, f.detail, f.unit = name, "", "" }, func(p model.Progress) { p.Stage(name) })
}

// Detail implements model.Progress.
func (f *fan) Detail(text string) {
	f.each(func() { f.detail = text }, func(p model.Progress) { p.Detail(text) })
}

// Count implements model.Progress.
func (f *fan) Count(done, total int64, unit string) {
	f.each(func() { f.done, f.total, f.unit = done, total, unit }, func(p model.Progress) { p.Count(done, total, unit) })
}
