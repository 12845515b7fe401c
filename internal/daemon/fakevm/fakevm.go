// Package fakevm is a driver without virtual machines: a VM is a small process
// that plays VMM and guest. It serves tests and demonstrations of everything
// around a VM, on hosts and in seconds where no guest could boot, and passes the
// same conformance suite as the real drivers.
//
// The process is detached like a real VMM, listens on the same sockets in the VM
// directory, and speaks the real agent protocol. Its file system is a directory
// (paths.FakeRoot); its commands are a handful of built-in ones (commands.go), and
// sh -c of them. It never starts another program.
//
// How a VM is to fail is set by Knobs: in the environment of the daemon, for all
// VMs, or in a file in the VM directory, for one.
package fakevm

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Name is the driver's name in a VM's row.
const Name = "fake"

// The shape every fake VM reports.
const (
	version  = "1.0"
	machine  = "fake-1.0"
	cpuModel = "fake-v1"
)

// Deps are what the driver needs.
type Deps struct {
	// Command is the argument vector that runs ChildMain; the first is an absolute
	// path.
	Command []string
	Log     *slog.Logger // nil: discard
}

// Driver is the fake driver.
type Driver struct {
	command []string
	log     *slog.Logger
}

// New returns a driver; it touches nothing yet.
func New(deps Deps) *Driver {
	d := &Driver{command: deps.Command, log: deps.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

var _ hypervisor.Driver = (*Driver)(nil)

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return Name }

// Info implements hypervisor.Driver.
func (d *Driver) Info(context.Context) (hypervisor.Info, error) {
	if len(d.command) == 0 {
		return hypervisor.Info{}, errdefs.Unsupported("the fake driver has no program to run")
	}
	return hypervisor.Info{
		Driver: Name, Binary: d.command[0], Version: version, Accel: hypervisor.AccelTCG,
		Machine: machine, CPUModel: cpuModel,
		Capabilities: hypervisor.Capabilities{UserNet: true, Tap: true, Resize: true, Link: true},
	}, nil
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	knobs, err := readKnobs(spec.Dir)
	if err != nil {
		return nil, err
	}
	if knobs.StartError != "" {
		return nil, errdefs.Unavailable("start the fake VM: %s", knobs.StartError).WithHint("a knob says so")
	}
	for _, disk := range spec.Disks {
		if disk.Limit != (hypervisor.DiskLimit{}) {
			return nil, errdefs.Unsupported("start the fake VM: disk %s has a bound, and nobody keeps to it", disk.Serial)
		}
		if _, err := os.Stat(disk.Path); err != nil {
			return nil, errdefs.Precondition("start the fake VM: disk %s: %w", disk.Serial, err).
				WithHint("a file of the VM is missing")
		}
	}
	if err := served.NotRunning(ctx, spec.Dir); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, vmproc.LaunchTime)
	defer cancel()
	proc, log, err := d.launch(spec)
	if err != nil {
		_ = served.RemoveSockets(spec.Dir)
		return nil, errdefs.Wrap(err, "start the fake VM")
	}
	h := hypervisor.Handle{Driver: Name, PID: proc.PID, StartTime: proc.StartTime, Accel: hypervisor.AccelTCG, Version: version}
	m := newFakeMachine(spec, h, proc, log)
	if err = m.begin(ctx, spec.LinkUp); err == nil {
		return m, nil
	}
	undo, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), vmproc.UndoTime)
	defer cancelUndo()
	if kerr := proc.Kill(undo); kerr != nil {
		return nil, errors.Join(err, kerr) // the sockets stay: Cleanup finds it by them
	}
	_ = m.Close()
	_ = served.RemoveSockets(spec.Dir)
	return nil, errdefs.Wrap(err, "start the fake VM")
}

