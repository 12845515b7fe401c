package api_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/errdefs"
)

type failing struct {
	bangerv1connect.UnimplementedKernelServiceHandler
	err error
}

func (f failing) Get(context.Context, *connect.Request[bangerv1.KernelRef]) (*connect.Response[bangerv1.Kernel], error) {
	return nil, api.ToConnect(f.err)
}

// Every class, with hint and operation, arrives as it was sent.
func TestErrorsCrossTheWire(t *testing.T) {
	classes := []errdefs.Class{
		errdefs.ClassInternal, errdefs.ClassInvalidArgument, errdefs.ClassNotFound, errdefs.ClassAlreadyExists,
		errdefs.ClassFailedPrecondition, errdefs.ClassBusy, errdefs.ClassUnavailable, errdefs.ClassExhausted,
		errdefs.ClassPermission, errdefs.ClassCanceled, errdefs.ClassTimeout, errdefs.ClassUnsupported,
	}
	for _, class := range classes {
		sent := &errdefs.Error{Class: class, Msg: "it failed", Hint: "try this", Op: "op-1"}
		_, handler := bangerv1connect.NewKernelServiceHandler(failing{err: sent})
		server := httptest.NewServer(handler)
		client := bangerv1connect.NewKernelServiceClient(http.DefaultClient, server.URL)
		_, err := client.Get(context.Background(), connect.NewRequest(&bangerv1.KernelRef{}))
		server.Close()
		got := api.FromConnect(err)
		if errdefs.ClassOf(got) != class || got.Error() != "it failed" || errdefs.HintOf(got) != "try this" || errdefs.OpOf(got) != "op-1" {
			t.Errorf("%s arrived as %s: %v (%s, %s)", class, errdefs.ClassOf(got), got, errdefs.HintOf(got), errdefs.OpOf(got))
		}
	}
}

func TestForeignConnectErrorsGetTheClassOfTheirCode(t *testing.T) {
	err := api.FromConnect(connect.NewError(connect.CodeNotFound, errors.New("gone")))
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if plain := errors.New("x"); api.FromConnect(plain) != plain {
		t.Error("an error that is not Connect's was changed")
	}
}
