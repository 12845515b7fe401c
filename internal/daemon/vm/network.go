package vm

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"

	"banger/internal/daemon/steps"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
	"banger/internal/paths"
)

// Network connects VMs to the user-mode network.
type Network interface {
	Attach(ctx context.Context, vmID, netSocket string) error
	Detach(ctx context.Context, vmID string) error
	Restore(ctx context.Context, sockets map[string]string) error
}

// Bridge joins VMs to the host's network by taps. A VM's address is leased while its
// row exists: whoever deletes the row drops the lease.
type Bridge interface {
	// Check says what keeps VMs of this daemon off the bridge, changing nothing.
	Check(ctx context.Context) error
	// Reserve gives the VM an address, for good.
	Reserve(ctx context.Context, vmID string) error
	// Attach gives the VM a tap until Detach. The caller closes the file.
	Attach(ctx context.Context, vmID string) (*os.File, error)
	// Conf is what the guest of an attached VM must be told.
	Conf(ctx context.Context, vmID string) (*guest.NetConf, error)
	// Announce makes an attached VM known to others by that name, and by no other it
	// had before.
	Announce(ctx context.Context, vmID, name string)
	// Detach makes it unknown and takes its tap, when its VMM has ended. One that is
	// not attached is no error.
	Detach(ctx context.Context, vmID string) error
	// Restore takes over these VMs, ids with their names, and detaches all others.
	Restore(ctx context.Context, running map[string]string) error
	// Addresses are those of all VMs that have any.
	Addresses(ctx context.Context) (map[string][]netip.Addr, error)
}

// vmmSteps start the VMM and connect its card. A tap is there before the VMM, which
// inherits it; the user-mode network connects to a socket that the VMM makes.
func (s *Service) vmmSteps(mode model.Net) []steps.Step[*creation] {
	vmm := steps.Step[*creation]{Name: "vmm", Do: s.launch, Undo: s.unlaunch}
	switch mode {
	case model.NetUser:
		return []steps.Step[*creation]{vmm, {Name: "network", Do: s.connect, Undo: s.disconnect}}
	case model.NetBridge:
		return []steps.Step[*creation]{{Name: "tap", Do: s.plug, Undo: s.unplug}, vmm}
	}
	return []steps.Step[*creation]{vmm}
}

func (s *Service) connect(ctx context.Context, c *creation) error {
	return s.Network.Attach(ctx, c.vm.ID, filepath.Join(c.boot.spec.Dir, paths.NetSocket))
}

func (s *Service) disconnect(ctx context.Context, c *creation) error { return s.detach(ctx, c.vm) }

func (s *Service) plug(ctx context.Context, c *creation) (err error) {
	c.boot.spec.Tap, err = s.Bridge.Attach(ctx, c.vm.ID)
	return err
}

func (s *Service) unplug(ctx context.Context, c *creation) error {
	c.boot.closeTap()
	return s.detach(ctx, c.vm)
}

// closeTap closes our descriptor of the tap. The VMM has its own.
func (b *boot) closeTap() {
	if b.spec.Tap != nil {
		_ = b.spec.Tap.Close()
		b.spec.Tap = nil
	}
}

// detach takes a VM whose VMM has ended off its network.
func (s *Service) detach(ctx context.Context, v *model.VM) error {
	switch v.Spec.Net {
	case model.NetUser:
		return s.Network.Detach(ctx, v.ID)
	case model.NetBridge:
		return s.Bridge.Detach(ctx, v.ID)
	}
	return nil
}

// address leases an address for a VM on the bridge whose row exists. It has no undo:
// the lease goes with the row.
func (s *Service) address(ctx context.Context, c *creation) error {
	return s.Bridge.Reserve(ctx, c.vm.ID)
}

// netConf is what the guest is told of its network; nil: there is none.
func (s *Service) netConf(ctx context.Context, v *model.VM) (*guest.NetConf, error) {
	switch v.Spec.Net {
	case model.NetUser:
		return &guest.NetConf{
			Address: s.Guest.Address, Gateway: s.Guest.Gateway, DNS: s.Guest.DNS, MTU: s.Guest.MTU,
		}, nil
	case model.NetBridge:
		return s.Bridge.Conf(ctx, v.ID)
	}
	return nil, nil
}

// announce lets others find a running VM by its name.
func (s *Service) announce(ctx context.Context, v *model.VM) {
	if v.Spec.Net == model.NetBridge {
		s.Bridge.Announce(ctx, v.ID, v.Name)
	}
}

// netCapable reports whether a driver can connect the card in that mode.
func netCapable(mode model.Net, c hypervisor.Capabilities) bool {
	switch mode {
	case model.NetUser:
		return c.UserNet
	case model.NetBridge:
		return c.Tap
	}
	return true
}
