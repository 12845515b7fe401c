package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

// parallel is how many VMs one command acts on at once.
const parallel = 16

// forEach runs act on every reference, concurrently, each VM once. All are tried,
// whatever becomes of the others; done is called in the order the references were
// given, for those that succeeded. The error holds the failures in that order.
func (a *app) forEach(ctx context.Context, c *client.Client, refs []string, act func(ctx context.Context, ref string) error, done func(ref string)) error {
	refs, err := dedupe(ctx, c, refs)
	if err != nil {
		return err
	}
	results := make([]chan error, len(refs))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, ref := range refs {
		results[i] = make(chan error, 1)
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] <- act(ctx, ref)
		})
	}
	defer wg.Wait()
	var failures manyErrors
	for i, ref := range refs {
		if err := <-results[i]; err != nil {
			failures = append(failures, err)
		} else if done != nil {
			done(ref)
		}
	}
	switch len(failures) {
	case 0:
		return nil
	case 1:
		return failures[0]
	}
	return failures
}

// dedupe drops references to a VM that an earlier one named. What it cannot
// resolve it leaves to the daemon, which has the words for it.
func dedupe(ctx context.Context, c *client.Client, refs []string) ([]string, error) {
	if len(refs) < 2 {
		return refs, nil
	}
	vms, err := c.ListVMs(ctx)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(refs))
	return slices.DeleteFunc(slices.Clone(refs), func(ref string) bool {
		key := resolve(vms, ref)
		was := seen[key]
		seen[key] = true
		return was
	}), nil
}

// resolve returns the id that ref stands for, or ref when that is not clear.
func resolve(vms []*bangerv1.VM, ref string) string {
	id, matches := "", 0
	for _, v := range vms {
		if v.GetName() == ref || v.GetId() == ref {
			return v.GetId()
		}
		if ref != "" && strings.HasPrefix(v.GetId(), ref) {
			id = v.GetId()
			matches++
		}
	}
	if matches == 1 {
		return id
	}
	return ref
}

// verb is a lifecycle command on several VMs.
type verb struct {
	begin  func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error)
	after  func(ctx context.Context, c *client.Client, ref string) error // may be nil
	cancel bool                                                          // an interrupt cancels the work; otherwise it goes on without us
}

// run performs the verb and prints the reference of each VM it succeeded on.
func (v verb) run(ctx context.Context, a *app, refs []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	var update func(*bangerv1.Operation)
	if len(refs) == 1 {
		update = a.follow()
	}
	act := func(ctx context.Context, ref string) error {
		// The request itself is short, and must not be left half way.
		op, err := v.begin(context.WithoutCancel(ctx), c, ref)
		if err != nil {
			return err
		}
		if v.cancel {
			_, err = waitOrCancel(ctx, c, op, update)
		} else {
			_, err = c.WaitOperation(ctx, op, update)
		}
		if err == nil && v.after != nil {
			err = v.after(ctx, c, ref)
		}
		return err
	}
	return interrupted(a.forEach(ctx, c, refs, act, func(ref string) { fmt.Fprintln(a.out, ref) }))
}
