package cli

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// kernelImportOpts are the flags of kernel import.
type kernelImportOpts struct {
	from, deb, bundle, key string
}

func newKernelImportCmd(a *app) *cobra.Command {
	opts := kernelImportOpts{}
	c := &cobra.Command{
		Use:   "import KERNEL {--from DIR | --deb FILE | --bundle FILE --key KEY}",
		Short: "Take a kernel from a directory, a Debian package or a bundle",
		Long: `Import copies a kernel from a directory that holds vmlinux or bzImage and, unless
everything the boot needs is built in, modules/ (the tree of /lib/modules/RELEASE); or
from a Debian package like linux-image-RELEASE, of which nothing is run or installed;
or from a bundle (make kernel-bundle), whose signature is in FILE.minisig and must be of
the given public key of minisign's.`,
		Example: `  banger kernel import mine --from ./build
  banger kernel import cloud --deb linux-image-6.12.9-cloud-amd64_6.12.9-1_amd64.deb
  banger kernel import small --bundle small.tar.zst --key RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3`,
		Args:              needName("kernel"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			given := 0
			for _, path := range []string{opts.from, opts.deb, opts.bundle} {
				if path != "" {
					given++
				}
			}
			switch {
			case given != 1:
				return usageErr(cmd, "%q needs --from, --deb or --bundle, and only one of them", cmd.CommandPath())
			case (opts.bundle != "") != (opts.key != ""):
				return usageErr(cmd, "--bundle and --key go together")
			}
			return runKernelImport(cmd.Context(), a, args[0], opts)
		},
	}
	c.Flags().StringVar(&opts.from, "from", "", "`directory` with the kernel")
	c.Flags().StringVar(&opts.deb, "deb", "", "Debian package (`file`) with the kernel")
	c.Flags().StringVar(&opts.bundle, "bundle", "", "bundle (`file`) with the kernel")
	c.Flags().StringVar(&opts.key, "key", "", "public `key` the bundle is signed with, or a file with it")
	complete(c, "from", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
	complete(c, "deb", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"deb"}, cobra.ShellCompDirectiveFilterFileExt
	})
	complete(c, "bundle", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	})
	complete(c, "key", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"pub"}, cobra.ShellCompDirectiveFilterFileExt
	})
	return c
}

func runKernelImport(ctx context.Context, a *app, name string, opts kernelImportOpts) error {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return err
	}
	req := &bangerv1.ImportKernelRequest{Name: name}
	for _, part := range []struct {
		path string
		to   *string
		dir  bool
	}{{opts.from, &req.Dir, true}, {opts.deb, &req.Deb, false}, {opts.bundle, &req.Bundle, false}} {
		if part.path == "" {
			continue
		}
		path, err := absolute(part.path)
		if err != nil {
			return err
		}
		switch info, err := os.Stat(path); {
		case err != nil:
			return fileErr("import", path, err)
		case part.dir && !info.IsDir():
			return errdefs.Invalid("import: %s is not a directory", path).WithHint("give the directory that holds vmlinux or bzImage")
		case !part.dir && !info.Mode().IsRegular():
			return errdefs.Invalid("import: %s is not a regular file", path).WithHint("a directory with a kernel is given with --from")
		}
		*part.to = path
	}
	var err error
	if req.Key, err = publicKey(opts.key); err != nil {
		return err
	}
	return a.pull(ctx, func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
		return c.ImportKernel(ctx, req)
	})
}

// publicKey is the key itself, or what is in the file of that name.
func publicKey(key string) (string, error) {
	if key == "" || strings.HasPrefix(key, "RW") {
		return key, nil
	}
	text, err := os.ReadFile(key)
	if err != nil {
		return "", fileErr("read the key", key, err)
	}
	return string(text), nil
}
