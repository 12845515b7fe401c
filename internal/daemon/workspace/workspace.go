// Package workspace is the service that puts host trees into guests, and knows which are
// where. What was sent of a tree is a list that clients make and read: to the daemon it
// is bytes. The service holds a
// lock of its own per VM (workspaceLocks, rank 20): two imports into one VM run
// one after another, and neither keeps `vm stop` waiting, because the lifecycle
// claim is held only while the VM's state is checked.
package workspace

import (
	"context"
	"log/slog"
	"net"
	"net/http"

	"banger/internal/daemon/relay"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/paths"
)

// VMs is what the service needs of the VM service.
type VMs interface {
	// CheckRunning resolves ref to the id of a running VM; it takes and releases
	// the VM's lifecycle claim.
	CheckRunning(ctx context.Context, ref string) (id string, err error)
	// OpenAgent opens a stream to the VM's agent and sends req.
	OpenAgent(ctx context.Context, id string, req guest.Request) (net.Conn, error)
}

// Deps are the service's collaborators.
type Deps struct {
	VMs    VMs
	Store  Store
	Layout paths.Layout
	Locks  *vmlock.Set // workspaceLocks
	Log    *slog.Logger
}

// Service imports and exports workspaces, and keeps what is known of them.
type Service struct{ Deps }

// New returns the service.
func New(d Deps) *Service { return &Service{d} }

// ServeImport is the endpoint of api.WorkspacePath.
func (s *Service) ServeImport(w http.ResponseWriter, r *http.Request) {
	if err := relay.Check(r); err != nil {
		relay.WriteError(w, err)
		return
	}
	id, err := s.VMs.CheckRunning(r.Context(), r.PathValue("ref"))
	if err != nil {
		relay.WriteError(w, err)
		return
	}
	held, err := s.Locks.Acquire(r.Context(), id, "import or export")
	if err != nil {
		relay.WriteError(w, err)
		return
	}
	defer held.Release()
	client, req, err := relay.Accept(w, r)
	if err != nil {
		s.Log.Debug("accept an import", logkey.VM, id, logkey.Err, err)
		return
	}
	defer func() { _ = client.Close() }()
	switch req.Kind {
	case guest.KindCopyIn, guest.KindWorkspacePut, guest.KindWorkspaceChanges:
	default:
		relay.Fail(client, errdefs.Invalid("request %q is not about a workspace", req.Kind))
		return
	}
	agent, err := s.VMs.OpenAgent(r.Context(), id, req)
	if err != nil {
		relay.Fail(client, err)
		return
	}
	relay.Splice(client, agent)
}
