package imagemgr

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/model"
)

// Kinds of operations.
const (
	opImageSave = "image.save"
	opImageLoad = "image.load"
	opImagePush = "image.push"
	opPromote   = "image.promote"
	opSendImage = "image.send"
	opBuild     = "image.build"
)

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
	if err := o.check(); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opImageSave, o.Name, func(ctx context.Context, p model.Progress) (string, error) {
		return h.s.Save(ctx, o, p)
	})), nil
}

// Load implements ImageService. The operation's result is the images' names, one a line.
func (h ImageHandlers) Load(_ context.Context, req *connect.Request[bangerv1.LoadImagesRequest]) (*connect.Response[bangerv1.Operation], error) {
	l := Load{File: req.Msg.File, As: req.Msg.As, Platform: req.Msg.Platform, Force: req.Msg.Force}
	if err := checkLoad(l); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opImageLoad, l.File, func(ctx context.Context, p model.Progress) (string, error) {
		names, err := h.s.Load(ctx, l, p)
		return strings.Join(names, "\n"), err
	})), nil
}

// Push implements ImageService. The operation's result is the digest of the manifest.
func (h ImageHandlers) Push(_ context.Context, req *connect.Request[bangerv1.PushImageRequest]) (*connect.Response[bangerv1.Operation], error) {
	o := PushImage{Name: req.Msg.Name, To: req.Msg.To, Insecure: req.Msg.Insecure}
	ref, err := o.checkPush()
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opImagePush, ref.Familiar(), func(ctx context.Context, p model.Progress) (string, error) {
		return h.s.Push(ctx, o, p)
	})), nil
}

// Promote implements ImageService. The operation's result is the image's id.
func (h ImageHandlers) Promote(_ context.Context, req *connect.Request[bangerv1.PromoteRequest]) (*connect.Response[bangerv1.Operation], error) {
	o := Promotion{VM: req.Msg.Vm, Image: req.Msg.Image, Name: req.Msg.Name, Force: req.Msg.Force}
	if err := o.check(); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opPromote, o.Name, func(ctx context.Context, p model.Progress) (string, error) {
		i, err := h.s.Promote(ctx, o, p)
		return i.ID, err
	})), nil
}

// PrepareBuild implements ImageService.
func (h ImageHandlers) PrepareBuild(ctx context.Context, req *connect.Request[bangerv1.PrepareBuildRequest]) (*connect.Response[bangerv1.BuildPlan], error) {
	plan, err := h.s.PrepareBuild(ctx, Build{Names: req.Msg.Names, Force: req.Msg.Force, Images: req.Msg.Images})
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.BuildPlan{Image: plan.Image, Registries: plan.Registries, DiskBytes: plan.DiskBytes}), nil
}

// SendImage implements ImageService.
func (h ImageHandlers) SendImage(_ context.Context, req *connect.Request[bangerv1.SendImageRequest]) (*connect.Response[bangerv1.Operation], error) {
	o := SendImage{Name: req.Msg.Name, VM: req.Msg.Vm, Path: req.Msg.Path, As: req.Msg.As}
	if err := o.check(); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opSendImage, o.Name, func(ctx context.Context, p model.Progress) (string, error) {
		return "", h.s.Send(ctx, o, p)
	})), nil
}

// FinishBuild implements ImageService. The operation's result is the image's names, one a
// line.
func (h ImageHandlers) FinishBuild(_ context.Context, req *connect.Request[bangerv1.FinishBuildRequest]) (*connect.Response[bangerv1.Operation], error) {
	o := Built{VM: req.Msg.Vm, Path: req.Msg.Path, Names: req.Msg.Names, Force: req.Msg.Force}
	if err := o.check(); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opBuild, o.Names[0], func(ctx context.Context, p model.Progress) (string, error) {
		names, err := h.s.FinishBuild(ctx, o, p)
		return strings.Join(names, "\n"), err
	})), nil
}

// Prune implements ImageService.
func (h ImageHandlers) Prune(ctx context.Context, req *connect.Request[bangerv1.PruneImagesRequest]) (*connect.Response[bangerv1.PrunedImages], error) {
	gone, err := h.s.Prune(ctx, req.Msg.All, req.Msg.DryRun)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	kernels, err := h.s.kernelsByID(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.PrunedImages{Bytes: gone.Bytes}
	for _, i := range gone.Images {
		w, err := h.s.wireImage(ctx, i.Image, kernels)
		if err != nil {
			return nil, api.ToConnect(err)
		}
		w.UsedBytes = i.UsedBytes
		out.Images = append(out.Images, w)
	}
	return connect.NewResponse(out), nil
}
