package qemuproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/logkey"
	"banger/internal/sysexec"
)

// The oldest QEMU that serves: the first with -netdev stream.
const minMajor, minMinor = 7, 2

// binaries are the names distributions give the emulator.
var binaries = []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm"}

const installHint = "install QEMU %d.%d or newer: sudo apt-get install qemu-system-x86"

// models are the CPU models new VMs may get, best first: the first one that the
// accelerator gives in full. All are at least x86-64-v2. Under TCG newer models
// lack features (and make QEMU warn of it); "max" means another processor with
// every release.
var models = map[hypervisor.Accel][]string{
	hypervisor.AccelTCG: {"Westmere-v1", "Nehalem-v1"},
	hypervisor.AccelKVM: {"Haswell-v4", "EPYC-v2", "Westmere-v2", "Westmere-v1", "Nehalem-v1"},
}

// identity is one state of a binary, with one accelerator.
type identity struct {
	path     string
	dev, ino uint64
	size     int64
	mtime    time.Time
	accel    hypervisor.Accel
}

// facts are what a binary says of itself.
type facts struct {
	version  qmp.Version
	machine  string          // the newest q35 of its own
	machines map[string]bool // all it can still be
	model    string
	nested   string // the model of a VM that runs VMs; may be empty
}

// Info implements hypervisor.Driver.
func (d *Driver) Info(ctx context.Context) (hypervisor.Info, error) {
	path, accel, f, err := d.look(ctx)
	if err != nil {
		return hypervisor.Info{}, err
	}
	return hypervisor.Info{
		Driver: Name, Binary: path, Version: f.version.String(), Accel: accel,
		Machine: f.machine, CPUModel: f.model, NestedModel: f.nested,
		Capabilities: hypervisor.Capabilities{QcowDisks: true, UserNet: true, Tap: true, Pause: true, Resize: true, Link: true, DiskLimits: true},
	}, nil
}

// look finds the binary and what it can do, asking it only when it is new to us.
func (d *Driver) look(ctx context.Context) (string, hypervisor.Accel, facts, error) {
	accel, err := d.accel(ctx)
	if err != nil {
		return "", "", facts{}, errdefs.Wrap(err, "choose accelerator")
	}
	path, err := d.find()
	if err != nil {
		return "", "", facts{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", "", facts{}, errdefs.Unsupported("stat %s: %w", path, err).WithHint(installHint, minMajor, minMinor)
	}
	id := identity{path, st.Dev, st.Ino, st.Size, time.Unix(st.Mtim.Unix()), accel}
	d.mu.Lock()
	f, ok := d.known[id]
	d.mu.Unlock()
	if ok {
		return path, accel, f, nil
	}
	if f, err = ask(ctx, path, accel); err != nil {
		return "", "", facts{}, err
	}
	d.mu.Lock()
	d.known[id] = f
	d.mu.Unlock()
	d.log.DebugContext(ctx, "qemu found", logkey.Binary, path, logkey.Version, f.version.String(), logkey.Package, f.version.Package,
		logkey.Machine, f.machine, logkey.CPU, f.model, logkey.Accel, accel)
	return path, accel, f, nil
}

func (d *Driver) find() (string, error) {
	names := binaries
	if d.binary != "" {
		names = []string{d.binary}
	}
	for _, name := range names {
		if path, err := sysexec.Look(name); err == nil {
			return path, nil
		}
	}
	return "", errdefs.Unsupported("QEMU is not installed: no %s", names[0]).WithHint(installHint, minMajor, minMinor)
}

// ask starts the binary without a machine and lets it describe itself.
func ask(ctx context.Context, path string, accel hypervisor.Accel) (facts, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	f, err := interview(ctx, path, accel)
	switch {
	case err == nil:
		return f, nil
	case ctx.Err() != nil:
		return facts{}, errdefs.Wrap(context.Cause(ctx), "ask %s what it can do", path)
	case errors.Is(err, errdefs.ErrUnsupported):
		return facts{}, err
	}
	return facts{}, errdefs.Unsupported("ask %s what it can do: %w", path, err).WithHint(installHint, minMajor, minMinor)
}

func interview(ctx context.Context, path string, accel hypervisor.Accel) (facts, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return facts{}, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return facts{}, err
	}
	log, err := os.CreateTemp("", "banger-qemu-*.log")
	if err != nil {
		_ = conn.Close()
		return facts{}, err
	}
	defer log.Close()
	_ = os.Remove(log.Name())
	proc, err := sysexec.StartDetached(sysexec.Detached{
		Path: path, Dir: "/", Env: []string{}, Stdout: log, Stderr: log, ExtraFiles: []*os.File{theirs},
		Args: []string{
			"-machine", "none", "-accel", string(accel), "-nodefaults", "-no-user-config", "-display", "none",
			"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		},
	})
	if err != nil {
		_ = conn.Close()
		return facts{}, err
	}
	_ = theirs.Close() // else its end would not end the connection
	defer func() { _ = proc.Signal(unix.SIGKILL) }()
	client, err := qmp.New(ctx, conn.(*net.UnixConn), nil)
	if err != nil {
		if text := vmmlog.Last(log, 5, strip); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return facts{}, err
	}
	defer client.Close()
	return learn(ctx, client, accel)
}

// learn reads version, machine types and CPU models.
func learn(ctx context.Context, c *qmp.Client, accel hypervisor.Accel) (facts, error) {
	f := facts{version: c.Version(), machines: make(map[string]bool)}
	if !f.version.AtLeast(minMajor, minMinor) {
		return facts{}, errdefs.Unsupported("QEMU %s is too old", f.version).WithHint(installHint, minMajor, minMinor)
	}
	var machines []struct{ Name string }
	if err := c.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return facts{}, err
	}
	names := make([]string, 0, len(machines))
	for _, m := range machines {
		names = append(names, m.Name)
		f.machines[m.Name] = true
	}
	if f.machine = newestMachine(names); f.machine == "" {
		return facts{}, errdefs.Unsupported("QEMU %s has no pc-q35 machine", f.version).
			WithHint("install the x86 system emulator: sudo apt-get install qemu-system-x86")
	}
	var cpus []cpuDefinition
	if err := c.Execute(ctx, "query-cpu-definitions", nil, &cpus); err != nil {
		return facts{}, err
	}
	if f.model = pickModel(models[accel], cpus); f.model == "" {
		return facts{}, errdefs.Unsupported("QEMU %s offers none of the CPU models %v with %s", f.version, models[accel], accel).
			WithHint("guests need a processor of level x86-64-v2; emulate one: qemu.accel: tcg in the configuration")
	}
	f.nested = nestedModel(accel, f.model, cpus, hostNesting("/sys/module"))
	return f, nil
}

