package vm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/rootdisk"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/model"
	"banger/internal/paths"
)

// Limits of a VM's shape.
const (
	minMemoryMiB = 64
	minDiskBytes = 64 << 20
	// With less per second no guest comes up before the deadline of its boot.
	minDiskBPS  = 1 << 20
	minDiskIOPS = 50
	maxDiskRate = 1 << 40 // drivers multiply with it
	maxEnvBytes = 128 << 10
)

// creation is what the steps of create and start work on.
type creation struct {
	held   *vmlock.Held
	vm     *model.VM
	image  model.Image
	kernel model.Kernel
	driver hypervisor.Driver
	method rootdisk.Method
	boot   *boot    // set by the start steps
	was    model.VM // what it was before
}

// of is the VM, for steps that need no more.
func (c *creation) of() *model.VM { return c.vm }

// begin checks a create request and returns its operation. Nothing is changed
// before the request is known to be sound.
func (s *Service) begin(ctx context.Context, req *bangerv1.CreateRequest) (*bangerv1.Operation, error) {
	v, err := s.plan(ctx, req)
	if err != nil {
		return nil, err
	}
	return s.Ops.Begin("vm.create", v.Name, func(ctx context.Context, p model.Progress) (string, error) {
		defer s.releaseName(v.Name)
		return v.ID, s.create(ctx, v, req, p)
	}), nil
}

// plan turns a request into a VM record, or says what is wrong with it.
func (s *Service) plan(ctx context.Context, req *bangerv1.CreateRequest) (*model.VM, error) {
	v := &model.VM{
		ID: model.NewID(), Name: req.Name, State: model.StateCreating, ImageRef: req.Image,
		Spec: model.VMSpec{
			CPUs: s.Defaults.CPUs, MemoryMiB: s.Defaults.MemoryMiB, DiskBytes: s.Defaults.DiskBytes,
			DiskBPS: req.DiskBytesPerSecond, DiskIOPS: req.DiskOpsPerSecond,
			Net: model.Net(req.Net), Driver: req.Driver, User: req.User, Workdir: req.Workdir, AutoRemove: req.AutoRemove, Nested: req.Nested,
		},
	}
	if v.ImageRef == "" {
		v.ImageRef = s.Defaults.Image
	}
	if v.Spec.Net == "" {
		v.Spec.Net = s.Defaults.Net
	}
	if req.Cpus != nil {
		v.Spec.CPUs = int(*req.Cpus)
	}
	if req.MemoryMib != nil {
		v.Spec.MemoryMiB = *req.MemoryMib
	}
	if req.DiskBytes != nil {
		v.Spec.DiskBytes = *req.DiskBytes
	}
	if err := s.checkShape(&v.Spec); err != nil {
		return nil, err
	}
	if v.Name != "" {
		if err := model.CheckName(v.Name); err != nil {
			return nil, err
		}
	}
	env, err := parseEnv(req.Env)
	if err != nil {
		return nil, err
	}
	v.Spec.Env = env
	if err := s.Caps.Preflight(ctx, v, req); err != nil {
		return nil, err
	}
	return v, s.reserveName(ctx, v)
}

// reserveName checks or makes up the VM's name and keeps it from other creates
// until the row exists (or releaseName is called). The name is set aside before the
// rows are looked at: whoever had it set aside before has a row by then.
func (s *Service) reserveName(ctx context.Context, v *model.VM) error {
	made := v.Name == ""
	rows := map[string]bool{}
	for {
		others, err := s.setAside(v, rows)
		if err != nil {
			return err
		}
		all, err := s.Store.ListVMs(ctx)
		if err != nil {
			s.releaseName(v.Name)
			return err
		}
		for _, o := range all {
			rows[o.Name] = true
			others[o.Name] = true
		}
		switch {
		case rows[v.Name] && made: // looked at too early
			s.releaseName(v.Name)
			v.Name = ""
		case rows[v.Name]:
			s.releaseName(v.Name)
			return model.NameTaken(v.Name)
		case len(others) >= s.MaxVMs:
			s.releaseName(v.Name)
			return errdefs.Exhausted("there are %d VMs already", len(others)).WithHint("delete some (banger vm list --all), or raise limits.vms in the config")
		default:
			return nil
		}
	}
}

// setAside keeps the VM's name, or one that is made up, from other creates, and
// returns the names that were set aside before.
func (s *Service) setAside(v *model.VM, rows map[string]bool) (others map[string]bool, err error) {
	s.createVMMu.Lock()
	defer s.createVMMu.Unlock()
	others = maps.Clone(s.pending)
	if v.Name == "" {
		taken := maps.Clone(rows)
		maps.Copy(taken, others)
		v.Name = friendlyName(taken)
	}
	if others[v.Name] {
		return nil, model.NameTaken(v.Name)
	}
	s.pending[v.Name] = true
	return others, nil
}

