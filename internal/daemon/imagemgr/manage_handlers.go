package imagemgr

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
)

// Tag implements ImageService.
func (h ImageHandlers) Tag(ctx context.Context, req *connect.Request[bangerv1.TagImageRequest]) (*connect.Response[bangerv1.Image], error) {
	i, err := h.s.Tag(ctx, req.Msg.Source, req.Msg.Name, req.Msg.Force)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.answer(ctx, i)
}
