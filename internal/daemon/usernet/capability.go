package usernet

import (
	"context"

	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// Capability connects VMs to the user-mode network. socket is where the VMM of the VM
// with that id listens for its card's other end.
func (c *Client) Capability(socket func(vmID string) string) vmcap.Capability {
	return vmcap.Capability{
		Name: "usernet",
		Has:  func(v *model.VM) bool { return v.Spec.Net == model.NetUser },
		Driver: func(can hypervisor.Capabilities) error {
			if !can.UserNet {
				return errdefs.Unsupported("it has no user-mode network").WithHint("use --net none, or --driver qemu")
			}
			return nil
		},
		Started: func(ctx context.Context, v *model.VM) error { return c.Attach(ctx, v.ID, socket(v.ID)) },
		Guest: func(_ context.Context, _ *model.VM, conf *guest.Configure) error {
			conf.Net = &guest.NetConf{Address: GuestAddress, Gateway: GatewayIP, DNS: []string{DNSIP}, MTU: MTU}
			return nil
		},
		CleanUp: func(ctx context.Context, v *model.VM) error { return c.Detach(ctx, v.ID) },
		Restore: func(ctx context.Context, running []*model.VM) error {
			sockets := make(map[string]string, len(running))
			for _, v := range running {
				sockets[v.ID] = socket(v.ID)
			}
			return c.Restore(ctx, sockets)
		},
	}
}
