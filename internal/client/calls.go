package client

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

// call runs one unary procedure and maps its error.
func call[Req, Res any](ctx context.Context, fn func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), msg *Req) (*Res, error) {
	res, err := fn(ctx, connect.NewRequest(msg))
	if err != nil {
		return nil, mapErr(ctx, err)
	}
	return res.Msg, nil
}

// Info describes the daemon.
func (c *Client) Info(ctx context.Context) (*bangerv1.InfoResponse, error) {
	return call(ctx, c.daemon.Info, &bangerv1.InfoRequest{})
}

// Shutdown asks the daemon to end; it may still run when this returns. With ifIdle
// it refuses, as busy, when that would cut something off.
func (c *Client) Shutdown(ctx context.Context, ifIdle bool) error {
	_, err := call(ctx, c.daemon.Shutdown, &bangerv1.ShutdownRequest{IfIdle: ifIdle})
	return err
}

// CreateVM starts to make a VM.
func (c *Client) CreateVM(ctx context.Context, req *bangerv1.CreateRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Create, req)
}

// StartVM starts to start a VM. ref, here and below, is a name, an id or an
// unambiguous prefix of an id.
func (c *Client) StartVM(ctx context.Context, ref string) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Start, &bangerv1.VMRef{Ref: ref})
}

// StopVM starts to stop a VM.
func (c *Client) StopVM(ctx context.Context, req *bangerv1.StopRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Stop, req)
}

// RestartVM starts to stop and start a VM.
func (c *Client) RestartVM(ctx context.Context, req *bangerv1.StopRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Restart, req)
}

// KillVM starts to end a VM at once.
func (c *Client) KillVM(ctx context.Context, ref string) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Kill, &bangerv1.VMRef{Ref: ref})
}

// DeleteVM starts to delete a VM.
func (c *Client) DeleteVM(ctx context.Context, ref string, force bool) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Delete, &bangerv1.DeleteRequest{Ref: ref, Force: force})
}

// ListVMs returns all VMs.
func (c *Client) ListVMs(ctx context.Context) ([]*bangerv1.VM, error) {
	res, err := call(ctx, c.vms.List, &bangerv1.ListRequest{})
	return res.GetVms(), err
}

// GetVM returns one VM.
func (c *Client) GetVM(ctx context.Context, ref string) (*bangerv1.VM, error) {
	return call(ctx, c.vms.Get, &bangerv1.VMRef{Ref: ref})
}

// GetSSH returns how SSH clients are to know a VM.
func (c *Client) GetSSH(ctx context.Context, ref string) (*bangerv1.SSHInfo, error) {
	return call(ctx, c.vms.GetSSH, &bangerv1.VMRef{Ref: ref})
}

// AddPorts forwards more ports to a VM and returns all that are.
func (c *Client) AddPorts(ctx context.Context, ref string, ports []*bangerv1.Port) ([]*bangerv1.Port, error) {
	res, err := call(ctx, c.ports.Add, &bangerv1.PortsRequest{Ref: ref, Ports: ports})
	return res.GetPorts(), err
}

// RemovePorts stops forwarding these ports of the host to a VM.
func (c *Client) RemovePorts(ctx context.Context, ref string, ports []*bangerv1.Port) error {
	_, err := call(ctx, c.ports.Remove, &bangerv1.PortsRequest{Ref: ref, Ports: ports})
	return err
}

// VMStats says what a running VM uses.
func (c *Client) VMStats(ctx context.Context, ref string) (*bangerv1.VMStats, error) {
	return call(ctx, c.vms.Stats, &bangerv1.VMRef{Ref: ref})
}

// RenameVM gives a VM another name.
func (c *Client) RenameVM(ctx context.Context, ref, name string) (*bangerv1.VM, error) {
	return call(ctx, c.vms.Rename, &bangerv1.RenameRequest{Ref: ref, Name: name})
}

