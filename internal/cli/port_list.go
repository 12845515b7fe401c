package cli

import (
	"cmp"
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

func newPortListCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:     "list [VM...]",
		Aliases: []string{"ls"},
		Short:   "List forwarded ports",
		Long: `List prints the forwarded ports of the VMs that are named, else of all. STATE says whether a
port is listened on: while its VM runs, unless something else has it.`,
		Example: `  banger port list
  banger port list --json calm-otter`,
		Args:              checkRefs,
		ValidArgsFunction: a.completeVMs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPortList(cmd.Context(), a, args, asJSON)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func runPortList(ctx context.Context, a *app, refs []string, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var vms []*bangerv1.VM
	if len(refs) == 0 {
		if vms, err = c.ListVMs(ctx); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		v, err := c.GetVM(ctx, ref)
		if err != nil {
			return err
		}
		vms = append(vms, v)
	}
	list, rows := []portView{}, [][]string(nil)
	for _, v := range vms {
		idle := "not listening"
		if v.GetState() == "running" {
			idle = "listening"
		}
		for _, p := range v.GetPorts() {
			view := viewPort(p)
			view.VM = v.GetName()
			list = append(list, view)
			rows = append(rows, []string{
				v.GetName(), cmp.Or(p.GetAddress(), "loopback"), strconv.Itoa(int(p.GetHostPort())), strconv.Itoa(int(p.GetGuestPort())),
				cmp.Or(p.GetProblem(), idle),
			})
		}
	}
	if asJSON {
		return printJSON(a.out, list)
	}
	return printTable(a.out, []string{"VM", "ADDRESS", "HOST", "GUEST", "STATE"}, rows)
}
