package vm

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Handlers serves VMService. Every method resolves the reference, and leaves the
// work to the service.
type Handlers struct{ s *Service }

var _ bangerv1connect.VMServiceHandler = Handlers{}

// Handlers returns the Connect handlers of the service.
func (s *Service) Handlers() Handlers { return Handlers{s} }

// Create implements VMService.
func (h Handlers) Create(ctx context.Context, req *connect.Request[bangerv1.CreateRequest]) (*connect.Response[bangerv1.Operation], error) {
	op, err := h.s.begin(ctx, req.Msg)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(op), nil
}

// operate resolves ref and begins an operation on the VM; its result is the id.
func (h Handlers) operate(ctx context.Context, kind, ref string, fn func(ctx context.Context, id string, p model.Progress) error) (*connect.Response[bangerv1.Operation], error) {
	v, err := h.s.Store.FindVM(ctx, ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	op := h.s.Ops.Begin(kind, v.Name, func(ctx context.Context, p model.Progress) (string, error) {
		return v.ID, fn(ctx, v.ID, p)
	})
	return connect.NewResponse(op), nil
}

// Start implements VMService.
func (h Handlers) Start(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.Operation], error) {
	return h.operate(ctx, "vm.start", req.Msg.Ref, h.s.start)
}

func stopTimeout(req *bangerv1.StopRequest) (time.Duration, error) {
	if req.TimeoutMillis < 0 || req.TimeoutMillis > int64(24*time.Hour/time.Millisecond) {
		return 0, api.ToConnect(errdefs.Invalid("a stop timeout of %d ms is not between 0 and a day", req.TimeoutMillis))
	}
	return time.Duration(req.TimeoutMillis) * time.Millisecond, nil
}

// Stop implements VMService.
func (h Handlers) Stop(ctx context.Context, req *connect.Request[bangerv1.StopRequest]) (*connect.Response[bangerv1.Operation], error) {
	timeout, err := stopTimeout(req.Msg)
	if err != nil {
		return nil, err
	}
	return h.operate(ctx, "vm.stop", req.Msg.Ref, func(ctx context.Context, id string, p model.Progress) error {
		return h.s.stop(ctx, id, timeout, p)
	})
}

// Restart implements VMService.
func (h Handlers) Restart(ctx context.Context, req *connect.Request[bangerv1.StopRequest]) (*connect.Response[bangerv1.Operation], error) {
	timeout, err := stopTimeout(req.Msg)
	if err != nil {
		return nil, err
	}
	return h.operate(ctx, "vm.restart", req.Msg.Ref, func(ctx context.Context, id string, p model.Progress) error {
		return h.s.restart(ctx, id, timeout, p)
	})
}

// Kill implements VMService.
func (h Handlers) Kill(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.Operation], error) {
	return h.operate(ctx, "vm.kill", req.Msg.Ref, func(ctx context.Context, id string, _ model.Progress) error {
		return h.s.kill(ctx, id)
	})
}

// Delete implements VMService.
func (h Handlers) Delete(ctx context.Context, req *connect.Request[bangerv1.DeleteRequest]) (*connect.Response[bangerv1.Operation], error) {
	return h.operate(ctx, "vm.delete", req.Msg.Ref, func(ctx context.Context, id string, _ model.Progress) error {
		return h.s.remove(ctx, id, req.Msg.Force)
	})
}

// Rename implements VMService.
func (h Handlers) Rename(ctx context.Context, req *connect.Request[bangerv1.RenameRequest]) (*connect.Response[bangerv1.VM], error) {
	v, err := h.s.rename(ctx, req.Msg.Ref, req.Msg.Name)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.full(ctx, &v)
}

// Set implements VMService.
func (h Handlers) Set(ctx context.Context, req *connect.Request[bangerv1.SetRequest]) (*connect.Response[bangerv1.Operation], error) {
	if req.Msg.Cpus == nil && req.Msg.MemoryMib == nil && req.Msg.DiskBytes == nil {
		return nil, api.ToConnect(errdefs.Invalid("nothing is to be set").WithHint("give --cpus, --memory or --disk"))
	}
	return h.operate(ctx, "vm.set", req.Msg.Ref, func(ctx context.Context, id string, p model.Progress) error {
		return h.s.set(ctx, id, req.Msg, p)
	})
}

