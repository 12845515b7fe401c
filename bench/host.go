package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
)

const (
	hostLimit   = 15 // ms
	crowdLimit  = 1.2
	crowdOfVMs  = 50
	crowdMemory = 192 // MiB
)

// ofTheVMM are the steps of a create that are spent in the VMM and its guest.
var ofTheVMM = []string{"turn", "vmm", "boot", "configure"}

// measureHost measures the host's side of a start: the row, the address, the disk,
// tap, rules and name of a VM whose VMM is made up and takes no time. The daemon is in
// a network namespace of its own. The floor is one synced write of a file beside its
// database, of which a start needs several.
func measureHost(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 100
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("only root has a host's network to measure")
	}
	state, err := os.MkdirTemp(l.scratch, "host-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state)
	if err := seedFake(ctx, state); err != nil {
		return nil, err
	}
	apart := newThread()
	defer apart.close()
	if err := apart.do(ownNetwork); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	d, err := l.serveOn(ctx, apart, state)
	if err != nil {
		return nil, err
	}
	defer d.stop(context.WithoutCancel(ctx))
	c := client.New(d.layout.Socket)
	defer c.Close()
	var method string
	// The first ones put up the bridge and fill the pool of taps.
	value, floor, err := inTurns(5, n, time.Millisecond,
		func() (took time.Duration, err error) { took, method, err = hostSide(ctx, c); return },
		func() (time.Duration, error) { return syncedWrite(state) })
	if err != nil {
		return nil, err
	}
	on := onValue
	if method == config.DiskDMSnap {
		on = onNothing // its devices cost what the host's udev makes of them
	}
	f := figure("host-start", "ms", value, floor, hostLimit, on)
	f.Notes = "root disks by " + method
	f.What, f.FloorIs = "host's side of a create on the bridge: all but the VMM and its guest", "one synced write of a file"
	return []Figure{f}, nil
}

// hostSide makes a VM, and deletes it, and returns what its steps took but for those
// of the VMM, and how its root disk was made.
func hostSide(ctx context.Context, c *client.Client) (took time.Duration, method string, err error) {
	op, err := c.CreateVM(ctx, &bangerv1.CreateRequest{Driver: "fake", Net: string(model.NetBridge), Image: "debian"})
	if err == nil {
		op, err = c.WaitOperation(ctx, op, nil)
	}
	if err != nil {
		return 0, "", err
	}
	for _, s := range op.GetStages() {
		if !slices.Contains(ofTheVMM, s.GetName()) {
			took += s.GetEndedAt().AsTime().Sub(s.GetStartedAt().AsTime())
		}
	}
	vm, err := c.GetVM(ctx, op.GetResult())
	if err != nil {
		return 0, "", err
	}
	gone, err := c.DeleteVM(ctx, op.GetResult(), true)
	if err == nil {
		_, err = c.WaitOperation(ctx, gone, nil)
	}
	return took, vm.GetDiskMethod(), err
}

// seedFake makes a state directory with a kernel and an image that no guest boots.
func seedFake(ctx context.Context, state string) error {
	layout, err := paths.At(state)
	if err != nil {
		return err
	}
	db, _, err := store.Open(ctx, layout.Database())
	if err != nil {
		return err
	}
	if err := errors.Join(fill(ctx, db, layout, 0), db.Close()); err != nil {
		return err
	}
	return os.Truncate(filepath.Join(layout.Image(crowdImage), paths.RootfsFile), 16<<30)
}

// ownNetwork moves the thread, and what it starts, into a network namespace.
func ownNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func syncedWrite(dir string) (time.Duration, error) {
	began := time.Now()
	f, err := os.Create(filepath.Join(dir, "synced"))
	if err != nil {
		return 0, err
	}
	_, err = f.Write(make([]byte, 4096))
	err = errors.Join(err, f.Sync(), f.Close())
	return time.Since(began), err
}

// measureCrowd compares 50 creates that begin at the same moment with as many boots
// by hand, of which as many run at once as the daemon lets. What is made stays until
// the end, on both sides.
func measureCrowd(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 1
	}
	d, err := l.ready(ctx)
	if err != nil {
		return nil, err
	}
	shape := []string{"--memory", fmt.Sprintf("%dM", crowdMemory), "--net", "none"}
	if _, err := output(d.cli(ctx, append([]string{"vm", "create", "--name", "bench-model"}, shape...)...)); err != nil {
		return nil, err
	}
	model := &sandbox{daemon: d}
	if err := d.decode(ctx, model, "vm", "show", "--json", "bench-model"); err != nil {
		return nil, err
	}
	t, err := model.template(ctx)
	if err = errors.Join(err, model.remove(ctx)); err != nil {
		return nil, err
	}
	var value, floor samples
	for range n {
		took, err := d.createCrowd(ctx, shape)
		if err = errors.Join(err, d.deleteAll(ctx)); err != nil {
			return nil, err
		}
		byHand, err := l.bootCrowd(ctx, t)
		if err != nil {
			return nil, err
		}
		value.add(took, time.Second)
		floor.add(byHand, time.Second)
	}
	f := figure("create-50", "s", value, floor, crowdLimit, onRatio)
	f.What, f.FloorIs = "50 creates at once", "50 boots by hand, as many at once as the processors are good for"
	return []Figure{f}, nil
}

// atOnce runs fn 50 times, at most wide at a time, and returns how long all took.
func atOnce(wide int, fn func(i int) error) (time.Duration, error) {
	var (
		wg   sync.WaitGroup
		errs = make([]error, crowdOfVMs)
		room = make(chan struct{}, wide)
	)
	began := time.Now()
	for i := range crowdOfVMs {
		wg.Go(func() {
			room <- struct{}{}
			errs[i] = fn(i)
			<-room
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

func (d *daemon) createCrowd(ctx context.Context, shape []string) (time.Duration, error) {
	return atOnce(crowdOfVMs, func(int) error {
		_, err := output(d.cli(ctx, append([]string{"vm", "create"}, shape...)...))
		return err
	})
}

func (l *lab) bootCrowd(ctx context.Context, t template) (time.Duration, error) {
	dir, err := os.MkdirTemp(l.scratch, "crowd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	vms := make([]*handVM, crowdOfVMs)
	defer func() {
		for _, v := range vms {
			if v != nil {
				v.kill()
			}
		}
	}()
	return atOnce(l.machine.CPUs, func(i int) (err error) {
		own := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		vms[i], err = l.bootIn(ctx, t, own)
		return err
	})
}
