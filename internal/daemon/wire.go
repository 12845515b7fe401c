package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"

	"banger/internal/config"
	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/fakevm"
	"banger/internal/daemon/fcproc"
	"banger/internal/daemon/imagemgr"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/networks"
	"banger/internal/daemon/opstate"
	"banger/internal/daemon/ports"
	"banger/internal/daemon/qemuproc"
	"banger/internal/daemon/rootdisk"
	"banger/internal/daemon/usernet"
	"banger/internal/daemon/vm"
	"banger/internal/daemon/vmlock"
	"banger/internal/daemon/workspace"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/accel"
	"banger/internal/lockrank"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/store"
	"banger/internal/version"
)

// vmmUIDBase is the first user id for VMMs of a daemon that is root. It lies in
// the range that systemd's table of uids leaves unused.
const vmmUIDBase = 1_900_000_000

// services are the parts that own state, in the order they are restored.
type services struct {
	images     *imagemgr.Service
	vms        *vm.Service
	workspaces *workspace.Service
	networks   *networks.Service
	ops        *opstate.Service
	ports      *ports.Service
}

// wire makes the services. It touches the disk only to open the database; each
// service's own I/O waits for restore.
func (d *Daemon) wire(ctx context.Context) (*services, error) {
	layout := d.opts.Layout
	conf := d.conf.Config.Resolve(config.DetectHost(layout.State))

	db, aside, err := store.Open(ctx, layout.Database())
	if err != nil {
		return nil, errdefs.Wrap(err, "open the state database")
	}
	d.closeLater(func(context.Context) error { return db.Close() })
	if aside != "" {
		d.log.ErrorContext(ctx, "the state database was not readable; it is kept and a new one begins", logkey.Kept, aside)
	}
	d.kept = store.Kept(layout.Database())

	nets := networks.New(db)
	var vms *vm.Service // which capabilities reach agents through, and images disks, once there are VMs
	open := func(ctx context.Context, vmID string, req guest.Request) (net.Conn, error) {
		return vms.OpenAgent(ctx, vmID, req)
	}
	useDisk := func(ctx context.Context, ref, action string, use func(context.Context, model.VM, model.Image, func(context.Context, *os.File) error) error) error {
		return vms.UseDisk(ctx, ref, action, use)
	}
	openRunning := func(ctx context.Context, ref string, req guest.Request) (net.Conn, error) {
		id, err := vms.CheckRunning(ctx, ref)
		if err != nil {
			return nil, err
		}
		return vms.OpenAgent(ctx, id, req)
	}
	caps := newCapabilities(d.opts, conf, db, nets, open, displayName(db), d.log)
	d.closeLater(caps.close)

	ops := opstate.New(d.log)
	sources, err := imageSources(conf.Images)
	if err != nil {
		return nil, err
	}
	images := imagemgr.New(imagemgr.Deps{
		Store: db, Layout: layout, AgentPath: d.opts.AgentPath, Log: d.log, Ops: ops,
		DiskBytes: conf.VM.Disk.Bytes(), Sources: sources, UseDisk: useDisk, OpenAgent: openRunning, Faults: d.opts.faults,
	})
	d.closeLater(func(context.Context) error { return images.Close() })

	drivers := d.drivers(conf)
	vmLocks := &vmlock.Set{Noun: "vm", Display: displayName(db), Rank: lockrank.VM}
	uidBase := 0
	if os.Geteuid() == 0 {
		uidBase = vmmUIDBase
	}
	vms = vm.New(vm.Deps{
		Store: db, Layout: layout, Drivers: drivers, Pick: picker{conf.Driver, drivers}.pick,
		Artifacts: images, Caps: caps.registry, Disks: rootDisks(conf, layout.State, d.log), Ops: ops,
		Defaults: vm.Defaults{
			CPUs: int(conf.VM.CPUs), MemoryMiB: conf.VM.Memory.Bytes() >> 20, DiskBytes: conf.VM.Disk.Bytes(),
			Image: conf.VM.Image, Kernel: conf.VM.Kernel, Net: conf.VM.Net,
			StopTimeout: conf.VM.StopTimeout.Std(), BootTimeout: bootTimeout,
		},
		MAC: usernet.GuestMAC, MaxVMs: int(conf.Limits.VMs), MaxBoots: int(conf.Limits.Boots),
		UIDBase: uidBase, Locks: vmLocks, Log: d.log, Faults: d.opts.faults,
	})
	d.closeLater(func(context.Context) error { return vms.Close() })
	d.closeLater(ops.Close)

	workspaces := workspace.New(workspace.Deps{
		VMs: vms, Store: db, Layout: layout, Log: d.log,
		Locks: &vmlock.Set{Noun: "workspace of vm", Display: displayName(db), Rank: lockrank.Workspace},
	})
	return &services{images: images, vms: vms, workspaces: workspaces, networks: nets, ops: ops, ports: caps.ports}, nil
}

