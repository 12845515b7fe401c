package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"banger/internal/daemon/steps"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/model"
	"banger/internal/paths"
)

// boot is what one start has made so far.
type boot struct {
	spec    hypervisor.Spec
	machine hypervisor.Machine
	live    *live
	turn    bool // holds a boot slot
}

// Start boots a stopped VM. Starting a running one does nothing.
func (s *Service) start(ctx context.Context, id string, p model.Progress) error {
	ctx, held, err := s.claim(ctx, id, "start")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	if v.State.Live() {
		l := s.lookup(id)
		switch {
		case l == nil:
			return lost(&v)
		case !l.ended():
			return nil
		}
		// Its watcher waits for the claim we hold: do its work first.
		if err := s.bury(ctx, held, &v, l); err != nil {
			return err
		}
	}
	c := &creation{held: held, vm: &v, was: v}
	return s.startHeld(ctx, c, p)
}

// startHeld runs the start steps for a VM whose row exists.
func (s *Service) startHeld(ctx context.Context, c *creation, p model.Progress) error {
	if !c.vm.State.CanBecome(model.StateStarting) {
		return c.vm.Transition(model.StateStarting)
	}
	var err error
	if c.driver, err = s.driver(c.vm); err != nil {
		return err
	}
	if c.method, err = s.method(c.vm); err != nil {
		return err
	}
	if c.image, err = s.Store.ImageByID(ctx, c.vm.ImageID); err != nil {
		return err
	}
	if c.kernel, err = s.Store.KernelByID(ctx, c.vm.KernelID); err != nil {
		return err
	}
	defer s.endTurn(c)
	if err := steps.Run(ctx, s.runner(c.vm, "start", p), c, s.startSteps(c.vm)); err != nil {
		return errdefs.Wrap(err, "start vm %q", c.vm.Name)
	}
	return nil
}

// startSteps boots the VM of a creation whose row and disk exist.
func (s *Service) startSteps(v *model.VM) []steps.Step[*creation] {
	return slices.Concat([]steps.Step[*creation]{
		{Name: "prepare", Do: s.markStarting, Undo: s.unmarkStarting},
		{Name: "turn", Do: s.awaitTurn}, // who runs the steps ends it, whatever becomes of them
		{Name: "attach disk", Do: s.attachDisk, Undo: s.unattachDisk, Limit: stepTime},
	}, steps.On(s.Caps.PrepareSteps(v), (*creation).of), []steps.Step[*creation]{
		{Name: "machine", Do: s.planMachine},
		{Name: "vmm", Do: s.launch, Undo: s.unlaunch},
	}, steps.On(s.Caps.StartedSteps(v), (*creation).of), []steps.Step[*creation]{
		{Name: "boot", Do: s.awaitAgent},
		{Name: "configure", Do: s.configure},
	}, steps.On(s.Caps.RunningSteps(v), (*creation).of), []steps.Step[*creation]{
		{Name: "publish", Do: s.markRunning},
	})
}

// markStarting writes the intent and gathers what the VMM must be told. A VM that
// is being made stays in creating until it runs: what a crash leaves of it is then
// undone, not taken for a stopped VM that somebody knows of.
func (s *Service) markStarting(ctx context.Context, c *creation) error {
	v := c.vm
	v.BootID, v.LastError = rand.Text(), ""
	next := model.StateStarting
	if c.was.State == model.StateCreating {
		next = model.StateCreating
	}
	if err := s.setState(ctx, c.held, v, next); err != nil {
		return err
	}
	files, err := s.Artifacts.BootFiles(ctx, c.kernel)
	if err != nil {
		return err
	}
	info, err := c.driver.Info(ctx)
	if err != nil {
		return err
	}
	if info.Capabilities.MMIO && !files.MMIO {
		return errdefs.Unsupported("kernel %q has no modules for a machine without PCI, as driver %q makes it", c.kernel.Name, c.driver.Name()).
			WithHint("pull or import the kernel again, with virtio (MMIO, block, vsock) as modules or built in, or use --driver qemu")
	}
	c.boot = &boot{spec: s.spec(v, c.method.View(s.disk(v, c.image.Path)), files)}
	return nil
}

