package cli

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// playedDaemon is a daemon of another build that will not end.
type playedDaemon struct {
	bangerv1connect.UnimplementedDaemonServiceHandler
	t *testing.T
}

func (p playedDaemon) Shutdown(_ context.Context, req *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	if !req.Msg.IfIdle {
		p.t.Error("the daemon was told to end, busy or not")
	}
	return nil, api.ToConnect(errdefs.New(errdefs.ClassBusy, "the daemon is busy with exec of vm \"box\"").WithHint("wait"))
}

type playedVMs struct {
	bangerv1connect.UnimplementedVMServiceHandler
	vms []*bangerv1.VM
}

func (p playedVMs) List(context.Context, *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	return connect.NewResponse(&bangerv1.ListResponse{Vms: p.vms}), nil
}

// playedNetworks has every network.
type playedNetworks struct {
	bangerv1connect.UnimplementedNetworkServiceHandler
}

func (playedNetworks) Get(_ context.Context, req *connect.Request[bangerv1.NetworkRef]) (*connect.Response[bangerv1.Network], error) {
	return connect.NewResponse(&bangerv1.Network{Name: req.Msg.Name}), nil
}

// playDaemon serves a daemon of another build, with those VMs, where this user's own
// would be.
func playDaemon(t *testing.T, protocol int, vms ...*bangerv1.VM) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv(paths.EnvStateDir, dir)
	t.Setenv(paths.EnvSocket, "")
	l, err := net.Listen("unix", filepath.Join(dir, paths.SocketFile))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(playedDaemon{t: t}))
	mux.Handle(bangerv1connect.NewVMServiceHandler(playedVMs{vms: vms}))
	mux.Handle(bangerv1connect.NewNetworkServiceHandler(playedNetworks{}))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderVersion, "v0-played")
		w.Header().Set(api.HeaderProtocol, strconv.Itoa(protocol))
		mux.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
}

// A busy daemon of another build serves all the same, if it speaks our protocol.
func TestBusyDaemonOfAnotherBuild(t *testing.T) {
	playDaemon(t, api.Protocol, &bangerv1.VM{Id: "abc", Name: "box"})
	code, out, errText := run(t, "vm", "list", "-q")
	if code != 0 || out != "box\n" && out != "abc\n" {
		t.Errorf("code %d, printed %q", code, out)
	}
	if strings.Count(errText, "\n") != 1 || !strings.Contains(errText, "v0-played") || !strings.Contains(errText, `exec of vm "box"`) {
		t.Errorf("stderr %q", errText)
	}
}

func TestDaemonOfAnotherProtocol(t *testing.T) {
	for protocol, want := range map[int][]string{
		api.Protocol - 1: {"v0-played", `exec of vm "box"`, "try: wait"},
		api.Protocol + 1: {"protocol", "try: upgrade this banger to v0-played"},
	} {
		playDaemon(t, protocol)
		code, out, errText := run(t, "vm", "list", "-q")
		if code != 1 || out != "" {
			t.Errorf("protocol %d: code %d, printed %q", protocol, code, out)
		}
		for _, w := range want {
			if !strings.Contains(errText, w) {
				t.Errorf("protocol %d: stderr %q lacks %q", protocol, errText, w)
			}
		}
	}
}
