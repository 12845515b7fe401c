package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/share"
)

type mountOpts struct {
	ref, dir, target string
	user             string
	readOnly         bool
}

func newMountCmd(a *app) *cobra.Command {
	opts := mountOpts{}
	c := &cobra.Command{
		Use:   "mount VM DIR [GUESTDIR]",
		Short: "Have a directory of this host in a running VM, live",
		Long: `Mount makes a directory of this host appear in a VM for as long as the command runs, at
GUESTDIR or else at the same path. Both sides see what the other changes at once, and
programs in the VM that watch files hear of what is changed here.

The VM has the rights on it that this user has, and nothing outside of it. Files that
belong to this user belong to the VM's there (--user), and the other way round. It cannot
make devices, and no set-user-id files.`,
		Example: `  banger vm mount calm-otter .
  banger vm mount calm-otter ./site /srv/www --read-only`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return usageErr(cmd, "%q needs a VM, a directory of this host, and perhaps one of the VM", cmd.CommandPath())
			}
			if len(args) == 3 && !filepath.IsAbs(args[2]) {
				return usageErr(cmd, "the directory in the VM, %q, has to begin with /", args[2])
			}
			return checkRefs(cmd, args[:1])
		},
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref, opts.dir = args[0], args[1]
			if len(args) == 3 {
				opts.target = args[2]
			}
			return runMount(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVar(&opts.readOnly, "read-only", false, "let the VM change nothing")
	c.Flags().StringVarP(&opts.user, "user", "u", "", "`user` of the VM to whom our files belong there (default: the VM's)")
	return c
}

func runMount(ctx context.Context, a *app, opts mountOpts) error {
	dir, err := filepath.Abs(opts.dir)
	if err != nil {
		return errdefs.Invalid("resolve %q: %w", opts.dir, err).WithHint("give the directory from /")
	}
	if opts.target == "" {
		opts.target = dir
	}
	s, err := share.Open(dir, share.Options{ReadOnly: opts.readOnly, Chown: os.Geteuid() == 0})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	conn, err := c.OpenStream(ctx, api.StreamPath(opts.ref))
	if err != nil {
		return interrupted(err)
	}
	defer func() { _ = conn.Close() }()
	started, r, err := guest.OpenMount(ctx, conn, guest.Mount{Target: opts.target, User: opts.user, ReadOnly: opts.readOnly})
	if err != nil {
		return interrupted(err)
	}
	fmt.Fprintf(a.out, "%s is at %s of %s until Ctrl-C\n", dir, opts.target, opts.ref)
	err = s.Serve(ctx, conn, r, guest.NewFrameWriter(conn), share.Guest{UID: started.UID, GID: started.GID, Thread: started.PID}, mountEnd)
	if notice := s.Notice(); notice != "" {
		a.warn("%s", notice)
	}
	switch {
	case ctx.Err() != nil:
		return nil // that is how it ends
	case errors.Is(err, errUnmounted):
		fmt.Fprintln(a.out, "unmounted in the VM")
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errdefs.Unavailable("the VM has gone, or the daemon").WithHint("banger vm show %s says which; mount it again then", opts.ref)
	}
	return err
}

// errUnmounted is how a mount ends that somebody in the guest has ended.
var errUnmounted = errors.New("unmounted in the VM")

// mountEnd is told what the agent says once it has mounted.
func mountEnd(c guest.Control) error {
	switch c.Type {
	case guest.ControlDone:
		return errUnmounted
	case guest.ControlError:
		return c.Err()
	}
	return errdefs.Invalid("the VM does not answer as a mount does").WithHint("its agent may be of another version: restart the VM")
}
