package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/model"
)

func newPortCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "port",
		Aliases: []string{"ports"},
		Short:   "Forward TCP ports of this host to VMs",
		Long: `A forwarded port is listened on while its VM runs, on 127.0.0.1 and ::1 unless it has
another address. What connects to it reaches a program in the VM that listens on
127.0.0.1, on ::1 or on all addresses there, whatever network the VM has. Any user of
this host can connect to it.

A VM with forwarded ports that is not on the bridge also has a loopback address of its
own, on which they have the numbers they have in the VM; banger vm show prints it, and
docs/dns.md tells how to find it by name. A number below 1024 is root's there.`,
	}
	c.AddCommand(newPortAddCmd(a), newPortRmCmd(a), newPortListCmd(a))
	return groupOnly(c)
}

// needVMAndPorts asks for a VM and at least one port.
func needVMAndPorts(cmd *cobra.Command, args []string) error {
	if len(args) < 2 {
		return usageErr(cmd, "%q needs a VM and at least one port", cmd.CommandPath())
	}
	return checkRefs(cmd, args[:1])
}

// wirePorts reads ports as they are written.
func wirePorts(texts []string, parse func(string) (model.Port, error)) ([]*bangerv1.Port, error) {
	var out []*bangerv1.Port
	for _, text := range texts {
		p, err := parse(text)
		if err != nil {
			return nil, err
		}
		m := &bangerv1.Port{HostPort: uint32(p.Host), GuestPort: uint32(p.Guest)}
		if p.Addr.IsValid() {
			m.Address = p.Addr.String()
		}
		out = append(out, m)
	}
	return out, nil
}

// hostEnd is where the host listens.
func hostEnd(p *bangerv1.Port) string {
	port := strconv.Itoa(int(p.GetHostPort()))
	if p.GetAddress() == "" {
		return port
	}
	return net.JoinHostPort(p.GetAddress(), port)
}

// tellPorts says which ports were chosen for a VM that was made with some left open,
// and which of those that its image exposes are not forwarded.
func (a *app) tellPorts(ctx context.Context, c *client.Client, vm made, req *bangerv1.CreateRequest) {
	if !req.PublishAll && !slices.ContainsFunc(req.Ports, func(p *bangerv1.Port) bool { return p.GetHostPort() == 0 }) {
		return
	}
	v, err := c.GetVM(ctx, vm.id)
	if err != nil {
		return // it is gone again, or the daemon is: what comes next says so
	}
	for _, p := range v.GetPorts() {
		fmt.Fprintf(a.err, "port %s of this host leads to port %d of %s\n", oneLine(hostEnd(p)), p.GetGuestPort(), vm.name)
	}
	if !req.PublishAll {
		return
	}
	_, others, _ := imageConfig(v).Exposed()
	switch {
	case len(others) > 0:
		a.warn("not forwarded: %s; only TCP goes through", strings.Join(others, ", "))
	case len(v.GetPorts()) == 0:
		a.warn("image %s exposes no port", v.GetImage())
	}
}
