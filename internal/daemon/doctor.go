package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/config"
	"banger/internal/daemon/fcproc"
	"banger/internal/daemon/imagemgr"
	"banger/internal/daemon/networks"
	"banger/internal/daemon/qemuproc"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/accel"
	"banger/internal/hypervisor/fence"
	"banger/internal/store"
	"banger/internal/sysexec"
)

// Free space below which doctor warns and fails, in bytes: an image and its
// build take about 2 GiB.
const (
	warnFree = 5 << 30
	failFree = 1 << 30
)

// Doctor checks this host for everything a daemon needs. It needs no daemon and
// takes no lock: it is asked exactly when those do not work.
func Doctor(ctx context.Context, opts Options) []doctor.Result {
	conf, confErr := config.Load(opts.ConfigFile)
	resolved := conf.Config
	if confErr != nil {
		resolved = config.Default()
	}
	distro := doctor.HostDistro()
	state := opts.Layout.State
	return doctor.Run(ctx, slices.Concat([]doctor.Check{
		{Name: "configuration", Run: func(context.Context) doctor.Result {
			if err := cmp.Or(confErr, resolved.CheckHost(config.DetectHost(state))); err != nil {
				return doctor.FailErr("mend "+opts.ConfigFile+", or move it away", err)
			}
			if _, err := os.Stat(opts.ConfigFile); err != nil {
				return doctor.Pass("defaults (no %s)", opts.ConfigFile)
			}
			return doctor.Pass("%s", opts.ConfigFile)
		}},
		{Name: "agent", Run: func(context.Context) doctor.Result {
			if opts.AgentPath == "" {
				return doctor.Fail("install the three programs together: make build leaves them in bin/", "banger-agent is not beside bangerd")
			}
			return doctor.Pass("%s", opts.AgentPath)
		}},
		doctor.Kernel(),
		accelCheck(opts, resolved),
		qemuCheck(opts, resolved),
		firecrackerCheck(resolved),
		isolationCheck(),
		doctor.StateDir(state),
		databaseCheck(opts),
		doctor.DiskSpace(state, warnFree, failFree),
		doctor.Memory(resolved.Resolve(config.DetectHost(state)).VM.Memory.Bytes()),
		doctor.Cgroup(),
		diskCheck(opts, resolved),
		doctor.Tools("image tools", distro, imagemgr.Tools()...),
		archiveCheck(),
		doctor.UserNamespaces(distro),
		doctor.Resolver(),
		kernelCheck(opts, resolved),
		imageCheck(opts, resolved),
	}, capChecks(ctx, opts, resolved)))
}

// capChecks are what the capabilities ask of this host.
func capChecks(ctx context.Context, opts Options, conf config.Config) []doctor.Check {
	var db kept
	// What cannot be read is another check's to say, and counts as nothing here.
	_ = peek(ctx, opts, func(s *store.Store) (err error) {
		if db.host, err = s.HostNet(ctx); err == nil {
			db.leases, err = s.Leases(ctx)
		}
		return err
	})
	conf = conf.Resolve(config.DetectHost(opts.Layout.State))
	return newCapabilities(opts, conf, db, networks.New(nil), nil, nil, slog.New(slog.DiscardHandler)).registry.Checks(ctx)
}

// Failed reports whether any check failed.
func Failed(results []doctor.Result) bool { return doctor.Worst(results) == doctor.StatusFail }

func accelCheck(opts Options, conf config.Config) doctor.Check {
	return doctor.Check{Name: "accelerator", Run: func(ctx context.Context) doctor.Result {
		v, err := accel.Probe(ctx, accel.Options{
			Command: append(append([]string(nil), opts.Self...), "kvm-probe"), Fresh: true,
		})
		if err != nil {
			return doctor.FailErr("set qemu.accel: "+config.AccelTCG+" in the configuration, which asks for no probe", err)
		}
		// The probe knows what to do where something can be done.
		fix := cmp.Or(v.Hint, "use a machine with hardware (or nested) virtualisation, or set qemu.accel: "+config.AccelTCG)
		if conf.QEMU.Accel == config.AccelTCG {
			return doctor.Pass("tcg, as configured (%s)", v.Reason)
		}
		if v.Works() {
			return doctor.Pass("kvm: %s", v.Reason)
		}
		if conf.QEMU.Accel == config.AccelKVM {
			return doctor.Fail(fix, "kvm is configured and does not work: %s", v.Reason)
		}
		return doctor.Warn(fix, "tcg, software emulation: %s", v.Reason)
	}}
}

