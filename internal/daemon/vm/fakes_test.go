package vm_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/rootdisk"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
)

// point is a place in a verb where a fault can be: around a step, or around a call
// that a step makes of another part.
type point struct {
	step string
	call string // "": around the step itself
	done bool   // after it was done, as opposed to before
}

// at asks the injected fault, if there is one, about a point.
func (w *world) at(call string, done bool) error {
	fault := w.fault.Load()
	if fault == nil {
		return nil
	}
	p := point{call: call, done: done}
	if step := w.step.Load(); step != nil {
		p.step = *step
	}
	return (*fault)(p)
}

// around makes a call that can fail without doing anything, and after doing all.
func (w *world) around(call string, do func() error) error {
	if err := w.at(call, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return w.at(call, true)
}

// watchedDriver is the fake driver; it remembers the machine it gave out last.
type watchedDriver struct {
	hypervisor.Driver
	w    *world
	last atomic.Pointer[hypervisor.Machine]
	bend func(*hypervisor.Capabilities) // what it can do; nil: what the fake driver can
}

func (d *watchedDriver) Info(ctx context.Context) (hypervisor.Info, error) {
	info, err := d.Driver.Info(ctx)
	if d.bend != nil {
		d.bend(&info.Capabilities)
	}
	return info, err
}

func (d *watchedDriver) Start(ctx context.Context, spec hypervisor.Spec) (m hypervisor.Machine, err error) {
	err = d.w.around("Start", func() error {
		m, err = d.Driver.Start(ctx, spec)
		if err == nil {
			d.last.Store(&m)
		}
		return err
	})
	if err != nil && m != nil {
		// The worst a driver can do: the VMM runs, and nobody has a handle.
		_ = m.Close()
		m = nil
	}
	return m, err
}

func (d *watchedDriver) Attach(ctx context.Context, spec hypervisor.Spec, h hypervisor.Handle) (hypervisor.Machine, error) {
	if held, _ := d.w.disks.suspended.Load(spec.VMID); held == true {
		// As one that serves its disk and its API in one thread.
		if _, err := d.Find(ctx, spec.Dir); err == nil {
			return nil, errdefs.Unavailable("the VMM waits for its disk")
		}
	}
	m, err := d.Driver.Attach(ctx, spec, h)
	if err == nil {
		d.last.Store(&m)
	}
	return m, err
}

func (d *watchedDriver) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	return d.w.around("Cleanup", func() error { return d.Driver.Cleanup(ctx, dir, h) })
}

// faultyStore is the database of a world.
type faultyStore struct {
	*store.Store
	w *world
}

func (s faultyStore) InsertVM(ctx context.Context, v *model.VM, uidBase int) error {
	return s.w.around("InsertVM", func() error { return s.Store.InsertVM(ctx, v, uidBase) })
}

func (s faultyStore) UpdateVM(ctx context.Context, v *model.VM) error {
	return s.w.around("UpdateVM", func() error { return s.Store.UpdateVM(ctx, v) })
}

func (s faultyStore) DeleteVM(ctx context.Context, id string) error {
	return s.w.around("DeleteVM", func() error { return s.Store.DeleteVM(ctx, id) })
}

// artifacts stands for the image service: what is asked for is there.
type artifacts struct {
	db *store.Store
	w  *world
}

func (a artifacts) EnsureImage(ctx context.Context, name string, _ model.Progress) (model.Image, error) {
	return a.db.ImageByName(ctx, name)
}

func (a artifacts) EnsureKernel(ctx context.Context, name string, _ model.Progress) (model.Kernel, error) {
	return a.db.KernelByName(ctx, name)
}

func (a artifacts) BootFiles(context.Context, model.Kernel) (model.BootFiles, error) {
	return model.BootFiles{Vmlinux: "/vmlinux", Initramfs: "/initramfs"}, a.w.around("BootFiles", func() error { return nil })
}

// inner is the method a disks is made of. That has a method of the name Method itself.
type inner = rootdisk.Method

// disks are sparse copies that remember which of them are active, as a kernel would.
type disks struct {
	inner
	w      *world
	mu     sync.Mutex
	active map[string]bool // by the VM's id
	// bounded says of the calls whether the last one had a deadline.
	bounded map[string]bool
	// devices are the VMs that ever had something in device-mapper.
	devices map[string]bool
	// held is the disk that was watched last, released the VMs whose VMM was to end.
	held *heldDisk
	// suspended says by the VM's id whether a disk is, in the kernel; full that the host
	// has no space for any.
	suspended sync.Map
	full      atomic.Bool
	// growsInUse is what the method says of itself.
	growsInUse bool
	released   []string
}

