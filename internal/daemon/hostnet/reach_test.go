package hostnet

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// What a VM may reach goes from its request to its spec, and from there to the API and
// to the network.
func TestReach(t *testing.T) {
	reach := New(Deps{Bridge: DefaultBridge}).Reach()
	v := &model.VM{ID: "a", VMMUID: 7, Network: "lab", Spec: model.VMSpec{Net: model.NetBridge}}
	req := &bangerv1.CreateRequest{NoNat: true, ExposeHost: []uint32{8080, 5432, 8080}}
	if err := reach.Preflight(t.Context(), v, req); err != nil {
		t.Fatal(err)
	}
	describe, err := reach.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bangerv1.VM
	describe(v, &out)
	if !out.NoNat || !reflect.DeepEqual(out.ExposeHost, []uint32{5432, 8080}) {
		t.Errorf("it is shown as %v", &out)
	}
	if got, want := place(v), (VM{ID: "a", UID: 7, Network: "lab", Isolated: true, Expose: []uint16{5432, 8080}}); !reflect.DeepEqual(got, want) {
		t.Errorf("the network is told %+v, want %+v", got, want)
	}
}

func TestReachRefused(t *testing.T) {
	var many []uint32
	for port := range uint32(maxExposed + 1) {
		many = append(many, port+1)
	}
	for _, tc := range []struct {
		mode model.Net
		req  *bangerv1.CreateRequest
		want error
		msg  string
	}{
		{model.NetUser, &bangerv1.CreateRequest{NoNat: true}, errdefs.ErrUnsupported, "a network of mode user cannot do without NAT"},
		{model.NetNone, &bangerv1.CreateRequest{NoNat: true}, errdefs.ErrUnsupported, "mode none"},
		{model.NetUser, &bangerv1.CreateRequest{ExposeHost: []uint32{80}}, errdefs.ErrUnsupported, "cannot be exposed to a VM with a network of mode user"},
		{model.NetBridge, &bangerv1.CreateRequest{ExposeHost: []uint32{0}}, errdefs.ErrInvalidArgument, "port 0"},
		{model.NetBridge, &bangerv1.CreateRequest{ExposeHost: []uint32{65536}}, errdefs.ErrInvalidArgument, "port 65536"},
		{model.NetBridge, &bangerv1.CreateRequest{ExposeHost: many}, errdefs.ErrInvalidArgument, "65 ports"},
	} {
		err := New(Deps{Bridge: DefaultBridge}).Reach().Preflight(t.Context(), &model.VM{Spec: model.VMSpec{Net: tc.mode}}, tc.req)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.msg) || errdefs.HintOf(err) == "" {
			t.Errorf("%s %v: %v (hint %q)", tc.mode, tc.req, err, errdefs.HintOf(err))
		}
	}
}