// awaitTurn keeps a crowd of VMs from booting so slowly, all at once, that each
// runs into its deadline.
func (s *Service) awaitTurn(ctx context.Context, c *creation) error {
	select {
	case <-s.slots:
		c.boot.turn = true
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Service) endTurn(c *creation) {
	if c.boot != nil && c.boot.turn {
		c.boot.turn = false
		s.slots <- struct{}{}
	}
}

// spec is the same for every start of a VM: snapshots depend on it.
func (s *Service) spec(v *model.VM, root hypervisor.Disk, files model.BootFiles) hypervisor.Spec {
	root.Limit = hypervisor.DiskLimit{BytesPerSecond: v.Spec.DiskBPS, OpsPerSecond: v.Spec.DiskIOPS}
	spec := hypervisor.Spec{
		VMID: v.ID, Dir: s.Layout.VM(v.ID),
		CPUs: v.Spec.CPUs, MemoryMiB: v.Spec.MemoryMiB,
		Machine: v.Spec.Machine, CPUModel: v.Spec.CPUModel,
		Vmlinux: files.Vmlinux, BzImage: files.BzImage, Initramfs: files.Initramfs,
		Disks:  []hypervisor.Disk{root},
		LinkUp: v.Spec.Net != model.NetNone,
		MAC:    s.MAC,
		UID:    v.VMMUID, GID: v.VMMUID,
	}
	if files.Modules != "" {
		spec.Disks = append(spec.Disks, hypervisor.Disk{
			Serial: hypervisor.SerialModules, Path: files.Modules, Format: hypervisor.FormatRaw, ReadOnly: true,
		})
	}
	return spec
}

// unmarkStarting puts the row back. Undoing a create removes it right after: a
// crash in between must not leave a VM that looks whole.
func (s *Service) unmarkStarting(ctx context.Context, c *creation) error {
	if c.was.State == model.StateCreating {
		return s.setState(ctx, c.held, c.vm, model.StateDeleting)
	}
	return s.putBack(ctx, c.held, c.vm, c.was)
}

func (s *Service) planMachine(ctx context.Context, c *creation) error {
	return s.Caps.Machine(ctx, c.vm, &c.boot.spec)
}

func (s *Service) launch(ctx context.Context, c *creation) error {
	b := c.boot
	m, err := c.driver.Start(ctx, b.spec)
	if err != nil {
		return err
	}
	b.live = newLive(m)
	if err := s.guard(c.vm, b.live); err != nil {
		return err
	}
	b.machine = b.live.machine
	return writeHandles(b.spec.Dir, handles{BootID: c.vm.BootID, VMM: m.Handle()})
}

func (s *Service) unlaunch(ctx context.Context, c *creation) error {
	if c.boot == nil {
		return nil
	}
	err := s.endVMM(ctx, c.driver, c.vm, c.boot.live)
	if c.boot.live != nil {
		err = errors.Join(err, s.drop(c.vm.ID, c.boot.live))
	}
	return err
}

// endVMM ends the VMM of a VM and forgets it. l may be nil: then whatever a lost
// VMM left is found and removed.
func (s *Service) endVMM(ctx context.Context, d hypervisor.Driver, v *model.VM, l *live) error {
	dir := s.Layout.VM(v.ID)
	h := readHandles(dir).VMM
	errs := []error{s.unguard(v, l)}
	if l != nil {
		h = l.machine.Handle()
		errs = append(errs, l.machine.Kill(ctx))
	}
	if err := errors.Join(append(errs, d.Cleanup(ctx, dir, h))...); err != nil {
		return err // it may live: whoever tries next needs its handle
	}
	return removeHandles(dir)
}

// awaitAgent waits for the agent's ready event, the end of the VMM, a stall, or the
// deadline.
func (s *Service) awaitAgent(ctx context.Context, c *creation) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Defaults.BootTimeout,
		errdefs.New(errdefs.ClassTimeout, "the guest was not ready within %s", s.Defaults.BootTimeout))
	defer cancel()
	session, err := c.boot.live.agent(ctx)
	if err != nil {
		return s.bootError(c, err)
	}
	ready := session.Ready()
	if !ready.RootReady {
		return s.bootError(c, errdefs.Precondition("the guest could not use its root disk: %s", printable(ready.Error, 500)))
	}
	return nil
}

// bootError adds what the VMM and the console said last: a failed create leaves
// no log to look at.
func (s *Service) bootError(c *creation, err error) error {
	if errors.Is(err, context.Canceled) || errdefs.ClassOf(err) == errdefs.ClassCanceled {
		return err
	}
	if errors.Is(err, errVMMEnded) {
		<-c.boot.machine.Done()
		err = errdefs.Unavailable("the guest ended while it booted: %s", exitText(c.boot.machine.Exit()))
	}
	last := lastLines(filepath.Join(c.boot.spec.Dir, paths.ConsoleLog), 8, 2048)
	hint := errdefs.HintOf(err)
	if last != "" {
		if hint != "" {
			hint += "\n"
		}
		hint += "the console said last:\n" + last
	} else if hint == "" {
		hint = "the console is silent; try another kernel (--kernel) or check the host: banger doctor"
	}
	return &errdefs.Error{Class: errdefs.ClassOf(err), Msg: err.Error(), Hint: hint, Err: err}
}

// configure gives the guest its identity. Everything that is one VM's alone goes
// this way, never over a command line.
func (s *Service) configure(ctx context.Context, c *creation) error {
	ctx, cancel := context.WithTimeout(ctx, s.Defaults.BootTimeout)
	defer cancel()
	if err := s.identify(ctx, c.boot.live, c.vm, c.image.Config); err != nil {
		return s.bootError(c, errdefs.Wrap(err, "configure the guest"))
	}
	return nil
}

func (s *Service) markRunning(ctx context.Context, c *creation) error {
	c.vm.StartedAt = time.Now().UTC()
	if err := s.setState(ctx, c.held, c.vm, model.StateRunning); err != nil {
		return err
	}
	s.adopt(c.vm, c.boot.live)
	return nil
}

// lastLines returns the last lines of a log, made safe to print: guests are hostile.
func lastLines(path string, lines, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, 2)
	if err != nil {
		return ""
	}
	buf := make([]byte, min(size, limit))
	n, err := f.ReadAt(buf, size-int64(len(buf)))
	if n == 0 && err != nil {
		return ""
	}
	var keep []string
	for line := range strings.SplitSeq(string(buf[:n]), "\n") {
		if line = strings.TrimSpace(printable(line, 200)); line != "" {
			keep = append(keep, "  "+line)
		}
	}
	return strings.Join(keep[max(0, len(keep)-int(lines)):], "\n")
}

// printable drops what could drive a terminal and bounds the length, in runes.
func printable(text string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > limit {
			b.WriteString("…")
			break
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}
