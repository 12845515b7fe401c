package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImagePullCmd(a *app) *cobra.Command {
	req := &bangerv1.PullRequest{}
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Make an image from where its name says",
		Long: `Pull makes an image and prints its name.

"debian" is Debian stable with systemd and the usual tools, made from Debian's packages.
With --include it has more packages, and needs a name of its own.

"catalog:NAME" is what a catalog has, one that images.catalogs in the configuration names; its
signature is checked before anything is unpacked, and the kernel that it names is pulled too.
See banger image catalog list. Without the "catalog:" a name is never one of a catalog's.

Anything else is an OCI image, as docker pull has them: NAME[:TAG] on Docker Hub,
HOST[:PORT]/NAME[:TAG][@sha256:DIGEST], and Docker's image of Debian is
docker.io/library/debian. Or one on this host: oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:NAME], docker-daemon:NAME of Docker's or Podman's daemon, or
tar:FILE, the files of a root file system. Credentials are those of the daemon's user, as
docker login and podman login keep them.

An image that is here already is kept, if that still is what its name leads to, unless
--force. Two pulls of one image share the work, two images their layers. A pull that is
interrupted is gone on with by the next one; see banger image cache.`,
		Example: `  banger image pull debian
  banger image pull alpine:3.20
  banger image pull catalog:golden
  banger image pull --platform linux/amd64 quay.io/fedora/fedora:41
  banger image pull --name mine oci:./build/layout:latest
  banger image pull debian --name go --include golang-go,golang-golang-x-tools`,
		Args:              needName("image"),
		ValidArgsFunction: pullable(),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Name, err = absoluteImage(args[0]); err != nil {
				return err
			}
			return a.pull(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.PullImage(ctx, req)
			})
		},
	}
	c.Flags().BoolVar(&req.Force, "force", false, "make it again although it is there")
	c.Flags().StringVar(&req.As, "name", "", "`name` of the image (default: IMAGE, without what goes without saying)")
	c.Flags().StringVar(&req.Platform, "platform", "", "take the image for `OS/ARCHITECTURE`, like linux/amd64 (default: as configured, else this host's)")
	c.Flags().BoolVar(&req.Insecure, "insecure", false, "allow http, and TLS that cannot be verified, for the registry")
	c.Flags().StringSliceVar(&req.Include, "include", nil, "Debian `packages` to install besides, separated by commas")
	return c
}

// pull follows an operation that makes an image or a kernel and prints the name.
func (a *app) pull(ctx context.Context, begin func(context.Context, *client.Client) (*bangerv1.Operation, error)) error {
	op, err := a.operate(ctx, begin)
	if err == nil {
		fmt.Fprintln(a.out, op.GetSubject())
	}
	return err
}

// operate begins an operation and follows it to its end; who interrupts us cancels it.
func (a *app) operate(ctx context.Context, begin func(context.Context, *client.Client) (*bangerv1.Operation, error)) (*bangerv1.Operation, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	op, err := begin(context.WithoutCancel(ctx), c)
	if err != nil {
		return nil, err
	}
	op, err = waitOrCancel(ctx, c, op, a.follow())
	if err != nil {
		return nil, interrupted(err)
	}
	if stages := op.GetStages(); len(stages) == 1 && stages[0].GetDetail() != "" {
		a.note("%s", stages[0].GetDetail()) // that it is up to date
	}
	return op, nil
}

// absoluteImage makes the path in a reference to an image on this host absolute: the
// daemon works in another directory. Others are left alone.
func absoluteImage(ref string) (string, error) {
	kind, path, _ := strings.Cut(ref, ":")
	tag := ""
	switch kind {
	case "oci", "oci-archive", "docker-archive", "bundle":
		if i := strings.IndexByte(path, ':'); i >= 0 {
			path, tag = path[:i], path[i:]
		}
	case "tar":
	default:
		return ref, nil
	}
	if path == "" {
		return ref, nil // which the daemon refuses
	}
	path, err := absolute(path)
	return kind + ":" + path + tag, err
}
