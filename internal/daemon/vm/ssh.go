package vm

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"path/filepath"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/sshkey"
)

// hostKey is the key by which SSH clients know a VM. It lies beside the VM's disk, so that it
// goes with the VM, and another VM made of the same disk has one of its own.
func (s *Service) hostKey(v *model.VM) (ed25519.PrivateKey, error) {
	unfit := errdefs.Precondition("vm %q is %s", v.Name, v.State).WithHint("see its state: banger ps")
	if v.State == model.StateCreating || v.State == model.StateDeleting {
		return nil, unfit // nothing is put into a directory that is made or removed
	}
	key, err := sshkey.Ensure(filepath.Join(s.Layout.VM(v.ID), paths.SSHHostKey))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unfit
	}
	return key, errdefs.Wrap(err, "find the host key of vm %q", v.Name)
}

// addHostKey completes the request of an SSH client. The guest gets the key with every
// request and keeps it nowhere: what takes its memory or disk elsewhere does not take the key.
func (s *Service) addHostKey(v *model.VM, q *guest.SSH) error {
	key, err := s.hostKey(v)
	if err != nil {
		return err
	}
	q.HostKey = key.Seed()
	return nil
}

// GetSSH implements VMService.
func (h Handlers) GetSSH(ctx context.Context, req *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.SSHInfo], error) {
	v, err := h.s.Store.FindVM(ctx, req.Msg.Ref)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	key, err := h.s.hostKey(&v)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	public, err := sshkey.Public(key)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.SSHInfo{Id: v.ID, Name: v.Name, State: string(v.State), HostKey: public}), nil
}
