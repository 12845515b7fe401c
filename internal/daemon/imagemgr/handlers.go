package imagemgr

import (
	"context"
	"io/fs"
	"path/filepath"
	"syscall"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/model"
)

// Kinds of operations.
const (
	opImagePull    = "image.pull"
	opKernelPull   = "kernel.pull"
	opKernelImport = "kernel.import"
)

// ImageHandlers serves ImageService.
type ImageHandlers struct{ s *Service }

// KernelHandlers serves KernelService.
type KernelHandlers struct{ s *Service }

var (
	_ bangerv1connect.ImageServiceHandler  = ImageHandlers{}
	_ bangerv1connect.KernelServiceHandler = KernelHandlers{}
)

// ImageHandlers returns the Connect handlers for images.
func (s *Service) ImageHandlers() ImageHandlers { return ImageHandlers{s} }

// KernelHandlers returns the Connect handlers for kernels.
func (s *Service) KernelHandlers() KernelHandlers { return KernelHandlers{s} }

// List implements ImageService.
func (h ImageHandlers) List(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ImageList], error) {
	images, err := h.s.ListImages(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	kernels, err := h.s.kernelsByID(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.ImageList{}
	for _, i := range images {
		w, err := h.s.wireImage(ctx, i, kernels)
		if err != nil {
			return nil, api.ToConnect(err)
		}
		out.Images = append(out.Images, w)
	}
	return connect.NewResponse(out), nil
}

// Get implements ImageService.
func (h ImageHandlers) Get(ctx context.Context, req *connect.Request[bangerv1.ImageRef]) (*connect.Response[bangerv1.Image], error) {
	i, err := h.s.GetImage(ctx, req.Msg.Name)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.answer(ctx, i)
}

func (h ImageHandlers) answer(ctx context.Context, i model.Image) (*connect.Response[bangerv1.Image], error) {
	kernels, err := h.s.kernelsByID(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	w, err := h.s.wireImage(ctx, i, kernels)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(w), nil
}

// Pull implements ImageService. The operation's result is the image's id.
func (h ImageHandlers) Pull(_ context.Context, req *connect.Request[bangerv1.PullRequest]) (*connect.Response[bangerv1.Operation], error) {
	pull := Pull{
		From: req.Msg.Name, As: req.Msg.As, Include: req.Msg.Include, Force: req.Msg.Force,
		Platform: req.Msg.Platform, Insecure: req.Msg.Insecure,
	}
	pl, err := h.s.plan(pull)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opImagePull, pl.name, func(ctx context.Context, p model.Progress) (string, error) {
		i, err := h.s.PullImage(ctx, pull, p)
		return i.ID, err
	})), nil
}

// Register implements ImageService.
func (h ImageHandlers) Register(ctx context.Context, req *connect.Request[bangerv1.RegisterImageRequest]) (*connect.Response[bangerv1.Image], error) {
	r := req.Msg
	i, err := h.s.Register(ctx, Registration{Name: r.Name, Rootfs: r.Rootfs, Kernel: r.Kernel, User: r.User, Workdir: r.Workdir})
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.answer(ctx, i)
}

// Remove implements ImageService.
func (h ImageHandlers) Remove(ctx context.Context, req *connect.Request[bangerv1.ImageRef]) (*connect.Response[bangerv1.Empty], error) {
	if err := h.s.RemoveImage(ctx, req.Msg.Name); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.Empty{}), nil
}

// ListCache implements ImageService.
func (h ImageHandlers) ListCache(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ImageCache], error) {
	c, err := h.s.ListCache(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	var unfinished int64
	for _, p := range c.Parts {
		unfinished += p.Size
	}
	return connect.NewResponse(h.s.wireCache(c.Blobs, unfinished)), nil
}

// PruneCache implements ImageService.
func (h ImageHandlers) PruneCache(ctx context.Context, req *connect.Request[bangerv1.PruneCacheRequest]) (*connect.Response[bangerv1.ImageCache], error) {
	gone, unfinished, err := h.s.PruneCache(ctx, CachePrune{All: req.Msg.All, Keep: req.Msg.KeepBytes, DryRun: req.Msg.DryRun})
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.wireCache(gone, unfinished)), nil
}

// ListCatalog implements ImageService.
func (h ImageHandlers) ListCatalog(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.CatalogOffers], error) {
	return wireOffers(h.s.Offers(ctx, bundle.Image))
}

// ListCatalog implements KernelService.
func (h KernelHandlers) ListCatalog(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.CatalogOffers], error) {
	return wireOffers(h.s.Offers(ctx, bundle.Kernel))
}

func wireOffers(all []catalog.Found, err error) (*connect.Response[bangerv1.CatalogOffers], error) {
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.CatalogOffers{}
	for _, f := range all {
		out.Offers = append(out.Offers, &bangerv1.CatalogOffer{
			Name: f.Name, Digest: string(f.Digest), SizeBytes: f.Size, UnpackedBytes: f.Unpacked, Description: f.Description,
			Kernel: f.Kernel, Catalog: f.Catalog, Key: f.Key,
		})
	}
	return connect.NewResponse(out), nil
}

