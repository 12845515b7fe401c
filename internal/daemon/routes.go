package daemon

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/daemon/workspace"
	"banger/internal/errdefs"
	"banger/internal/version"
)

// maxRequest bounds one control request, in bytes.
const maxRequest = 4 << 20

// routes registers every service's own handlers. There is no switch to extend.
func (d *Daemon) routes(s *services) http.Handler {
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest))
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(daemonHandlers{d, s}, opts))
	mux.Handle(bangerv1connect.NewVMServiceHandler(s.vms.Handlers(), opts))
	mux.Handle(bangerv1connect.NewPortServiceHandler(s.ports.Handlers(s.vms), opts))
	mux.Handle(bangerv1connect.NewImageServiceHandler(s.images.ImageHandlers(), opts))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(s.images.KernelHandlers(), opts))
	mux.Handle(bangerv1connect.NewNetworkServiceHandler(s.networks, opts))
	mux.Handle(bangerv1connect.NewWorkspaceServiceHandler(s.workspaces, connect.WithReadMaxBytes(workspace.MaxManifest)))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(s.ops, opts))
	mux.HandleFunc("POST "+api.StreamPattern, s.vms.ServeStream)
	mux.HandleFunc("POST "+api.WorkspacePattern, s.workspaces.ServeImport)
	protocol := strconv.Itoa(api.Protocol)
	build := version.String()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer d.resting.Reset(restTime)
		w.Header().Set(api.HeaderVersion, build)
		w.Header().Set(api.HeaderProtocol, protocol)
		if n := len(d.notices()); n > 0 {
			w.Header().Set(api.HeaderNotices, strconv.Itoa(n))
		}
		mux.ServeHTTP(w, r)
	})
}

// daemonHandlers serves DaemonService.
type daemonHandlers struct {
	d *Daemon
	s *services
}

// Info implements DaemonService.
func (h daemonHandlers) Info(ctx context.Context, _ *connect.Request[bangerv1.InfoRequest]) (*connect.Response[bangerv1.InfoResponse], error) {
	return connect.NewResponse(&bangerv1.InfoResponse{
		Version: version.String(), Commit: version.Get().Commit, Protocol: api.Protocol,
		Pid: int32(os.Getpid()), StateDir: h.d.opts.Layout.State, ConfigFile: h.d.opts.ConfigFile,
		StartedAt: timestamppb.New(h.d.started), Busy: h.s.busy(ctx), Notices: h.d.notices(),
	}), nil
}

// Shutdown implements DaemonService.
func (h daemonHandlers) Shutdown(ctx context.Context, req *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	if busy := h.s.busy(ctx); req.Msg.IfIdle && len(busy) > 0 {
		return nil, api.ToConnect(errdefs.New(errdefs.ClassBusy, "the daemon is busy with %s", strings.Join(busy, ", ")).
			WithHint("wait for that to end, or cut it off: banger daemon stop"))
	}
	h.d.stop()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}

// busy says what the daemon's end would cut off.
func (s *services) busy(ctx context.Context) []string {
	return append(s.ops.Busy(), s.vms.Busy(ctx)...)
}
