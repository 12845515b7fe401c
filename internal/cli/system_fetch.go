package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fcfetch"
	"banger/internal/install"
	"banger/internal/sysexec"
)

type systemFetchOpts struct {
	fcfetch.Request
	prefix string
}

func newSystemFetchCmd(a *app) *cobra.Command {
	opts := systemFetchOpts{}
	c := &cobra.Command{
		Use:   "fetch-firecracker",
		Short: "Install Firecracker and its jailer from a release",
		Long: `Fetch-firecracker downloads a release of Firecracker, checks it against the checksum
that is published with it, and puts firecracker and jailer into /usr/local/bin, where the
daemon finds them. Nothing is replaced unless all is well. A daemon that runs notices it
with the next VM.

--from takes the release from elsewhere: an archive as upstream publishes it, with
ARCHIVE.sha256.txt beside it or --sha256; a directory that holds the two programs; or
the URL of a mirror, laid out as ` + fcfetch.Releases + `.
Proxies are those of the environment (HTTPS_PROXY).`,
		Example: `  sudo banger system fetch-firecracker
  sudo banger system fetch-firecracker --version 1.12.1
  sudo banger system fetch-firecracker --from ./firecracker-v` + fcfetch.DefaultVersion + `-x86_64.tgz`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runSystemFetch(cmd.Context(), a, opts) },
	}
	c.Flags().StringVar(&opts.Version, "version", "", "`version` of the release (default: "+fcfetch.DefaultVersion+")")
	c.Flags().StringVar(&opts.From, "from", fcfetch.Releases, "`archive`, directory or URL to take it from")
	c.Flags().Lookup("from").DefValue = ""
	c.Flags().StringVar(&opts.SHA256, "sha256", "", "`checksum` of the archive, in place of the published one")
	c.Flags().StringVar(&opts.prefix, "prefix", install.DefaultPrefix, "put the programs into bin/ of this `directory`")
	return c
}

func runSystemFetch(ctx context.Context, a *app, opts systemFetchOpts) error {
	prefix, err := absolute(opts.prefix)
	if err != nil {
		return err
	}
	opts.Into = filepath.Join(prefix, "bin")
	opts.Version = strings.TrimPrefix(opts.Version, "v")
	opts.Report = func(done, total int64) {
		a.status.drawSometimes(func() string { return "  " + progressText(done, total, "bytes") })
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	got, err := fcfetch.Fetch(ctx, opts.Request)
	a.status.clear()
	if err != nil {
		return interrupted(err)
	}
	outcome := "installed"
	if !got.Changed {
		outcome = "already installed:"
	}
	fmt.Fprintf(a.out, "%s Firecracker %s in %s\n", outcome, got.Version, opts.Into)
	program := filepath.Join(opts.Into, fcfetch.Firecracker)
	if found, err := sysexec.Look(fcfetch.Firecracker); err != nil || found != program {
		a.warn("the daemon does not look there: set firecracker.binary to %s in its configuration", program)
	}
	return nil
}
