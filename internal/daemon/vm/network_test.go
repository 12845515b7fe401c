package vm_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/model"
)

func (w *world) rename(name, to string) {
	w.t.Helper()
	_, err := w.svc.Handlers().Rename(context.Background(), connect.NewRequest(&bangerv1.RenameRequest{Ref: name, Name: to}))
	w.must(err)
}

func onBridge(w *world) { w.mode = model.NetBridge }

// get returns what the API says of a VM.
func (w *world) get(name string) *bangerv1.VM {
	w.t.Helper()
	resp, err := w.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: name}))
	w.must(err)
	return resp.Msg
}

// A VM keeps its address until it is deleted; its tap and its name are there while
// it runs, also across a restart of the daemon and under a new name.
func TestBridge(t *testing.T) {
	w := newWorldWith(t, onBridge)
	w.must(w.create("one", true))
	w.must(w.create("two", false))
	w.checkLegal()
	first, second := w.get("one"), w.get("two")
	if !slices.Equal(first.Addresses, []string{"10.42.0.2"}) || first.DnsName != "one.vm" || !slices.Equal(second.Addresses, []string{"10.42.0.3"}) {
		t.Errorf("%v %s, %v", first.Addresses, first.DnsName, second.Addresses)
	}
	w.must(w.stop("one"))
	w.checkLegal()
	w.must(w.start("one"))
	w.must(w.start("two"))
	w.checkLegal()
	if again := w.get("one"); !slices.Equal(again.Addresses, first.Addresses) {
		t.Errorf("after a stop its address is %v, was %v", again.Addresses, first.Addresses)
	}
	w.restart()
	w.checkLegal()
	w.rename("one", "uno")
	w.checkLegal()
	w.must(w.delete("uno", true))
	w.checkLegal()
	w.must(w.create("three", true))
	if third := w.get("three"); !slices.Equal(third.Addresses, first.Addresses) {
		t.Errorf("the address that was given back is not taken: %v", third.Addresses)
	}
	w.must(w.kill("two"))
	w.checkLegal()
}

// A network that goes while its first VM is made takes that VM with it.
func TestNetworkThatGoesMeanwhile(t *testing.T) {
	ctx := context.Background()
	w := newWorldWith(t, onBridge)
	w.must(w.db.CreateNetwork(ctx, "lab"))
	create := func() error {
		return w.wait(w.svc.Handlers().Create(ctx, connect.NewRequest(&bangerv1.CreateRequest{Name: "one", Network: "lab"})))
	}
	was := w.snapshot()
	gone := false
	w.injectAt(func(p point) error {
		if p.call == "InsertVM" && !p.done && !gone {
			gone = true
			return w.db.RemoveNetwork(ctx, "lab")
		}
		return nil
	})
	if err := create(); !errors.Is(err, errdefs.ErrNotFound) || !gone {
		t.Errorf("on a network that has gone: %v", err)
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
	w.inject(nil)
	w.must(w.db.CreateNetwork(ctx, "lab"))
	w.must(create())
	w.checkLegal()
	if err := w.db.RemoveNetwork(ctx, "lab"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("removed under a VM: %v", err)
	}
	w.must(w.delete("one", true))
	w.must(w.db.RemoveNetwork(ctx, "lab"))
}

// Where VMs cannot be on the bridge, the request is refused before anything is made.
func TestBridgeRefused(t *testing.T) {
	w := newWorldWith(t, onBridge)
	w.bridge.refused = errdefs.Permission("network devices of the host are for root")
	was := w.snapshot()
	if err := w.create("one", true); !errors.Is(err, errdefs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
}
