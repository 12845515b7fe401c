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
	// The same in a machine without PCI, as Firecracker makes it.
	mmioModules = []string{"virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "ext4"}
	// ext4 asks for its checksum by the algorithm's name, which no dependency shows.
	ext4Helpers = []string{"crc32c_generic"}
	lateModules = []string{"virtio_net", "virtio_rng", "virtio_balloon", "af_packet"}
)

// earlyVersion is part of a kernel's id and changes with what writeEarly makes, so
// that a kernel pulled again takes the place of one that lacks it.
const earlyVersion = 2

// assemble makes the directory of a kernel at final, as paths names its files, and
// returns the kernel's id: a hash of its name and its content.
func assemble(ctx context.Context, name string, made madeKernel, final string, p model.Progress) (id string, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "kernel %d %q %q\n", earlyVersion, name, made.release)
	if err := os.Mkdir(final, 0o755); err != nil {
		return "", err
	}
	if err := placeKernel(made, final, p); err != nil {
		return "", err
	}
	if err := hashTree(h, final); err != nil {
		return "", err
	}
	if made.modules == "" {
		if err := checkBuiltIn(filepath.Join(final, paths.VmlinuxFile)); err != nil {
			return "", err
		}
	} else {
		p.Stage("write modules")
		// The tree, not the image made of it: mke2fs writes in no fixed order.
		tree := filepath.Join(made.modules, "lib/modules", made.release)
		if err := hashTree(h, tree); err != nil {
			return "", err
		}
		if err := writeEarly(tree, filepath.Join(final, paths.EarlyModulesDir)); err != nil {
			return "", err
		}
		if err := debian.Depmod(ctx, made.modules, made.release); err != nil {
			return "", err
		}
		if err := debian.ModulesImage(ctx, tree, filepath.Join(final, paths.ModulesImageFile), made.release); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// checkBuiltIn refuses a kernel without modules that cannot find the root disk: nothing
// in a VM could say so, whose console needs no driver but whose agent does.
func checkBuiltIn(elf string) error {
	for _, drivers := range [][]string{{"virtio_blk"}, {"virtio_pci", "virtio-pci", "virtio_mmio", "virtio-mmio"}} {
		found, err := vmlinux.Mentions(elf, drivers...)
		if err != nil {
			return err
		}
		if !found {
			return errdefs.Invalid("the kernel comes without modules, and has no %s built in: it would not find its disk", drivers[0]).
				WithHint("give its modules beside it, in lib/modules/RELEASE, or build it with virtio (PCI, block, console) and ext4 built in")
		}
	}
	return nil
}

// placeKernel moves the kernel's own files into final.
func placeKernel(made madeKernel, final string, p model.Progress) error {
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
		return nil
	}
	return vmlinux.Extract(filepath.Join(final, paths.BzImageFile), elf)
}

// writeEarly copies the modules of the early boot and lists them in load order.
func writeEarly(tree, early string) error {
	t, err := kmod.Open(tree)
	if err != nil {
		return err
	}
	needed, mmio := slices.Clone(neededModules), slices.Clone(mmioModules)
	if t.Has("ext4") {
		for _, m := range ext4Helpers {
			if t.Has(m) {
				needed = append([]string{m}, needed...)
				mmio = append([]string{m}, mmio...)
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
	// A kernel that only lacks these boots everywhere else.
	bare, err := t.Order(mmio...)
	if err == nil {
		err = copyModules(bare, early, paths.MMIOOrderFile)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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

// hashTree hashes the names and the content of the files below dir.
func hashTree(h io.Writer, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %d\n", rel, info.Size())
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		return fmt.Errorf("hash kernel: %w", err)
	}
	return nil
}