// SetVM starts to change the shape of a VM.
func (c *Client) SetVM(ctx context.Context, req *bangerv1.SetRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.vms.Set, req)
}

// WaitVM returns when the VM neither starts nor runs any more.
func (c *Client) WaitVM(ctx context.Context, ref string) (*bangerv1.VM, error) {
	return call(ctx, c.vms.Wait, &bangerv1.VMRef{Ref: ref})
}

// VMLogs copies a VM's log to w until its end, or for ever when it follows.
func (c *Client) VMLogs(ctx context.Context, req *bangerv1.LogsRequest, w io.Writer) error {
	stream, err := c.vms.Logs(ctx, connect.NewRequest(req))
	if err != nil {
		return mapErr(ctx, err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return errdefs.Wrap(err, "write the log")
		}
	}
	return mapErr(ctx, stream.Err())
}

// ListImages returns all images.
func (c *Client) ListImages(ctx context.Context) ([]*bangerv1.Image, error) {
	res, err := call(ctx, c.images.List, &bangerv1.ListRequest{})
	return res.GetImages(), err
}

// GetImage returns one image.
func (c *Client) GetImage(ctx context.Context, name string) (*bangerv1.Image, error) {
	return call(ctx, c.images.Get, &bangerv1.ImageRef{Name: name})
}

// PullImage starts to make an image.
func (c *Client) PullImage(ctx context.Context, req *bangerv1.PullRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.Pull, req)
}

// RegisterImage points at a root filesystem of the user's.
func (c *Client) RegisterImage(ctx context.Context, req *bangerv1.RegisterImageRequest) (*bangerv1.Image, error) {
	return call(ctx, c.images.Register, req)
}

// RemoveImage removes an image.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	_, err := call(ctx, c.images.Remove, &bangerv1.ImageRef{Name: name})
	return err
}

// TagImage gives an image a further name.
func (c *Client) TagImage(ctx context.Context, req *bangerv1.TagImageRequest) (*bangerv1.Image, error) {
	return call(ctx, c.images.Tag, req)
}

// SaveImage starts to write an image where other tools read it.
func (c *Client) SaveImage(ctx context.Context, req *bangerv1.SaveImageRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.Save, req)
}

// LoadImages starts to make images of those in an archive.
func (c *Client) LoadImages(ctx context.Context, req *bangerv1.LoadImagesRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.Load, req)
}

// PushImage starts to send an image to a registry.
func (c *Client) PushImage(ctx context.Context, req *bangerv1.PushImageRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.Push, req)
}

// PromoteImage starts to make a managed image of a disk.
func (c *Client) PromoteImage(ctx context.Context, req *bangerv1.PromoteRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.Promote, req)
}

// PrepareBuild checks a build, and says where to build.
func (c *Client) PrepareBuild(ctx context.Context, req *bangerv1.PrepareBuildRequest) (*bangerv1.BuildPlan, error) {
	return call(ctx, c.images.PrepareBuild, req)
}

// SendImage starts to write an image into a VM.
func (c *Client) SendImage(ctx context.Context, req *bangerv1.SendImageRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.SendImage, req)
}

// FinishBuild starts to make an image of an archive in a VM.
func (c *Client) FinishBuild(ctx context.Context, req *bangerv1.FinishBuildRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.images.FinishBuild, req)
}

// PruneImages removes images that no VM uses, and returns those.
func (c *Client) PruneImages(ctx context.Context, req *bangerv1.PruneImagesRequest) (*bangerv1.PrunedImages, error) {
	return call(ctx, c.images.Prune, req)
}

// ImageCache says what was fetched of images and is kept.
func (c *Client) ImageCache(ctx context.Context) (*bangerv1.ImageCache, error) {
	return call(ctx, c.images.ListCache, &bangerv1.ListRequest{})
}

