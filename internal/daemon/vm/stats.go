package vm

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// sampleTime bounds how long a VMM may take to say what it uses.
const sampleTime = 10 * time.Second

// Stats implements VMService. It takes no claim: it answers while a verb is under way.
func (h Handlers) Stats(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VMStats], error) {
	out, err := h.s.stats(ctx, req.Msg.Ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(out), nil
}

func (s *Service) stats(ctx context.Context, ref string) (*bangerv1.VMStats, error) {
	v, err := s.Store.FindVM(ctx, ref)
	if err != nil {
		return nil, err
	}
	l, err := s.running(&v)
	if err != nil {
		return nil, err
	}
	sampler, ok := as[hypervisor.Sampler](l)
	if !ok {
		return nil, errdefs.Unsupported("driver %q does not say what a VM uses", v.Spec.Driver)
	}
	ctx, cancel := context.WithTimeout(ctx, sampleTime)
	defer cancel()
	st, err := sampler.Stats(ctx)
	if err != nil {
		return nil, errdefs.Wrap(err, "measure vm %q", v.Name)
	}
	out := &bangerv1.VMStats{
		Id: v.ID, Name: v.Name, At: timestamppb.Now(), StartedAt: timestamppb.New(v.StartedAt),
		CpuNanos: int64(st.CPU), MemoryBytes: st.Memory, Disk: transferred(st.Disk), Net: transferred(st.Net),
	}
	if g := st.Guest; g != nil {
		out.GuestTotalBytes, out.GuestFreeBytes, out.GuestAvailableBytes = &g.Total, &g.Free, &g.Available
	}
	return out, nil
}

func transferred(t *hypervisor.Transfer) *bangerv1.VMTransfer {
	if t == nil {
		return nil
	}
	return &bangerv1.VMTransfer{ReadBytes: t.ReadBytes, WriteBytes: t.WriteBytes, Reads: t.Reads, Writes: t.Writes}
}