// launch starts the child with its sockets already listening, and returns its log too.
func (d *Driver) launch(spec hypervisor.Spec) (*sysexec.Proc, *os.File, error) {
	if len(d.command) == 0 {
		return nil, nil, errdefs.Unsupported("the fake driver has no program to run")
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range []string{paths.QMPSocket, paths.AgentSocket, paths.NetSocket} {
		f, err := dirsock.Listen(spec.Dir, name)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	log, err := vmmlog.Create(spec.Dir, paths.VMMLog, os.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	proc, err := sysexec.StartDetached(sysexec.Detached{
		Path: d.command[0], Args: append(d.command[1:len(d.command):len(d.command)], string(text)),
		Dir: spec.Dir, Env: childEnv(), Stdout: log, Stderr: log, ExtraFiles: files,
	})
	if err != nil {
		_ = log.Close()
	}
	return proc, log, err
}

// childEnv passes on the knobs and nothing else.
func childEnv() []string {
	env := []string{"GOMAXPROCS=2"}
	if v := os.Getenv(paths.EnvFake); v != "" {
		env = append(env, paths.EnvFake+"="+v)
	}
	return env
}

// served finds fake VMs.
var served = vmproc.Served{Driver: Name, Name: "the fake VM", Greet: func(ctx context.Context, conn *net.UnixConn) error {
	_, err := ask(ctx, conn, command{Verb: verbPing})
	return err
}}

// Attach implements hypervisor.Driver.
func (d *Driver) Attach(ctx context.Context, spec hypervisor.Spec, h hypervisor.Handle) (hypervisor.Machine, error) {
	return vmproc.Attach("the fake VM", h, func(proc *sysexec.Proc) (hypervisor.Machine, error) {
		return attach(ctx, spec, proc, h)
	})
}

func attach(ctx context.Context, spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle) (*fakeMachine, error) {
	log, err := vmmlog.Log{Dir: spec.Dir, Name: paths.VMMLog}.Open()
	if err != nil {
		return nil, errdefs.Wrap(err, "open the fake VM's log")
	}
	m := newFakeMachine(spec, h, proc, log)
	knobs, err := readKnobs(spec.Dir)
	if err == nil && knobs.AttachError != "" {
		err = errdefs.Unavailable("attach to the fake VM: %s", knobs.AttachError).WithHint("a knob says so")
	}
	if err == nil {
		err = m.control(ctx, command{Verb: verbPing})
	}
	if err == nil {
		var conn net.Conn
		if conn, err = dirsock.DialPID(ctx, spec.Dir, paths.QMPSocket, h.PID); err == nil {
			err = conn.Close()
		} else {
			err = errdefs.Unavailable("attach to the fake VM: %w", err)
		}
	}
	if err != nil {
		_ = m.Close()
		return nil, err
	}
	return m, nil
}

// Find implements hypervisor.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hypervisor.Handle, error) {
	h, err := served.Find(ctx, dir)
	if err == nil {
		h.Accel, h.Version = hypervisor.AccelTCG, version
	}
	return h, err
}

// Cleanup implements hypervisor.Driver.
func (d *Driver) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	return served.Cleanup(ctx, dir, h)
}

// Knobs make a fake VM fail. They are read as JSON from paths.EnvFake and from
// the file paths.FakeKnobs in the VM directory, which overrides the former.
type Knobs struct {
	// StartError makes Start fail before anything is started.
	StartError string `json:"start_error,omitempty"`
	// StartCrash makes the process end right after its start, with status 1.
	StartCrash bool `json:"start_crash,omitempty"`
	// StartBlock makes the process never answer: Start waits until its context ends.
	StartBlock bool `json:"start_block,omitempty"`
	// KillAfterStart is when, after Start, the process kills itself, e.g. "50ms".
	KillAfterStart string `json:"kill_after_start,omitempty"`
	// AgentNeverReady: the guest channel opens, and nobody ever answers.
	AgentNeverReady bool `json:"agent_never_ready,omitempty"`
	// AgentRootError: the agent answers, and says why its root is not ready.
	AgentRootError string `json:"agent_root_error,omitempty"`
	// SystemBlock: the guest's init never settles.
	SystemBlock bool `json:"system_block,omitempty"`
	// SystemError is why nobody can say whether the guest's init has settled.
	SystemError string `json:"system_error,omitempty"`
	// ShutdownIgnored: shutdown and power button are taken note of, no more.
	ShutdownIgnored bool `json:"shutdown_ignored,omitempty"`
	// ShutdownUnanswered: the agent takes a shutdown and says nothing; the power
	// button works.
	ShutdownUnanswered bool `json:"shutdown_unanswered,omitempty"`
	// ExitCode is the status the process ends with after a shutdown.
	ExitCode int `json:"exit_code,omitempty"`
	// FullFile is a path on the host. While something is there the host's disk is full:
	// a guest that boots, writes, or shuts down stalls.
	FullFile string `json:"full_file,omitempty"`
	// AttachError makes Attach fail.
	AttachError string `json:"attach_error,omitempty"`
}

func readKnobs(dir string) (Knobs, error) {
	var k Knobs
	if text := os.Getenv(paths.EnvFake); text != "" {
		if err := json.Unmarshal([]byte(text), &k); err != nil {
			return k, errdefs.Invalid("read %s: %w", paths.EnvFake, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, paths.FakeKnobs))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		return k, errdefs.Invalid("read %s: %w", paths.FakeKnobs, err)
	}
	return k, nil
}