// imageSources says how images come from elsewhere: with what the daemon's own user may
// read. Whoever is let in (peerListener) is that user, or as powerful.
func imageSources(conf config.Images) (imagemgr.Sources, error) {
	platform := oci.HostPlatform()
	if conf.Platform != config.Auto {
		var err error
		if platform, err = oci.ParsePlatform(conf.Platform); err != nil {
			return imagemgr.Sources{}, errdefs.Wrap(err, "config: images.platform")
		}
	}
	var catalogs []catalog.Source
	for _, c := range conf.Catalogs {
		catalogs = append(catalogs, catalog.Source{URL: c.URL, Key: c.Key})
	}
	return imagemgr.Sources{
		Mirrors: conf.Mirrors, Insecure: conf.Insecure, Platform: platform, Keychain: oci.UserFiles(getenv),
		UserAgent: "banger/" + version.String(), Sockets: oci.DefaultSockets(getenv),
		Layers: oci.Limits{Bytes: conf.MaxSize.Bytes()}, Tree: flatten.Limits{Bytes: conf.MaxSize.Bytes(), Entries: int64(conf.MaxFiles)},
		Catalogs: catalogs, CacheBytes: conf.Cache.Bytes(),
	}, nil
}

// getenv is the daemon's environment; systemd gives a service of root's no HOME.
func getenv(key string) string {
	value := os.Getenv(key)
	if key == "HOME" && value == "" {
		if u, err := user.Current(); err == nil {
			return u.HomeDir
		}
	}
	return value
}

// closeLater registers fn for Close, which runs them in reverse.
func (d *Daemon) closeLater(fn func(context.Context) error) { d.onClose = append(d.onClose, fn) }

// restore brings what a crash may have left to a legal state, before any request
// is served.
func (s *services) restore(ctx context.Context) error {
	if err := s.images.Restore(ctx); err != nil {
		return fmt.Errorf("restore images: %w", err)
	}
	if err := s.vms.Restore(ctx); err != nil {
		return fmt.Errorf("restore vms: %w", err)
	}
	if err := s.workspaces.Restore(ctx); err != nil {
		return fmt.Errorf("restore workspaces: %w", err)
	}
	return nil
}

// bootTimeout is how long a guest may take to become ready. Emulation on a busy
// host is slow; a guest that is dead is noticed long before.
const bootTimeout = 180e9

// drivers returns every driver this build has.
func (d *Daemon) drivers(conf config.Config) map[string]hypervisor.Driver {
	qemu := qemuproc.New(qemuproc.Deps{
		Binary: conf.QEMU.Binary, Log: d.log,
		Accel: func(ctx context.Context) (hypervisor.Accel, error) { return d.accel(ctx, conf.QEMU.Accel) },
	})
	fake := fakevm.New(fakevm.Deps{
		Command: append(append([]string(nil), d.opts.Self...), "fakevm"), Log: d.log,
	})
	fc := fcproc.New(fcproc.Deps{
		Binary: conf.Firecracker.Binary, Jailer: conf.Firecracker.JailerProgram(), NoJailer: !conf.Firecracker.Jail,
		KVM: d.kvm, Log: d.log,
	})
	return map[string]hypervisor.Driver{qemu.Name(): qemu, fc.Name(): fc, fake.Name(): fake}
}

// probe says whether KVM runs guests here.
func (d *Daemon) probe(ctx context.Context) (accel.Verdict, error) {
	return accel.Probe(ctx, accel.Options{
		Command:   append(append([]string(nil), d.opts.Self...), "kvm-probe"),
		CacheFile: d.opts.Layout.Accel(), Log: d.log,
	})
}

// kvm says why KVM does not run guests here; nil when it does.
func (d *Daemon) kvm(ctx context.Context) error {
	verdict, err := d.probe(ctx)
	if err != nil {
		return err
	}
	if verdict.Works() {
		return nil
	}
	// What the probe advises otherwise is for QEMU, which emulates where it must.
	hint := "make the VM with --driver qemu, which emulates a processor where it must"
	if verdict.Kind == accel.KindNoPermission {
		hint = verdict.Hint
	}
	return errdefs.Unsupported("Firecracker needs KVM: %s", verdict.Reason).WithHint("%s", hint)
}

// accel says how guests are run: as configured, else as the probe found.
func (d *Daemon) accel(ctx context.Context, configured string) (hypervisor.Accel, error) {
	if configured != config.Auto {
		return hypervisor.Accel(configured), nil
	}
	verdict, err := d.probe(ctx)
	if err != nil {
		return "", err
	}
	if verdict.Works() {
		return hypervisor.AccelKVM, nil
	}
	return hypervisor.AccelTCG, nil
}

// displayName says VM ids as people know them in messages.
func displayName(db *store.Store) func(string) string {
	return func(id string) string {
		if v, err := db.GetVM(context.Background(), id); err == nil {
			return v.Name
		}
		return id
	}
}

// rootDisks are the methods of making root disks, the best first. What takes the time
// of a copy comes last.
func rootDisks(conf config.Config, state string, log *slog.Logger) *rootdisk.Set {
	return rootdisk.NewSet(conf.RootDisk, state,
		rootdisk.QCOW2(), rootdisk.Reflink(), rootdisk.DMSnap(dmsnap.New("/dev"), log), rootdisk.Sparse())
}
