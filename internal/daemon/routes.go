package daemon

import (
	"context"
	"net/http"
	"os"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/version"
)

// maxRequest bounds one control request, in bytes.
const maxRequest = 4 << 20

// routes registers every service's own handlers. There is no switch to extend.
func (d *Daemon) routes(s *services) http.Handler {
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest))
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(d.handlers(), opts))
	mux.Handle(bangerv1connect.NewVMServiceHandler(s.vms.Handlers(), opts))
	mux.Handle(bangerv1connect.NewImageServiceHandler(s.images.ImageHandlers(), opts))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(s.images.KernelHandlers(), opts))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(s.ops, opts))
	mux.HandleFunc("POST "+api.StreamPattern, s.vms.ServeStream)
	mux.HandleFunc("POST "+api.WorkspacePattern, s.workspaces.ServeImport)
	protocol := strconv.Itoa(api.Protocol)
	build := version.String()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderVersion, build)
		w.Header().Set(api.HeaderProtocol, protocol)
		mux.ServeHTTP(w, r)
	})
}

// daemonHandlers serves DaemonService.
type daemonHandlers struct {
	info func() *bangerv1.InfoResponse
	stop func()
}

func (d *Daemon) handlers() daemonHandlers {
	return daemonHandlers{
		stop: d.stop,
		info: func() *bangerv1.InfoResponse {
			return &bangerv1.InfoResponse{
				Version: version.String(), Commit: version.Get().Commit, Protocol: api.Protocol,
				Pid: int32(os.Getpid()), StateDir: d.opts.Layout.State, ConfigFile: d.opts.ConfigFile,
				StartedAt: timestamppb.New(d.started),
			}
		},
	}
}

// Info implements DaemonService.
func (h daemonHandlers) Info(context.Context, *connect.Request[bangerv1.InfoRequest]) (*connect.Response[bangerv1.InfoResponse], error) {
	return connect.NewResponse(h.info()), nil
}

// Shutdown implements DaemonService.
func (h daemonHandlers) Shutdown(context.Context, *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	h.stop()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}
