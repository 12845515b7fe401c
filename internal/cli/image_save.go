package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
)

func newImageSaveCmd(a *app) *cobra.Command {
	req := &bangerv1.SaveImageRequest{}
	to := ""
	c := &cobra.Command{
		Use:   "save IMAGE -o FILE",
		Short: "Write an image to a file, for other tools and hosts",
		Long: `Save writes an image of any origin as an OCI image of one layer, with its config, and
prints where. FILE becomes an archive of an OCI layout; as docker-archive:FILE what docker
load reads, and oci:DIR a directory. A tag or name for the image may follow after a colon;
in archives it is its name here, if others can use that.

bundle:FILE[:NAME] is what banger image pull catalog:NAME takes: the disk as it is, with the
config, for a catalog that you sign. What the catalog has to say of it is printed.

The daemon writes, with the rights of its user. A file that is there is replaced with
--force only, a directory never. Sockets are left out, as other tools do.`,
		Example: `  banger image save mine -o mine.tar
  banger image save debian -o docker-archive:debian.tar:mine/debian:1
  banger image save mine -o oci:./layout:1
  banger image save mine -o bundle:mine.tar.zst`,
		Args:              needName("image"),
		ValidArgsFunction: first(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if to == "" {
				return usageErr(cmd, "%q needs --output", cmd.CommandPath())
			}
			req.Name = args[0]
			if req.To, err = saveTarget(to); err != nil {
				return err
			}
			op, err := a.operate(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.SaveImage(ctx, req)
			})
			switch {
			case err != nil:
				return err
			case strings.HasPrefix(req.To, "bundle:"):
				fmt.Fprintln(a.out, op.GetResult())
			default:
				fmt.Fprintln(a.out, to)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&to, "output", "o", "", "where to: `FILE`, oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], oci:DIR[:TAG] or bundle:FILE[:NAME]")
	c.Flags().BoolVar(&req.Force, "force", false, "replace a file that is there")
	return c
}

// saveTarget is where an image is saved, as the daemon understands it.
func saveTarget(to string) (string, error) {
	switch kind, _, found := strings.Cut(to, ":"); {
	case to == "-":
		return "", errdefs.Invalid("an image is not written to standard output").WithHint("name a file: -o image.tar")
	case !found:
		return absoluteImage("oci-archive:" + to)
	case kind == "oci" || kind == "oci-archive" || kind == "docker-archive" || kind == "bundle":
		return absoluteImage(to)
	}
	return "", errdefs.Invalid("--output %q is neither a file nor one of oci:, oci-archive:, docker-archive: and bundle:", to).
		WithHint("what follows a colon is the name of the image: choose a file without one")
}