// emulatedHost is the processor whose virtualisation TCG emulates, and what that
// takes besides its model.
const (
	emulatedHost    = "EPYC-v1"
	emulatedNesting = ",+svm,+npt"
)

// nestedModel returns the CPU model of a VM that runs VMs itself: under KVM the
// usual one with the host's own extension, when its module hands that on; under
// TCG, which emulates AMD's, an AMD processor without what TCG lacks of it. The
// list is spelled out, so that the machine is the same after an upgrade of QEMU.
func nestedModel(accel hypervisor.Accel, model string, offered []cpuDefinition, nesting string) string {
	if accel == hypervisor.AccelKVM {
		if nesting == "" {
			return ""
		}
		return model + ",+" + nesting
	}
	for _, cpu := range offered {
		if cpu.Name == emulatedHost {
			without := ""
			for _, feature := range cpu.Missing {
				without += ",-" + feature
			}
			return cpu.Name + without + emulatedNesting
		}
	}
	return ""
}

// hostNesting returns the virtualisation extension that KVM on this host hands on
// to its guests; "" when it does not.
func hostNesting(modules string) string {
	for _, m := range []struct{ module, feature string }{{"kvm_intel", "vmx"}, {"kvm_amd", "svm"}} {
		b, err := os.ReadFile(filepath.Join(modules, m.module, "parameters", "nested"))
		if err == nil && slices.Contains([]string{"Y", "1"}, strings.TrimSpace(string(b))) {
			return m.feature
		}
	}
	return ""
}

// cpuDefinition is one CPU model and what of it this host cannot provide.
type cpuDefinition struct {
	Name    string
	Missing []string `json:"unavailable-features"`
}

// dispensable are features that no 64-bit guest uses and that some processors
// and hypervisors hide: a model is offered without them, by name, so that it
// stays the same machine everywhere.
var dispensable = []string{"vme"}

// pickModel returns the first of the wanted models that this host provides whole,
// else the first that it provides but for what is dispensable; "" when none.
func pickModel(wanted []string, offered []cpuDefinition) string {
	missing := make(map[string][]string, len(offered))
	for _, cpu := range offered {
		missing[cpu.Name] = cpu.Missing
	}
	lesser := ""
	for _, model := range wanted {
		lacks, known := missing[model]
		switch {
		case !known:
		case len(lacks) == 0:
			return model
		case lesser == "" && !slices.ContainsFunc(lacks, func(f string) bool { return !slices.Contains(dispensable, f) }):
			lesser = model + ",-" + strings.Join(lacks, ",-")
		}
	}
	return lesser
}

var q35 = regexp.MustCompile(`^pc-q35-(\d{1,4})\.(\d{1,4})$`)

// newestMachine picks the newest upstream version of the q35 machine. Versions of
// a distributor (pc-q35-noble) do not exist elsewhere and are passed over.
func newestMachine(names []string) (newest string) {
	var major, minor int
	for _, name := range names {
		m := q35.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		a, _ := strconv.Atoi(m[1])
		b, _ := strconv.Atoi(m[2])
		if newest == "" || a > major || a == major && b > minor {
			newest, major, minor = name, a, b
		}
	}
	return newest
}
