package networks

import (
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/store/storetest"
)

// A VM that asks for a network is on the bridge, whatever the mode of others.
func TestJoin(t *testing.T) {
	db := storetest.New(t)
	s := New(db)
	if _, err := s.Create(t.Context(), connect.NewRequest(&bangerv1.NetworkRef{Name: "lab"})); err != nil {
		t.Fatal(err)
	}
	join := s.Capability().Preflight
	for _, tc := range []struct {
		req  *bangerv1.CreateRequest
		want model.Net
	}{
		{&bangerv1.CreateRequest{}, model.NetUser},
		{&bangerv1.CreateRequest{Network: "lab"}, model.NetBridge},
		{&bangerv1.CreateRequest{Network: "lab", Net: "bridge"}, model.NetBridge},
	} {
		v := &model.VM{Spec: model.VMSpec{Net: model.NetUser}}
		if err := join(t.Context(), v, tc.req); err != nil || v.Spec.Net != tc.want || v.Network != tc.req.Network {
			t.Errorf("%v: on %q with mode %s, %v", tc.req, v.Network, v.Spec.Net, err)
		}
	}
	for _, tc := range []struct {
		req  *bangerv1.CreateRequest
		want error
		msg  string
	}{
		{&bangerv1.CreateRequest{Network: "lap"}, errdefs.ErrNotFound, `no network named "lap"`},
		{&bangerv1.CreateRequest{Network: "my_net"}, errdefs.ErrInvalidArgument, "underscore"},
		{&bangerv1.CreateRequest{Network: "lab", Net: "user"}, errdefs.ErrInvalidArgument, `mode user cannot be on network "lab"`},
		{&bangerv1.CreateRequest{Network: "lab", Net: "none"}, errdefs.ErrInvalidArgument, "mode none"},
	} {
		if err := join(t.Context(), &model.VM{}, tc.req); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.msg) || errdefs.HintOf(err) == "" {
			t.Errorf("%v: %v (hint %q)", tc.req, err, errdefs.HintOf(err))
		}
	}
}

func TestProcedures(t *testing.T) {
	db := storetest.New(t)
	storetest.Kernel(t, db, model.Kernel{})
	storetest.Image(t, db, model.Image{})
	s := New(db)
	create := func(name string) error {
		_, err := s.Create(t.Context(), connect.NewRequest(&bangerv1.NetworkRef{Name: name}))
		return api.FromConnect(err)
	}
	remove := func(name string) error {
		_, err := s.Remove(t.Context(), connect.NewRequest(&bangerv1.NetworkRef{Name: name}))
		return api.FromConnect(err)
	}
	for name, want := range map[string]error{"": errdefs.ErrInvalidArgument, "my_net": errdefs.ErrInvalidArgument, "Lab": errdefs.ErrInvalidArgument, "a.b": errdefs.ErrInvalidArgument} {
		if err := create(name); !errors.Is(err, want) || errdefs.HintOf(err) == "" {
			t.Errorf("create %q: %v", name, err)
		}
	}
	if err := create("lab"); err != nil {
		t.Fatal(err)
	}
	if err := create("lab"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a taken name: %v", err)
	}
	storetest.VM(t, db, model.VM{Name: "web", Network: "lab"})
	res, err := s.List(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(res.Msg.Networks) != 1 || res.Msg.Networks[0].Name != "lab" || len(res.Msg.Networks[0].Vms) != 1 || res.Msg.Networks[0].Vms[0] != "web" {
		t.Errorf("%v, %v", res, err)
	}
	one, err := s.Get(t.Context(), connect.NewRequest(&bangerv1.NetworkRef{Name: "lab"}))
	if err != nil || one.Msg.Name != "lab" || len(one.Msg.Vms) != 1 || one.Msg.Vms[0] != "web" {
		t.Errorf("%v, %v", one, err)
	}
	_, err = s.Get(t.Context(), connect.NewRequest(&bangerv1.NetworkRef{Name: "lap"}))
	if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(errdefs.HintOf(err), "lab") {
		t.Errorf("get a network that is not there: %v (hint %q)", err, errdefs.HintOf(err))
	}
	for name, want := range map[string]error{"": errdefs.ErrNotFound, "lap": errdefs.ErrNotFound, "lab": errdefs.ErrFailedPrecondition} {
		if err := remove(name); !errors.Is(err, want) || errdefs.HintOf(err) == "" {
			t.Errorf("remove %q: %v", name, err)
		}
	}
}