func qemuCheck(opts Options, conf config.Config) doctor.Check {
	return doctor.Check{Name: "qemu", Run: func(ctx context.Context) doctor.Result {
		d := qemuproc.New(qemuproc.Deps{
			Binary: conf.QEMU.Binary,
			// The accelerator has a check of its own.
			Accel: func(context.Context) (hypervisor.Accel, error) { return hypervisor.AccelTCG, nil },
		})
		info, err := d.Info(ctx)
		if err != nil {
			return doctor.FailErr("try "+conf.QEMU.Binary+" --version, and set qemu.binary in the configuration", err)
		}
		return doctor.Pass("%s %s, machine %s", info.Binary, info.Version, info.Machine)
	}}
}

func firecrackerCheck(conf config.Config) doctor.Check {
	return doctor.Check{Name: "firecracker", Run: func(ctx context.Context) doctor.Result {
		// The accelerator has a check of its own.
		d := fcproc.New(fcproc.Deps{
			Binary: conf.Firecracker.Binary, Jailer: conf.Firecracker.JailerProgram(), NoJailer: !conf.Firecracker.Jail,
		})
		info, err := d.Info(ctx)
		switch _, missing := sysexec.Look(conf.Firecracker.Binary); {
		case err == nil && d.Jailed():
			return doctor.Pass("%s %s, jailed", info.Binary, info.Version)
		case err == nil:
			return doctor.Pass("%s %s", info.Binary, info.Version)
		case conf.Driver == config.DriverFirecracker:
			return doctor.FailErr("check firecracker.binary in the configuration", err)
		case missing != nil:
			return doctor.Pass("not installed: QEMU runs all VMs")
		}
		return doctor.Warn(cmp.Or(errdefs.HintOf(err), "check firecracker.binary in the configuration"), "QEMU runs all VMs: %v", err)
	}}
}

// isolationCheck says what stands between a guest that has taken over its VMM and
// this host.
func isolationCheck() doctor.Check {
	return doctor.Check{Name: "isolation", Run: func(ctx context.Context) doctor.Result {
		root := os.Geteuid() == 0
		err := fence.Try(ctx)
		switch {
		case err == nil && root:
			return doctor.Pass("a VMM has a user, a network and IPC of its own, and few system calls")
		case err == nil:
			return doctor.Pass("a VMM has a network and IPC of its own, and few system calls")
		case root:
			return doctor.Warn("start the daemon outside this container, or give it CAP_SYS_ADMIN", "a VMM has a user of its own and few system calls, but sees the host's network: %v", err)
		}
		return doctor.Warn(doctor.NamespaceFix(), "a VMM has few system calls, but sees the host's network: %v", err)
	}}
}

// diskCheck tells how root disks are made, for each driver that is here or is to be.
func diskCheck(opts Options, conf config.Config) doctor.Check {
	return doctor.Check{Name: "root disks", Run: func(ctx context.Context) doctor.Result {
		set := rootDisks(conf, opts.Layout.State, slog.New(slog.DiscardHandler))
		var says []string
		for _, d := range diskReaders(conf) {
			m, why, err := set.Choose(ctx, d.formats...)
			if err != nil {
				return doctor.FailErr("set root_disk: auto in the configuration", errdefs.Wrap(err, "for %s", d.name))
			}
			says = append(says, fmt.Sprintf("%s for %s (%s)", m.Name(), d.name, why))
		}
		return doctor.Pass("%s", strings.Join(says, "; "))
	}}
}

// diskReader is a driver and what it reads.
type diskReader struct {
	name    string
	formats []hypervisor.DiskFormat
}