func (s *Service) releaseName(name string) {
	s.createVMMu.Lock()
	delete(s.pending, name)
	s.createVMMu.Unlock()
}

func (s *Service) checkShape(spec *model.VMSpec) error {
	switch spec.Net {
	case model.NetUser, model.NetBridge, model.NetNone:
	default:
		return errdefs.Invalid("network %q is not known", spec.Net).WithHint("use --net user, --net bridge or --net none")
	}
	return s.checkSize(spec)
}

// checkSize refuses what this host cannot give, and rounds the disk.
func (s *Service) checkSize(spec *model.VMSpec) error {
	if n := runtime.NumCPU(); spec.CPUs < 1 || spec.CPUs > n {
		return errdefs.Invalid("%d cpus asked for; this host can give 1 to %d", spec.CPUs, n).
			WithHint("choose --cpus between 1 and %d", n)
	}
	if total := hostMemoryMiB(); spec.MemoryMiB < minMemoryMiB || total > 0 && spec.MemoryMiB > total {
		return errdefs.Invalid("%d MiB of memory asked for; this host can give %d to %d MiB", spec.MemoryMiB, minMemoryMiB, total).
			WithHint("choose --memory in that range, e.g. --memory 1G")
	}
	if err := s.checkDisk(spec.DiskBytes); err != nil {
		return err
	}
	if bps, ops := spec.DiskBPS, spec.DiskIOPS; bps != 0 && (bps < minDiskBPS || bps > maxDiskRate) || ops != 0 && (ops < minDiskIOPS || ops > maxDiskRate) {
		return errdefs.Invalid("a disk of %d bytes and %d operations per second asked for; a bound is at least %d bytes, or %d operations", bps, ops, minDiskBPS, minDiskIOPS).
			WithHint("e.g. --disk-bps 20M --disk-iops 1000, or leave them out")
	}
	// QEMU's and the guest's tables count in sectors and pages.
	spec.DiskBytes = spec.DiskBytes &^ 4095
	return nil
}

func (s *Service) checkDisk(n int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Layout.State, &fs); err != nil {
		return fmt.Errorf("measure the disk of the state directory: %w", err)
	}
	if size := int64(fs.Blocks) * fs.Bsize; n < minDiskBytes || n > size {
		return errdefs.Invalid("a disk of %d MiB asked for; this host can give %d to %d MiB", n>>20, minDiskBytes>>20, size>>20).
			WithHint("choose --disk in that range, no smaller than the image, or keep the state where there is more room: set %s", paths.EnvStateDir)
	}
	return nil
}

func parseEnv(list []string) (map[string]string, error) {
	env := make(map[string]string, len(list))
	total := 0
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" || strings.ContainsRune(kv, 0) {
			return nil, errdefs.Invalid("environment entry %q is not KEY=VALUE", kv).WithHint("write it as --env NAME=VALUE")
		}
		if total += len(kv) + 1; total > maxEnvBytes {
			return nil, errdefs.Invalid("the environment is larger than %d bytes", maxEnvBytes).
				WithHint("put what is large into a file and copy it in: banger cp FILE NAME:PATH")
		}
		env[key] = value
	}
	return env, nil
}

// create makes the VM and starts it if asked. When it fails, nothing is left; where that
// fails too, the row is, for delete or the next daemon.
func (s *Service) create(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest, p model.Progress) error {
	ctx, held, err := s.claim(ctx, v.ID, "create")
	if err != nil {
		return err
	}
	defer held.Release()
	c := &creation{held: held, vm: v, was: *v}
	p.Stage("image")
	if err := s.resolve(ctx, c, req.Kernel, p); err != nil {
		return err
	}
	if req.NeedsCommand && c.image.Config.Command(nil, nil) == nil {
		return errdefs.Precondition("image %q names no command, and there is no terminal for a shell", c.image.Name).
			WithHint("name a command after --, or use -d to leave the VM running")
	}
	if err := s.Caps.Image(ctx, v, req, &c.image.Config); err != nil {
		return errdefs.Wrap(err, "image %q", c.image.Name)
	}
	if err := s.fitImage(c, req.DiskBytes != nil); err != nil {
		return err
	}
	list := slices.Concat([]steps.Step[*creation]{
		{Name: "reserve", Do: s.reserve, Undo: s.unreserve},
	}, steps.On(s.Caps.ReserveSteps(v), (*creation).of), []steps.Step[*creation]{
		{Name: "directory", Do: s.makeDir, Undo: s.removeDir},
		{Name: "disk", Do: s.makeDisk, Undo: s.unmakeDisk},
	})
	if !req.NoStart {
		list = append(list, s.startSteps(v)...)
	} else {
		list = append(list, steps.Step[*creation]{Name: "settle", Do: func(ctx context.Context, c *creation) error {
			return s.setState(ctx, c.held, c.vm, model.StateStopped)
		}, Undo: s.unmarkStarting})
	}
	defer s.endTurn(c)
	if err := steps.Run(ctx, s.runner(v, "create", p), c, list); err != nil {
		return errdefs.Wrap(err, "create vm %q", v.Name)
	}
	return nil
}

