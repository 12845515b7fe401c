package imagemgr

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/kmod"
	"banger/internal/daemon/imagemgr/vmlinux"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// Modules a VM needs to reach its root disk and its agent, and those it needs
// soon after. The second kind is loaded while commands can already run.
var (
	neededModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4"}
	// ext4 asks for its checksum by the algorithm's name, which no dependency shows.
	ext4Helpers = []string{"crc32c_generic"}
	lateModules = []string{"virtio_net", "virtio_rng", "af_packet"}
)

// assemble makes the directory of a kernel at final, as paths names its files.
func assemble(ctx context.Context, made madeKernel, final string, p model.Progress) error {
	if err := os.Mkdir(final, 0o755); err != nil {
		return err
	}
	if made.bzImage != "" {
		if err := os.Rename(made.bzImage, filepath.Join(final, paths.BzImageFile)); err != nil {
			return fmt.Errorf("keep the packed kernel: %w", err)
		}
	}
	if made.config != "" {
		if err := os.Rename(made.config, filepath.Join(final, paths.KernelConfigFile)); err != nil {
			return fmt.Errorf("keep the kernel's configuration: %w", err)
		}
	}
	p.Stage("unpack kernel")
	elf := filepath.Join(final, paths.VmlinuxFile)
	if made.vmlinux != "" {
		if err := os.Rename(made.vmlinux, elf); err != nil {
			return fmt.Errorf("keep the kernel: %w", err)
		}
	} else if err := vmlinux.Extract(filepath.Join(final, paths.BzImageFile), elf); err != nil {
		return err
	}
	if made.modules == "" {
		return nil
	}
	p.Stage("write modules")
	tree := filepath.Join(made.modules, "lib/modules", made.release)
	if err := writeEarly(tree, filepath.Join(final, paths.EarlyModulesDir)); err != nil {
		return err
	}
	if err := debian.Depmod(ctx, made.modules, made.release); err != nil {
		return err
	}
	return debian.ModulesImage(ctx, tree, filepath.Join(final, paths.ModulesImageFile), made.release)
}

// writeEarly copies the modules of the early boot and lists them in load order.
func writeEarly(tree, early string) error {
	t, err := kmod.Open(tree)
	if err != nil {
		return err
	}
	needed := slices.Clone(neededModules)
	if t.Has("ext4") {
		for _, m := range ext4Helpers {
			if t.Has(m) {
				needed = append([]string{m}, needed...)
			}
		}
	}
	first, err := t.Order(needed...)
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.Unsupported("the kernel cannot boot a VM: %w", err).
			WithHint("build it with virtio (PCI, block, console) and ext4, as modules or built in")
	}
	if err != nil {
		return err
	}
	wanted := slices.Clone(needed)
	for _, m := range lateModules {
		if t.Has(m) {
			wanted = append(wanted, m)
		}
	}
	all, err := t.Order(wanted...)
	if err != nil {
		return err
	}
	if err := os.Mkdir(early, 0o755); err != nil {
		return err
	}
	if err := copyModules(first, early, paths.EarlyOrderFile); err != nil {
		return err
	}
	return copyModules(all[len(first):], early, paths.LateOrderFile)
}

func copyModules(modules []kmod.Module, dir, list string) error {
	var order strings.Builder
	for _, m := range modules {
		data, err := kmod.Read(m.Path)
		if err != nil {
			return err
		}
		file := m.Name + ".ko"
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(&order, file)
	}
	return os.WriteFile(filepath.Join(dir, list), []byte(order.String()), 0o644)
}

// kernelID derives a kernel's id from its name and everything in its directory.
func kernelID(name, release, final string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "kernel %q %q\n", name, release)
	err := filepath.WalkDir(final, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, err := filepath.Rel(final, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q\n", rel)
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hash kernel: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}