func (d *disks) Choose(context.Context, ...hypervisor.DiskFormat) (rootdisk.Method, string, error) {
	return d, "of the test", nil
}

func (d *disks) Method(name string) (rootdisk.Method, error) {
	if name != d.Name() {
		return nil, errdefs.Unsupported("no method %q", name)
	}
	return d, nil
}

func (d *disks) GrowsInUse() bool { return d.growsInUse }

func (d *disks) Create(ctx context.Context, disk rootdisk.Disk) error {
	return d.w.around("CreateDisk", func() error { return d.inner.Create(ctx, disk) })
}

func (d *disks) Activate(ctx context.Context, disk rootdisk.Disk) error {
	return d.w.around("ActivateDisk", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.active[disk.VMID], d.devices[disk.VMID] = true, true
		_, d.bounded["Activate"] = ctx.Deadline()
		return d.inner.Activate(ctx, disk)
	})
}

func (d *disks) Deactivate(ctx context.Context, disk rootdisk.Disk) error {
	return d.w.around("DeactivateDisk", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if slices.Contains(d.w.processes(), disk.VMID) {
			return errors.New("the disk is taken from a VMM that runs")
		}
		delete(d.active, disk.VMID)
		_, d.bounded["Deactivate"] = ctx.Deadline()
		return d.inner.Deactivate(ctx, disk)
	})
}

func (d *disks) Remove(ctx context.Context, disk rootdisk.Disk) error {
	return d.w.around("RemoveDisk", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.active[disk.VMID] {
			return errors.New("an active disk is removed")
		}
		_, d.bounded["Remove"] = ctx.Deadline()
		return d.inner.Remove(ctx, disk)
	})
}

// heldDisk is the disk of a VM that the host has space for, or not.
type heldDisk struct {
	vmproc.Stall
	id     string
	of     *disks
	full   *atomic.Bool
	lost   atomic.Pointer[string]
	closed atomic.Bool
}

func (h *heldDisk) hold() {
	h.full.Store(true)
	h.judge()
}

func (h *heldDisk) judge() {
	full := h.full.Load()
	h.of.suspended.Store(h.id, full)
	h.Set(full)
}

func (h *heldDisk) Continue(context.Context) error {
	if !h.full.Load() {
		h.judge()
	}
	return nil
}

func (h *heldDisk) Lost() string {
	if text := h.lost.Load(); text != nil {
		return *text
	}
	return ""
}

func (h *heldDisk) Close() error {
	h.closed.Store(true)
	return nil
}

// Watch fails for a disk that is used and not active; that it is held, and the space
// there is for it, outlive a daemon.
func (d *disks) Watch(disk rootdisk.Disk) (rootdisk.Watch, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.active[disk.VMID] && slices.Contains(d.w.processes(), disk.VMID) {
		return nil, errors.New("a disk is watched that is used and not active")
	}
	d.held = &heldDisk{id: disk.VMID, of: d, full: &d.full}
	d.held.judge()
	return d.held, d.w.around("WatchDisk", func() error { return nil })
}

func (d *disks) Release(disk rootdisk.Disk) error {
	return d.w.around("ReleaseDisk", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.released = append(d.released, disk.VMID)
		d.suspended.Delete(disk.VMID)
		return nil
	})
}

// diskMethod is how the disks of a world are made: by copies, or by device-mapper
// where the environment asks for it.
func diskMethod(t *testing.T, layout paths.Layout) rootdisk.Method {
	t.Helper()
	if os.Getenv("BANGER_TEST_DISK") != "dmsnap" {
		return rootdisk.Sparse()
	}
	m := rootdisk.DMSnap(dmsnap.New("/dev"), slog.New(slog.DiscardHandler))
	if _, err := m.Check(t.Context(), layout.State); err != nil {
		t.Fatal(err)
	}
	return m
}

// inKernel are the VMs of which device-mapper has anything.
func (d *disks) inKernel() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[string]bool{}
	files, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, f := range files {
		name, _ := os.ReadFile(f)
		id, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(string(name), "banger-")), "-")
		if d.devices[id] {
			found[id] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func (d *disks) list() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.active))
}

// network is the capability usernet: it remembers who is attached.
type network struct {
	w        *world
	mu       sync.Mutex
	attached map[string]bool
}

func (n *network) capability() vmcap.Capability {
	return vmcap.Capability{
		Name:    "usernet",
		Has:     func(v *model.VM) bool { return v.Spec.Net == model.NetUser },
		Started: n.attach,
		CleanUp: n.detach,
		Restore: n.restore,
	}
}

func (n *network) attach(_ context.Context, v *model.VM) error {
	return n.w.around("Attach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.attached[v.ID] = true
		return nil
	})
}

