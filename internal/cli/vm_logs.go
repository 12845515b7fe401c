package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

type logsOpts struct {
	ref    string
	follow bool
	vmm    bool
	tail   string
}

func newLogsCmd(a *app) *cobra.Command {
	opts := logsOpts{}
	c := &cobra.Command{
		Use:   "logs VM",
		Short: "Print a VM's console",
		Long:  "Logs prints what the VM wrote to its console, or with --vmm what its VMM had to say.",
		Example: `  banger logs calm-otter
  banger logs -f calm-otter
  banger logs --vmm --tail 4K calm-otter`,
		Args:              needVM,
		ValidArgsFunction: first(a.completeVMs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			return runLogs(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVarP(&opts.follow, "follow", "f", false, "go on with what is added, until the VM stops")
	c.Flags().BoolVar(&opts.vmm, "vmm", false, "the VMM's log instead of the console")
	c.Flags().StringVar(&opts.tail, "tail", "", "only the last `size`, like 64K")
	return c
}

func runLogs(ctx context.Context, a *app, opts logsOpts) error {
	req := &bangerv1.LogsRequest{Ref: opts.ref, Follow: opts.follow, Vmm: opts.vmm}
	if opts.tail != "" {
		n, err := parseTail(opts.tail)
		if err != nil {
			return err
		}
		req.TailBytes = n
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	var w io.Writer = a.out
	if a.outTTY {
		w = &plainWriter{w: a.out}
	}
	return interrupted(c.VMLogs(ctx, req, w))
}

// plainWriter passes text on without the control sequences a guest may have put in
// it: on a terminal they could move the cursor, change its title or worse.
type plainWriter struct {
	w     io.Writer
	state byte // 0: text, 1: after ESC, 2: in a control sequence, 3: in a string, 4: after 0xC2
	buf   []byte
}

func (p *plainWriter) Write(b []byte) (int, error) {
	p.buf = p.buf[:0]
	for _, c := range b {
		switch {
		case p.state == 4: // U+0080 to U+009F are control characters too
			if p.state = 0; c < 0x80 || c > 0x9f {
				p.buf = append(p.buf, 0xc2, c)
			}
		case p.state == 0 && c == 0xc2:
			p.state = 4
		case p.state == 1 && c == '[':
			p.state = 2
		case p.state == 1 && (c == ']' || c == 'P' || c == '_' || c == '^' || c == 'X'):
			p.state = 3
		case p.state == 1 && c >= 0x20 && c <= 0x2f: // goes on
		case p.state == 1:
			p.state = 0
		case p.state == 2 && c >= 0x40 && c <= 0x7e:
			p.state = 0
		case p.state == 3 && (c == 0x07 || c == '\n'):
			p.state = 0
		case c == 0x1b:
			p.state = 1
		case p.state != 0:
		case c >= 0x20 && c != 0x7f || c == '\n' || c == '\t':
			p.buf = append(p.buf, c)
		}
	}
	if _, err := p.w.Write(p.buf); err != nil {
		return 0, err
	}
	return len(b), nil
}