// resolve finds driver, image and kernel, fetching what is absent. No lock but
// the keyed ones of the artifacts is held.
func (s *Service) resolve(ctx context.Context, c *creation, kernel string, p model.Progress) error {
	v := c.vm
	choice, err := s.Pick(ctx, Want{Driver: v.Spec.Driver, Net: v.Spec.Net, Nested: v.Spec.Nested})
	if err != nil {
		return err
	}
	d := choice.Driver
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	if err := s.Caps.Driver(v, info.Capabilities); err != nil {
		return errdefs.Wrap(err, "driver %q", d.Name())
	}
	if (v.Spec.DiskBPS != 0 || v.Spec.DiskIOPS != 0) && !info.Capabilities.DiskLimits {
		return errdefs.Unsupported("driver %q keeps no disk to a bound", d.Name()).WithHint("leave --disk-bps and --disk-iops out, or use --driver qemu")
	}
	c.driver = d
	v.Spec.Driver, v.Spec.DriverWhy = d.Name(), choice.Why
	v.Spec.Machine, v.Spec.CPUModel = info.Machine, info.CPUModel
	if v.Spec.Nested {
		if v.Spec.CPUModel = info.NestedModel; v.Spec.CPUModel == "" {
			return errdefs.Unsupported("guests cannot run VMs of their own here (%s with %s)", d.Name(), info.Accel).
				WithHint("load the host's KVM module with nested=1, or set qemu.accel: tcg to emulate it; or leave --nested out")
		}
	}
	if err := s.chooseDisk(ctx, c, info.Capabilities); err != nil {
		return err
	}
	if c.image, err = s.Artifacts.EnsureImage(ctx, v.ImageRef, p); err != nil {
		return err
	}
	v.ImageID = c.image.ID
	switch {
	case kernel == "" && c.image.KernelID != "":
		c.kernel, err = s.Store.KernelByID(ctx, c.image.KernelID)
	case kernel == "":
		c.kernel, err = s.Artifacts.EnsureKernel(ctx, s.Defaults.Kernel, p)
	default:
		c.kernel, err = s.Artifacts.EnsureKernel(ctx, kernel, p)
	}
	if err != nil {
		return err
	}
	v.KernelID = c.kernel.ID
	return nil
}

// fitImage makes sure that the image fits on the disk: the default one grows to
// its size.
func (s *Service) fitImage(c *creation, asked bool) error {
	spec, image := &c.vm.Spec, &c.image
	if spec.DiskBytes >= image.SizeBytes {
		return nil
	}
	if asked {
		return errdefs.Invalid("a disk of %d MiB is smaller than image %q, which has %d MiB",
			spec.DiskBytes>>20, image.Name, mib(image.SizeBytes)).
			WithHint("choose --disk %dM or more, or leave --disk out", mib(image.SizeBytes))
	}
	spec.DiskBytes = mib(image.SizeBytes) << 20
	return errdefs.Wrap(s.checkDisk(spec.DiskBytes), "make room for image %q", image.Name)
}

// mib is n in MiB, rounded up.
func mib(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// reserve writes the row: from here on the name is taken and a crash is seen.
func (s *Service) reserve(ctx context.Context, c *creation) error {
	return s.Store.InsertVM(ctx, c.vm, s.UIDBase)
}

func (s *Service) unreserve(ctx context.Context, c *creation) error {
	defer s.notify(c.vm.ID)
	if _, err := s.Store.GetVM(ctx, c.vm.ID); errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return s.Store.DeleteVM(ctx, c.vm.ID)
}

// makeDir makes the VM directory. The VMM's user may enter it and change nothing
// there: a VMM that a guest has taken over must not choose which files, sockets
// and processes we go for by the names in it.
func (s *Service) makeDir(_ context.Context, c *creation) error {
	dir := s.Layout.VM(c.vm.ID)
	if err := os.MkdirAll(s.Layout.VMs(), 0o700); err != nil {
		return fmt.Errorf("make vm directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make vm directory: %w", err)
	}
	if c.vm.VMMUID == 0 {
		return nil
	}
	if err := os.Chown(dir, -1, c.vm.VMMUID); err != nil {
		return fmt.Errorf("give vm directory to the VMM's group: %w", err)
	}
	if err := os.Chmod(dir, 0o710); err != nil {
		return fmt.Errorf("open vm directory to the VMM's group: %w", err)
	}
	return nil
}

func (s *Service) removeDir(_ context.Context, c *creation) error { return s.removeFiles(c.vm) }

// hostMemoryMiB is the host's memory, or 0 when it cannot be read.
func hostMemoryMiB() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit) >> 20)
}
