package imagemgr

import (
	"context"
	"os"
	"path/filepath"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// BootFiles returns what a VMM boots kernel k with. The initramfs is built when
// this kernel and this agent have none yet.
func (s *Service) BootFiles(ctx context.Context, k model.Kernel) (model.BootFiles, error) {
	if err := checkKernel(k); err != nil {
		return model.BootFiles{}, err
	}
	if _, err := os.Stat(s.AgentPath); err != nil {
		return model.BootFiles{}, errdefs.Precondition("find the agent that runs in guests: %w", err).
			WithHint("banger-agent belongs beside bangerd: build it with make build")
	}
	archive, err := s.initramfs.Ensure(ctx, k.EarlyDir, s.AgentPath)
	if err != nil {
		return model.BootFiles{}, spaceError(err, "build the initramfs")
	}
	return model.BootFiles{Vmlinux: k.VmlinuxPath, BzImage: k.BzImagePath, Initramfs: archive, Modules: k.ModulesPath, MMIO: bootsOnMMIO(k)}, nil
}

// bootsOnMMIO tells whether a kernel has what a machine without PCI takes, as far as
// one can tell: of one with everything built in one cannot.
func bootsOnMMIO(k model.Kernel) bool {
	if k.EarlyDir == "" {
		return true
	}
	_, err := os.Stat(filepath.Join(k.EarlyDir, paths.MMIOOrderFile))
	return err == nil
}

// pruneInitramfs removes the archives that no kernel would boot with now.
func (s *Service) pruneInitramfs(ctx context.Context) error {
	if _, err := os.Stat(s.AgentPath); err != nil {
		return nil // without an agent nothing says which are old
	}
	kernels, err := s.Store.ListKernels(ctx)
	if err != nil {
		return err
	}
	var keep []string
	for _, k := range kernels {
		path, err := s.initramfs.Current(k.EarlyDir, s.AgentPath)
		if err != nil && checkKernel(k) == nil {
			return errdefs.Wrap(err, "look at kernel %q", k.Name)
		}
		keep = append(keep, path)
	}
	return s.initramfs.Prune(ctx, keep)
}
