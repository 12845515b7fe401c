package imagemgr

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/model"
)

// Kinds of operations.
const opImageSave = "image.save"

// Tag implements ImageService.
func (h ImageHandlers) Tag(ctx context.Context, req *connect.Request[bangerv1.TagImageRequest]) (*connect.Response[bangerv1.Image], error) {
	i, err := h.s.Tag(ctx, req.Msg.Source, req.Msg.Name, req.Msg.Force)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.answer(ctx, i)
}

// Save implements ImageService. The operation's result is the digest of the manifest.
func (h ImageHandlers) Save(_ context.Context, req *connect.Request[bangerv1.SaveImageRequest]) (*connect.Response[bangerv1.Operation], error) {
	o := SaveImage{Name: req.Msg.Name, To: req.Msg.To, Force: req.Msg.Force}
	if _, err := o.checkSave(); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opImageSave, o.Name, func(ctx context.Context, p model.Progress) (string, error) {
		return h.s.Save(ctx, o, p)
	})), nil
}