// List implements VMService.
func (h Handlers) List(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	all, err := h.s.Store.ListVMs(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	known, err := h.s.lookUp(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.ListResponse{Vms: make([]*bangerv1.VM, 0, len(all))}
	for i := range all {
		out.Vms = append(out.Vms, h.s.wire(&all[i], known))
	}
	return connect.NewResponse(out), nil
}

// Get implements VMService.
func (h Handlers) Get(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	v, err := h.s.Store.FindVM(ctx, req.Msg.Ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.full(ctx, &v)
}

func (h Handlers) full(ctx context.Context, v *model.VM) (*connect.Response[bangerv1.VM], error) {
	known, err := h.s.lookUp(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := h.s.wire(v, known)
	out.Dir = h.s.Layout.VM(v.ID)
	out.DiskUsedBytes = h.s.usedBytes(ctx, v)
	if out.ImageConfig, err = h.s.imageConfig(ctx, v); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(out), nil
}

// Wait implements VMService.
func (h Handlers) Wait(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	v, err := h.s.Store.FindVM(ctx, req.Msg.Ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	defer h.s.use(v.ID, "wait")()
	for {
		changed := h.s.nextChange(v.ID)
		now, err := h.s.Store.GetVM(ctx, v.ID)
		if errors.Is(err, errdefs.ErrNotFound) {
			// Deleted while we waited: it has stopped, for good.
			h.s.notify(v.ID) // nobody else will, and it would be remembered
			v.State = model.StateDeleting
			return connect.NewResponse(h.s.wire(&v, lookups{})), nil
		}
		if err != nil {
			return nil, api.ToConnect(err)
		}
		if !now.State.Live() && now.State != model.StateCreating && now.State != model.StateDeleting {
			return h.full(ctx, &now)
		}
		v = now
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, api.ToConnect(ctx.Err())
		}
	}
}

// Logs implements VMService.
func (h Handlers) Logs(ctx context.Context, req *connect.Request[bangerv1.LogsRequest], stream *connect.ServerStream[bangerv1.LogChunk]) error {
	v, err := h.s.Store.FindVM(ctx, req.Msg.Ref)
	if err != nil {
		return api.ToConnect(err)
	}
	defer h.s.use(v.ID, "logs")()
	err = h.s.logs(ctx, &v, req.Msg.Vmm, req.Msg.Follow, req.Msg.TailBytes, func(b []byte) error {
		return stream.Send(&bangerv1.LogChunk{Data: b})
	})
	return api.ToConnect(err)
}

// lookups are what of a VM's message stands in other tables than its row.
type lookups struct {
	kernels  map[string]string // names by id
	describe func(v *model.VM, out *bangerv1.VM)
}

func (s *Service) lookUp(ctx context.Context) (lookups, error) {
	all, err := s.Store.ListKernels(ctx)
	if err != nil {
		return lookups{}, err
	}
	known := lookups{kernels: make(map[string]string, len(all))}
	for _, k := range all {
		known.kernels[k.ID] = k.Name
	}
	known.describe, err = s.Caps.Describe(ctx)
	return known, err
}

// wire turns a record into its message.
func (s *Service) wire(v *model.VM, known lookups) *bangerv1.VM {
	out := &bangerv1.VM{
		Id: v.ID, Name: v.Name, State: string(v.State),
		Image: v.ImageRef, ImageId: v.ImageID, Kernel: known.kernels[v.KernelID], KernelId: v.KernelID,
		Cpus: int32(v.Spec.CPUs), MemoryMib: v.Spec.MemoryMiB, DiskBytes: v.Spec.DiskBytes,
		DiskBytesPerSecond: v.Spec.DiskBPS, DiskOpsPerSecond: v.Spec.DiskIOPS,
		Net: string(v.Spec.Net), Driver: v.Spec.Driver, DriverWhy: v.Spec.DriverWhy, DiskMethod: v.Spec.DiskMethod, DiskWhy: v.Spec.DiskWhy, Machine: v.Spec.Machine, CpuModel: v.Spec.CPUModel,
		BootId: v.BootID, LastError: v.LastError, User: v.Spec.User, Workdir: v.Spec.Workdir,
		AutoRemove: v.Spec.AutoRemove, Busy: s.Locks.Holder(v.ID),
		CreatedAt: timestamppb.New(v.CreatedAt),
	}
	if !v.StartedAt.IsZero() {
		out.StartedAt = timestamppb.New(v.StartedAt)
	}
	if known.describe != nil {
		known.describe(v, out)
	}
	if l := s.lookup(v.ID); l != nil {
		handle := l.machine.Handle()
		out.Paused = l.stalled()
		if text := l.lostDisk(); text != "" {
			out.LastError = text
		}
		out.Pid, out.Accel, out.VmmVersion = int32(handle.PID), string(handle.Accel), handle.Version
	}
	return out
}
