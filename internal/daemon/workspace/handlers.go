package workspace

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/durable"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/paths"
)

// Store keeps the records.
type Store interface {
	ListWorkspaces(ctx context.Context, vmID string) ([]model.Workspace, error)
	GetWorkspace(ctx context.Context, id string) (model.Workspace, error)
	BeginWorkspace(ctx context.Context, w *model.Workspace) error
	FinishWorkspace(ctx context.Context, id string, generation int64) error
	DeleteWorkspace(ctx context.Context, id string) error
	FindVM(ctx context.Context, ref string) (model.VM, error)
	ListVMs(ctx context.Context) ([]model.VM, error)
}

// MaxManifest bounds a list of what was sent, in bytes.
const MaxManifest = 256 << 20

// forgetTimeout is how long a guest may take to forget a workspace.
const forgetTimeout = 10 * time.Second

var _ bangerv1connect.WorkspaceServiceHandler = (*Service)(nil)

// Restore removes lists of workspaces that no row knows: a crash came between the two.
func (s *Service) Restore(ctx context.Context) error {
	all, err := s.Store.ListWorkspaces(ctx, "")
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, w := range all {
		known[s.manifestFile(&w)] = true
	}
	files, err := filepath.Glob(filepath.Join(s.Layout.VMs(), "*", paths.WorkspacesDir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if !known[file] {
			errs = append(errs, os.Remove(file))
		}
	}
	return errors.Join(errs...)
}

func (s *Service) manifestFile(w *model.Workspace) string {
	return filepath.Join(s.Layout.VM(w.VMID), paths.WorkspacesDir, w.ID)
}

// List implements WorkspaceService.
func (s *Service) List(ctx context.Context, req *connect.Request[bangerv1.ListWorkspacesRequest]) (*connect.Response[bangerv1.WorkspaceList], error) {
	id := ""
	if req.Msg.Ref != "" {
		v, err := s.Store.FindVM(ctx, req.Msg.Ref)
		if err != nil {
			return nil, api.ToConnect(err)
		}
		id = v.ID
	}
	all, err := s.Store.ListWorkspaces(ctx, id)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.WorkspaceList{}
	for i := range all {
		out.Workspaces = append(out.Workspaces, wire(&all[i], names[all[i].VMID]))
	}
	return connect.NewResponse(out), nil
}

func (s *Service) names(ctx context.Context) (map[string]string, error) {
	vms, err := s.Store.ListVMs(ctx)
	names := make(map[string]string, len(vms))
	for _, v := range vms {
		names[v.ID] = v.Name
	}
	return names, err
}

func wire(w *model.Workspace, vm string) *bangerv1.Workspace {
	sp := w.Spec
	return &bangerv1.Workspace{
		Id: w.ID, Vm: vm, VmId: w.VMID, GuestPath: w.GuestPath, HostPath: w.HostPath, State: string(w.State), Generation: w.Generation,
		Spec: &bangerv1.WorkspaceSpec{
			Mode: sp.Mode, TrackedOnly: sp.TrackedOnly, Include: sp.Include, Depth: int32(sp.Depth), From: sp.From,
			Branch: sp.Branch, ReadOnly: sp.ReadOnly, User: sp.User, Git: sp.Git, Base: sp.Base, Head: sp.Head,
		},
		CreatedAt: timestamppb.New(w.CreatedAt), UpdatedAt: timestamppb.New(w.UpdatedAt),
	}
}

func unwire(sp *bangerv1.WorkspaceSpec) model.WorkspaceSpec {
	return model.WorkspaceSpec{
		Mode: sp.GetMode(), TrackedOnly: sp.GetTrackedOnly(), Include: sp.GetInclude(), Depth: int(sp.GetDepth()), From: sp.GetFrom(),
		Branch: sp.GetBranch(), ReadOnly: sp.GetReadOnly(), User: sp.GetUser(), Git: sp.GetGit(), Base: sp.GetBase(), Head: sp.GetHead(),
	}
}

// maxPath is how long a path may be, in bytes, as for the kernel.
const maxPath = 4096

func checkBegin(m *bangerv1.BeginWorkspaceRequest) error {
	for what, p := range map[string]string{"in the VM": m.GuestPath, "on the host": m.HostPath} {
		if !path.IsAbs(p) || path.Clean(p) != p || len(p) > maxPath || strings.ContainsRune(p, 0) {
			return errdefs.Invalid("the path %q %s is not absolute and clean", p, what).WithHint("give one like /workspace")
		}
	}
	if m.GuestPath == "/" {
		return errdefs.Invalid("the VM's root directory cannot be a workspace").WithHint("give another directory: --at /workspace")
	}
	switch m.Spec.GetMode() {
	case "default", "full", "metadata":
		return nil
	}
	return errdefs.Invalid("mode %q of a workspace", m.Spec.GetMode()).WithHint("there are: default, full, metadata")
}

// Begin implements WorkspaceService.
func (s *Service) Begin(ctx context.Context, req *connect.Request[bangerv1.BeginWorkspaceRequest]) (*connect.Response[bangerv1.Workspace], error) {
	if err := checkBegin(req.Msg); err != nil {
		return nil, api.ToConnect(err)
	}
	id, err := s.VMs.CheckRunning(ctx, req.Msg.Ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	w := model.Workspace{ID: model.NewID(), VMID: id, GuestPath: req.Msg.GuestPath, HostPath: req.Msg.HostPath, Spec: unwire(req.Msg.Spec)}
	if err := s.Store.BeginWorkspace(ctx, &w); err != nil {
		return nil, api.ToConnect(err)
	}
	return s.answer(ctx, &w)
}

func (s *Service) answer(ctx context.Context, w *model.Workspace) (*connect.Response[bangerv1.Workspace], error) {
	names, err := s.names(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(wire(w, names[w.VMID])), nil
}

// Finish implements WorkspaceService.
func (s *Service) Finish(ctx context.Context, req *connect.Request[bangerv1.FinishWorkspaceRequest]) (*connect.Response[bangerv1.Workspace], error) {
	w, err := s.finish(ctx, req.Msg)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return s.answer(ctx, &w)
}

// finish keeps the list before the row says that it counts: until then it is one of what
// is there or about to be, and what is sent by it is sent twice at worst.
func (s *Service) finish(ctx context.Context, m *bangerv1.FinishWorkspaceRequest) (model.Workspace, error) {
	w, err := s.Store.GetWorkspace(ctx, m.Id)
	if err != nil {
		return w, err
	}
	if w.Generation == m.Generation && !m.Refused {
		if err := s.keep(&w, m.Manifest); err != nil {
			return w, errdefs.Wrap(err, "keep what was sent into workspace %s", w.GuestPath)
		}
	}
	if err := s.Store.FinishWorkspace(ctx, m.Id, m.Generation); err != nil {
		return w, err
	}
	return s.Store.GetWorkspace(ctx, m.Id)
}

func (s *Service) keep(w *model.Workspace, list []byte) error {
	file := s.manifestFile(w)
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), paths.StagingPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(list)
	// It is on the disk before the row that counts on it.
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return durable.SyncDir(filepath.Dir(file))
}

// Manifest implements WorkspaceService.
func (s *Service) Manifest(ctx context.Context, req *connect.Request[bangerv1.WorkspaceID]) (*connect.Response[bangerv1.WorkspaceManifest], error) {
	w, err := s.Store.GetWorkspace(ctx, req.Msg.Id)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	list, err := os.ReadFile(s.manifestFile(&w))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, api.ToConnect(errdefs.Wrap(err, "read what was sent into workspace %s", w.GuestPath))
	}
	return connect.NewResponse(&bangerv1.WorkspaceManifest{Manifest: list, Generation: w.Generation}), nil
}

// Remove implements WorkspaceService.
func (s *Service) Remove(ctx context.Context, req *connect.Request[bangerv1.WorkspaceID]) (*connect.Response[bangerv1.Empty], error) {
	w, err := s.Store.GetWorkspace(ctx, req.Msg.Id)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	held, err := s.Locks.Acquire(ctx, w.VMID, "forget "+w.GuestPath)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	defer held.Release()
	if err := s.Store.DeleteWorkspace(ctx, w.ID); err != nil {
		return nil, api.ToConnect(err)
	}
	if err := os.Remove(s.manifestFile(&w)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.WarnContext(ctx, "remove what was sent into a workspace that is forgotten", logkey.VM, w.VMID, logkey.Err, err)
	}
	s.forget(ctx, &w)
	return connect.NewResponse(&bangerv1.Empty{}), nil
}

// forget has the guest forget a workspace, if it runs. What it keeps of one that nobody
// knows any more is of no harm.
func (s *Service) forget(ctx context.Context, w *model.Workspace) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	req := guest.Request{Kind: guest.KindWorkspaceForget, WorkspaceForget: &guest.WorkspaceForget{ID: w.ID}}
	agent, err := s.VMs.OpenAgent(ctx, w.VMID, req)
	if err == nil {
		err = guest.FollowTar(ctx, agent, nil)
	}
	if err != nil {
		s.Log.DebugContext(ctx, "have the guest forget a workspace", logkey.VM, w.VMID, logkey.Err, err)
	}
}