func diskReaders(conf config.Config) (list []diskReader) {
	raw := []hypervisor.DiskFormat{hypervisor.FormatRaw}
	if conf.Driver == config.DriverFake {
		return []diskReader{{config.DriverFake, raw}}
	}
	_, missing := sysexec.Look(conf.Firecracker.Binary)
	if conf.Driver != config.DriverFirecracker {
		list = append(list, diskReader{config.DriverQEMU, append(slices.Clone(raw), hypervisor.FormatQcow2)})
	}
	if conf.Driver == config.DriverFirecracker || conf.Driver == config.Auto && missing == nil {
		list = append(list, diskReader{config.DriverFirecracker, raw})
	}
	return list
}

// archiveCheck tells where kernels and images are made from.
func archiveCheck() doctor.Check {
	return doctor.Check{Name: "Debian archive", Run: func(context.Context) doctor.Result {
		from, err := imagemgr.Archive()
		if err != nil {
			return doctor.FailErr("check /etc/apt/sources.list and /etc/apt/sources.list.d", err)
		}
		return doctor.Pass("%s", from)
	}}
}

// peek looks into the database, if there is one.
func peek(ctx context.Context, opts Options, look func(*store.Store) error) error {
	db, err := store.Peek(ctx, opts.Layout.Database())
	if err != nil {
		return err
	}
	return errors.Join(look(db), db.Close())
}

func databaseCheck(opts Options) doctor.Check {
	return doctor.Check{Name: "state database", Run: func(ctx context.Context) doctor.Result {
		file := opts.Layout.Database()
		if kept := store.Kept(file); len(kept) > 0 {
			message, hint := lostDatabase(kept[len(kept)-1])
			return doctor.Warn(hint, "%s", message)
		}
		err := peek(ctx, opts, func(*store.Store) error { return nil })
		switch {
		case errors.Is(err, errdefs.ErrNotFound):
			return doctor.Pass("none yet")
		case err != nil:
			return doctor.FailErr("banger daemon start puts one that cannot be read aside and begins a new one", err)
		}
		return doctor.Pass("%s", file)
	}}
}

func kernelCheck(opts Options, conf config.Config) doctor.Check {
	name := conf.VM.Kernel
	return doctor.Check{Name: "default kernel", Run: func(ctx context.Context) doctor.Result {
		var result doctor.Result
		err := peek(ctx, opts, func(db *store.Store) error {
			k, err := db.KernelByName(ctx, name)
			if err != nil {
				return err
			}
			if _, err := os.Stat(k.VmlinuxPath); err != nil {
				result = doctor.Fail("banger kernel pull --force "+name, "the files of %q are gone: %v", name, err)
				return nil
			}
			result = doctor.Pass("%s (%s)", name, k.Release)
			return nil
		})
		return absent(result, err, "kernel", name)
	}}
}

func imageCheck(opts Options, conf config.Config) doctor.Check {
	name := conf.VM.Image
	return doctor.Check{Name: "default image", Run: func(ctx context.Context) doctor.Result {
		var result doctor.Result
		err := peek(ctx, opts, func(db *store.Store) error {
			i, err := db.ImageByName(ctx, name)
			if err != nil {
				return err
			}
			if _, err := os.Stat(i.Path); err != nil {
				result = doctor.Fail("banger image pull --force "+name, "the file of %q is gone: %v", name, err)
				return nil
			}
			result = doctor.Pass("%s (%s)", name, filepath.Base(filepath.Dir(i.Path)))
			return nil
		})
		return absent(result, err, "image", name)
	}}
}

// absent turns the outcome of looking for an artifact into a result: one that is
// not there yet is fetched on first use.
func absent(found doctor.Result, err error, kind, name string) doctor.Result {
	switch {
	case err == nil:
		return found
	case errors.Is(err, errdefs.ErrNotFound):
		return doctor.Warn("banger "+kind+" pull "+name, "%q is not here yet; the first vm run fetches it", name)
	}
	// A daemon looks through all of the database when it starts.
	return doctor.FailErr("restart the daemon, which keeps a damaged database aside: banger daemon stop; banger daemon start", err)
}