func (n *network) detach(_ context.Context, v *model.VM) error {
	return n.w.around("Detach", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.attached, v.ID)
		return nil
	})
}

func (n *network) restore(_ context.Context, running []*model.VM) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached = map[string]bool{}
	for _, v := range running {
		n.attached[v.ID] = true
	}
	return nil
}

func (n *network) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}

// bridge is the capabilities nat and dns: it remembers who has a tap and by which name
// it is known. Leases are in the database of the world, as the real ones are.
type bridge struct {
	w       *world
	refused error // what a preflight says
	mu      sync.Mutex
	names   map[string]string // of attached VMs; "" until it is announced
}

func onTheBridge(v *model.VM) bool { return v.Spec.Net == model.NetBridge }

func (b *bridge) nat() vmcap.Capability {
	return vmcap.Capability{
		Name: "nat",
		Has:  onTheBridge,
		Preflight: func(_ context.Context, v *model.VM, req *bangerv1.CreateRequest) error {
			v.Network = req.Network
			return b.refused
		},
		Reserve:  b.reserve,
		Prepare:  b.attach,
		Machine:  b.plug,
		Guest:    b.tell,
		CleanUp:  b.detach,
		Restore:  b.restore,
		Describe: b.describe,
	}
}

func (b *bridge) dns() vmcap.Capability {
	return vmcap.Capability{
		Name:    "dns",
		Has:     onTheBridge,
		Running: b.announce,
		Changed: b.announce,
		CleanUp: b.forget,
		Restore: func(ctx context.Context, running []*model.VM) (err error) {
			for _, v := range running {
				err = errors.Join(err, b.announce(ctx, v))
			}
			return err
		},
	}
}

func (b *bridge) reserve(ctx context.Context, v *model.VM) error {
	return b.w.around("Reserve", func() error {
		return b.w.db.UpdateLease(ctx, v.ID, func(l *model.Lease, used []netip.Addr) error {
			for a := netip.MustParseAddr("10.42.0.2"); !l.Addr.IsValid(); a = a.Next() {
				if !slices.Contains(used, a) {
					l.Addr = a
				}
			}
			return nil
		})
	})
}

func (b *bridge) attach(_ context.Context, v *model.VM) error {
	return b.w.around("Attach", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.names[v.ID] = ""
		return nil
	})
}

func (b *bridge) plug(_ context.Context, v *model.VM, spec *hypervisor.Spec) error {
	return b.w.around("Plug", func() error {
		spec.Tap = "tap-" + v.ID
		return nil
	})
}

func (b *bridge) addresses(ctx context.Context) (map[string]netip.Addr, error) {
	leases, err := b.w.db.Leases(ctx)
	all := map[string]netip.Addr{}
	for _, l := range leases {
		all[l.VMID] = l.Addr
	}
	return all, err
}

func (b *bridge) tell(ctx context.Context, v *model.VM, conf *guest.Configure) error {
	all, err := b.addresses(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.names[v.ID]; !ok || !all[v.ID].IsValid() {
		return errors.New("the guest is configured for a network that it is not on")
	}
	conf.Net = &guest.NetConf{Address: all[v.ID].String() + "/16"}
	return nil
}

func (b *bridge) announce(_ context.Context, v *model.VM) error {
	return b.w.around("Announce", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.names[v.ID]; !ok {
			return errors.New("a VM is announced that has no tap")
		}
		b.names[v.ID] = v.Name
		return nil
	})
}

func (b *bridge) forget(_ context.Context, v *model.VM) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.names[v.ID]; ok {
		b.names[v.ID] = ""
	}
	return nil
}

func (b *bridge) detach(_ context.Context, v *model.VM) error {
	return b.w.around("Detach", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if slices.Contains(b.w.processes(), v.ID) {
			return errors.New("the tap is taken from a VMM that runs")
		}
		if b.names[v.ID] != "" {
			return errors.New("the tap is taken from a VM that is known by its name")
		}
		delete(b.names, v.ID)
		return nil
	})
}

func (b *bridge) restore(_ context.Context, running []*model.VM) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names = map[string]string{}
	for _, v := range running {
		b.names[v.ID] = ""
	}
	return nil
}

func (b *bridge) describe(ctx context.Context) (func(*model.VM, *bangerv1.VM), error) {
	all, err := b.addresses(ctx)
	return func(v *model.VM, out *bangerv1.VM) {
		out.Addresses = []string{all[v.ID].String()}
		out.DnsName = v.Name + ".vm"
	}, err
}

// known are the attached VMs with their names.
func (b *bridge) known() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.names)
}