// PruneImageCache removes some of that, and returns what went.
func (c *Client) PruneImageCache(ctx context.Context, req *bangerv1.PruneCacheRequest) (*bangerv1.ImageCache, error) {
	return call(ctx, c.images.PruneCache, req)
}

// OfferedImages asks the catalogs which images they have.
func (c *Client) OfferedImages(ctx context.Context) ([]*bangerv1.CatalogOffer, error) {
	res, err := call(ctx, c.images.ListCatalog, &bangerv1.ListRequest{})
	return res.GetOffers(), err
}

// OfferedKernels asks the catalogs which kernels they have.
func (c *Client) OfferedKernels(ctx context.Context) ([]*bangerv1.CatalogOffer, error) {
	res, err := call(ctx, c.kernels.ListCatalog, &bangerv1.ListRequest{})
	return res.GetOffers(), err
}

// ListKernels returns all kernels.
func (c *Client) ListKernels(ctx context.Context) ([]*bangerv1.Kernel, error) {
	res, err := call(ctx, c.kernels.List, &bangerv1.ListRequest{})
	return res.GetKernels(), err
}

// GetKernel returns one kernel.
func (c *Client) GetKernel(ctx context.Context, name string) (*bangerv1.Kernel, error) {
	return call(ctx, c.kernels.Get, &bangerv1.KernelRef{Name: name})
}

// PullKernel starts to make a kernel.
func (c *Client) PullKernel(ctx context.Context, name string, force bool) (*bangerv1.Operation, error) {
	return call(ctx, c.kernels.Pull, &bangerv1.PullRequest{Name: name, Force: force})
}

// ImportKernel starts to take a kernel from a directory, a package or a bundle on the
// daemon's host.
func (c *Client) ImportKernel(ctx context.Context, req *bangerv1.ImportKernelRequest) (*bangerv1.Operation, error) {
	return call(ctx, c.kernels.Import, req)
}

// RemoveKernel removes a kernel.
func (c *Client) RemoveKernel(ctx context.Context, name string) error {
	_, err := call(ctx, c.kernels.Remove, &bangerv1.KernelRef{Name: name})
	return err
}

// ListNetworks returns all named networks.
func (c *Client) ListNetworks(ctx context.Context) ([]*bangerv1.Network, error) {
	res, err := call(ctx, c.networks.List, &bangerv1.ListRequest{})
	return res.GetNetworks(), err
}

// GetNetwork returns one named network.
func (c *Client) GetNetwork(ctx context.Context, name string) (*bangerv1.Network, error) {
	return call(ctx, c.networks.Get, &bangerv1.NetworkRef{Name: name})
}

// CreateNetwork makes a named network.
func (c *Client) CreateNetwork(ctx context.Context, name string) (*bangerv1.Network, error) {
	return call(ctx, c.networks.Create, &bangerv1.NetworkRef{Name: name})
}

// RemoveNetwork removes a named network.
func (c *Client) RemoveNetwork(ctx context.Context, name string) error {
	_, err := call(ctx, c.networks.Remove, &bangerv1.NetworkRef{Name: name})
	return err
}

// ListOperations returns the operations the daemon remembers.
func (c *Client) ListOperations(ctx context.Context) ([]*bangerv1.Operation, error) {
	res, err := call(ctx, c.operations.List, &bangerv1.ListRequest{})
	return res.GetOperations(), err
}

// GetOperation returns one operation.
func (c *Client) GetOperation(ctx context.Context, id string) (*bangerv1.Operation, error) {
	return call(ctx, c.operations.Get, &bangerv1.OperationRef{Id: id})
}

// CancelOperation asks an operation to stop and undo what it did.
func (c *Client) CancelOperation(ctx context.Context, id string) (*bangerv1.Operation, error) {
	return call(ctx, c.operations.Cancel, &bangerv1.OperationRef{Id: id})
}

// errWatchEnded says that a watch ended before its operation did.
var errWatchEnded = errors.New("the daemon ended the watch")
