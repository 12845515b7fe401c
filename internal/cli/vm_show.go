package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

type showOpts struct {
	refs []string
	json bool
}

func newShowCmd(a *app) *cobra.Command {
	opts := showOpts{}
	c := &cobra.Command{
		Use:     "show VM...",
		Aliases: []string{"inspect"},
		Short:   "Show everything about VMs",
		Long:    "Show prints what is known of each VM; with --json one object per VM, one after another.",
		Example: `  banger vm show calm-otter
  banger vm show --json calm-otter | jq -r .state`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runShow(cmd.Context(), a, opts)
		},
	}
	jsonFlag(c, &opts.json)
	return c
}

func runShow(ctx context.Context, a *app, opts showOpts) error {
	return describeEach(ctx, a, opts, (*client.Client).GetVM, func(v *bangerv1.VM) (any, [][2]string) { return viewVM(v), vmFields(v) })
}

// describeEach prints what get says of each VM, as fields or as JSON.
func describeEach[T any](ctx context.Context, a *app, opts showOpts, get func(c *client.Client, ctx context.Context, ref string) (T, error), describe func(T) (view any, fields [][2]string)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	got := make(map[string]T, len(opts.refs))
	printed := 0
	var printErr error
	err = a.forEach(ctx, c, opts.refs, func(ctx context.Context, ref string) error {
		v, err := get(c, ctx, ref)
		mu.Lock()
		defer mu.Unlock()
		got[ref] = v
		return err
	}, func(ref string) {
		mu.Lock()
		view, fields := describe(got[ref])
		mu.Unlock()
		if opts.json {
			printErr = printJSON(a.out, view)
			return
		}
		if printed++; printed > 1 {
			fmt.Fprintln(a.out)
		}
		printErr = printFields(a.out, fields)
	})
	if err != nil {
		return err
	}
	return printErr
}

func vmFields(v *bangerv1.VM) [][2]string {
	fields := [][2]string{
		{"Name", v.GetName()},
		{"ID", v.GetId()},
		{"State", v.GetState()},
		{"Busy", v.GetBusy()},
		{"Paused", v.GetPaused()},
		{"Last error", v.GetLastError()},
		{"Image", named(v.GetImage(), v.GetImageId())},
		{"Kernel", named(v.GetKernel(), v.GetKernelId())},
		{"CPUs", fmt.Sprint(v.GetCpus())},
		{"Memory", humanBytes(v.GetMemoryMib() << 20)},
		{"Disk", humanBytes(v.GetDiskBytes()) + ", " + humanBytes(v.GetDiskUsedBytes()) + " used"},
		{"Disk bound", diskBound(v)},
		{"Disk method", reasoned(v.GetDiskMethod(), v.GetDiskWhy())},
		{"Network", reach(v)},
		{"Address", strings.Join(v.GetAddresses(), ", ")},
		{"DNS name", v.GetDnsName()},
		{"Ports", portList(v.GetPorts())},
		{"Exposed", strings.Join(v.GetImageConfig().GetExposedPorts(), ", ")},
		{"User", v.GetUser()},
		{"Workdir", v.GetWorkdir()},
		{"Entrypoint", strings.Join(v.GetImageConfig().GetEntrypoint(), " ")},
		{"Command", strings.Join(v.GetImageConfig().GetCmd(), " ")},
		{"Stop signal", v.GetImageConfig().GetStopSignal()},
		{"Volumes", strings.Join(v.GetImageConfig().GetVolumes(), ", ")},
		{"Driver", reasoned(v.GetDriver(), v.GetDriverWhy())},
		{"VMM version", v.GetVmmVersion()},
		{"Accelerator", v.GetAccel()},
		{"Machine", v.GetMachine()},
		{"CPU model", v.GetCpuModel()},
		{"Created", showTime(v.GetCreatedAt())},
		{"Started", showTime(v.GetStartedAt())},
		{"Boot ID", v.GetBootId()},
		{"Directory", v.GetDir()},
	}
	if v.GetPid() != 0 {
		fields = append(fields, [2]string{"PID", fmt.Sprint(v.GetPid())})
	}
	if v.GetAutoRemove() {
		fields = append(fields, [2]string{"Auto-remove", "yes"})
	}
	return fields
}

// portList is what leads to where, in one line.
func portList(ports []*bangerv1.Port) string {
	var all []string
	for _, p := range ports {
		text := fmt.Sprintf("%s to %d", hostEnd(p), p.GetGuestPort())
		if p.GetProblem() != "" {
			text += " (" + p.GetProblem() + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func diskBound(v *bangerv1.VM) string {
	var bounds []string
	if n := v.GetDiskBytesPerSecond(); n != 0 {
		bounds = append(bounds, humanBytes(n)+"/s")
	}
	if n := v.GetDiskOpsPerSecond(); n != 0 {
		bounds = append(bounds, fmt.Sprintf("%d operations/s", n))
	}
	return strings.Join(bounds, ", ")
}

// reach is how a VM is connected, with what differs from its mode's usual.
func reach(v *bangerv1.VM) string {
	text := v.GetNet()
	if name := v.GetNetwork(); name != "" {
		text += ", on " + name
	}
	if v.GetNoNat() {
		text += ", nothing beyond this host"
	}
	if ports := v.GetExposeHost(); len(ports) > 0 {
		text += ", this host's " + strings.Trim(fmt.Sprint(ports), "[]")
	}
	return text
}

func named(name, id string) string {
	if id == "" {
		return name
	}
	return name + " (" + id + ")"
}

// reasoned adds to a value why it is that one.
func reasoned(value, why string) string {
	if why == "" {
		return value
	}
	return value + " (" + why + ")"
}

func showTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.RFC3339)
}