func (s *Service) wireCache(all []blobs.Blob, unfinished int64) *bangerv1.ImageCache {
	c := &bangerv1.ImageCache{UnfinishedBytes: unfinished, LimitBytes: s.Sources.CacheBytes, Dir: s.Layout.Cache()}
	for _, b := range all {
		c.Blobs = append(c.Blobs, &bangerv1.CachedBlob{
			Digest: string(b.Digest), SizeBytes: b.Size, UsedAt: timestamppb.New(b.Used), References: b.Refs, InUse: b.Pinned,
		})
	}
	return c
}

// List implements KernelService.
func (h KernelHandlers) List(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.KernelList], error) {
	kernels, err := h.s.ListKernels(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.KernelList{}
	for _, k := range kernels {
		w, err := h.s.wireKernel(ctx, k)
		if err != nil {
			return nil, api.ToConnect(err)
		}
		out.Kernels = append(out.Kernels, w)
	}
	return connect.NewResponse(out), nil
}

// Get implements KernelService.
func (h KernelHandlers) Get(ctx context.Context, req *connect.Request[bangerv1.KernelRef]) (*connect.Response[bangerv1.Kernel], error) {
	k, err := h.s.GetKernel(ctx, req.Msg.Name)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	w, err := h.s.wireKernel(ctx, k)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(w), nil
}

// Pull implements KernelService. The operation's result is the kernel's id.
func (h KernelHandlers) Pull(_ context.Context, req *connect.Request[bangerv1.PullRequest]) (*connect.Response[bangerv1.Operation], error) {
	name, force := req.Msg.Name, req.Msg.Force
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opKernelPull, name, func(ctx context.Context, p model.Progress) (string, error) {
		k, err := h.s.PullKernel(ctx, name, force, p)
		return k.ID, err
	})), nil
}

// Import implements KernelService. The operation's result is the kernel's id.
func (h KernelHandlers) Import(_ context.Context, req *connect.Request[bangerv1.ImportKernelRequest]) (*connect.Response[bangerv1.Operation], error) {
	name, from := req.Msg.Name, KernelFrom{Dir: req.Msg.Dir, Deb: req.Msg.Deb, Bundle: req.Msg.Bundle, Key: req.Msg.Key}
	if _, err := importer(name, from); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(h.s.Ops.Begin(opKernelImport, name, func(ctx context.Context, p model.Progress) (string, error) {
		k, err := h.s.ImportKernel(ctx, name, from, p)
		return k.ID, err
	})), nil
}

// Remove implements KernelService.
func (h KernelHandlers) Remove(ctx context.Context, req *connect.Request[bangerv1.KernelRef]) (*connect.Response[bangerv1.Empty], error) {
	if err := h.s.RemoveKernel(ctx, req.Msg.Name); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.Empty{}), nil
}

func (s *Service) kernelsByID(ctx context.Context) (map[string]string, error) {
	kernels, err := s.Store.ListKernels(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, k := range kernels {
		names[k.ID] = k.Name
	}
	return names, nil
}

func (s *Service) wireImage(ctx context.Context, i model.Image, kernels map[string]string) (*bangerv1.Image, error) {
	users, err := s.Store.ImageUsers(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	var layers []*bangerv1.ImageLayer
	for _, l := range i.Layers {
		layers = append(layers, &bangerv1.ImageLayer{Digest: l.Digest, SizeBytes: l.SizeBytes})
	}
	return &bangerv1.Image{
		Id: i.ID, Name: i.Name, Managed: i.Managed, Path: i.Path, SizeBytes: i.SizeBytes, UsedBytes: allocated(i.Path),
		Kernel: kernels[i.KernelID], Digest: i.Digest, Source: i.Source, CreatedAt: timestamppb.New(i.CreatedAt),
		User: i.Config.User, Workdir: i.Config.Workdir, Env: i.Config.Env,
		Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, UsedBy: users,
		StopSignal: i.Config.StopSignal, ExposedPorts: i.Config.ExposedPorts, Volumes: i.Config.Volumes, Labels: i.Config.Labels,
		Layers: layers,
	}, nil
}

func (s *Service) wireKernel(ctx context.Context, k model.Kernel) (*bangerv1.Kernel, error) {
	users, err := s.Store.KernelUsers(ctx, k.ID)
	if err != nil {
		return nil, err
	}
	return &bangerv1.Kernel{
		Id: k.ID, Name: k.Name, Release: k.Release, Vmlinux: k.VmlinuxPath, Bzimage: k.BzImagePath, Modules: k.ModulesPath,
		Source: k.Source, UsedBytes: allocated(filepath.Dir(k.VmlinuxPath)), CreatedAt: timestamppb.New(k.CreatedAt), UsedBy: users,
	}, nil
}

// allocated is how many bytes a file, or all files of a directory, take on the
// disk; 0 when it is gone.
func allocated(path string) (bytes int64) {
	_ = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += st.Blocks * 512
			}
		}
		return nil
	})
	return bytes
}
