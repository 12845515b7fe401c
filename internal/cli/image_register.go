package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/model"
)

func newImageRegisterCmd(a *app) *cobra.Command {
	req := &bangerv1.RegisterImageRequest{}
	c := &cobra.Command{
		Use:   "register IMAGE --rootfs FILE",
		Short: "Make an image of an ext4 file of yours",
		Long: `Register gives an ext4 file a name. The file stays where it is and is never written
to; VMs get views of it. It must not change while VMs use it.`,
		Example: `  banger image register mine --rootfs ./rootfs.ext4
  banger image register mine --rootfs ./rootfs.ext4 --kernel debian --user dev`,
		Args:              needName("image"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if req.Rootfs == "" {
				return usageErr(cmd, "%q needs --rootfs", cmd.CommandPath())
			}
			return runImageRegister(cmd.Context(), a, req)
		},
	}
	f := c.Flags()
	f.StringVar(&req.Rootfs, "rootfs", "", "ext4 `file`")
	f.StringVar(&req.Kernel, "kernel", "", "`kernel` that the image prefers")
	f.StringVarP(&req.User, "user", "u", "", "`user` that runs commands (default: root)")
	f.StringVarP(&req.Workdir, "workdir", "w", "", "`directory` that commands run in")
	complete(c, "kernel", a.completeKernels)
	return c
}

func runImageRegister(ctx context.Context, a *app, req *bangerv1.RegisterImageRequest) error {
	if err := model.CheckArtifactName("image", req.Name); err != nil {
		return err
	}
	var err error
	if req.Rootfs, err = absolute(req.Rootfs); err != nil {
		return err
	}
	if _, err := os.Stat(req.Rootfs); err != nil {
		return fileErr("register", req.Rootfs, err)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	image, err := c.RegisterImage(ctx, req)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, image.GetName())
	return nil
}
