// Package kernels builds kernels for guests from Debian's linux-source.
package kernels

import (
	"context"
	"embed"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"banger/internal/sysexec"
)

//go:embed build small.config
var files embed.FS

// Options say how to build.
type Options struct {
	Config string    // fragment to lay over `make allnoconfig`; "": small.config
	Work   string    // directory that keeps the source and the objects, some 2 GB
	Jobs   int       // at once; 0: as many as there are processors
	Log    io.Writer // gets what the build says
}

// Build builds a kernel into the directory out: vmlinux, bzImage and config. It needs
// apt, which fetches and checks the source, a compiler and no root, and takes minutes. Who
// lacks something is told in the log. The end of ctx ends the build and all it started.
func Build(ctx context.Context, out string, o Options) error {
	dir, err := os.MkdirTemp("", "banger-kernel-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"build", "small.config"} {
		content, err := files.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	args := []string{filepath.Join(dir, "build"), "--work", o.Work}
	if o.Config != "" {
		args = append(args, "--config", o.Config)
	}
	if o.Jobs > 0 {
		args = append(args, "--jobs", strconv.Itoa(o.Jobs))
	}
	return sysexec.Run(ctx, sysexec.Cmd{Path: "bash", Args: append(args, out), Stderr: o.Log})
}
