// Package accel finds out whether KVM really runs guests on this host.
//
// That /dev/kvm opens proves little: on some hosts (guests of a paravirtualised
// hypervisor, for example) the device opens and creates VMs, but runs their code
// thousands of times slower than the host, or for ever. So the probe makes a
// tiny 64-bit guest, lets it count, and compares that with the same loop on the
// host. It does so in a child process, because a vCPU can get stuck in the
// kernel, where no deadline of ours reaches: the child is given up, never waited
// for without bound.
package accel

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/logkey"
	"banger/internal/sysexec"
)

// Kind is what the probe found.
type Kind string

// The kinds.
const (
	// KindWorks: guests run at the host's own speed.
	KindWorks Kind = "works"
	// KindEmulated: the device opens, but guests do not run, or absurdly slowly.
	KindEmulated Kind = "emulated"
	// KindAbsent: there is no usable device.
	KindAbsent Kind = "absent"
	// KindNoPermission: this user may not open the device.
	KindNoPermission Kind = "no_permission"
)

// Verdict is the answer of a probe.
type Verdict struct {
	Kind   Kind   `json:"kind"`
	Reason string `json:"reason"`         // why, one sentence without a full stop
	Hint   string `json:"hint,omitempty"` // what to do about it; may be empty
	// Rounds is the length of the measured loop, GuestNanos and HostNanos the CPU
	// time it took; zero when it came to no measurement.
	Rounds     int           `json:"rounds,omitempty"`
	GuestNanos time.Duration `json:"guest_nanos,omitempty"`
	HostNanos  time.Duration `json:"host_nanos,omitempty"`
	// Cached is true when the answer came from Options.CacheFile.
	Cached bool `json:"-"`
}

// Works reports whether KVM should be used.
func (v Verdict) Works() bool { return v.Kind == KindWorks }

// Device is the KVM device.
const Device = "/dev/kvm"

// Groups is the group of the KVM device, which a process that is to use it needs;
// nil where that is root's.
func Groups() []uint32 {
	var st unix.Stat_t
	if unix.Stat(Device, &st) != nil || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}

// deadline bounds the child. With starting and killing it, Probe stays below a
// second.
const deadline = 800 * time.Millisecond

// Options tells Probe how to work.
type Options struct {
	// Command is the argument vector that runs ChildMain; the first is an absolute
	// path.
	Command []string
	// CacheFile keeps the verdict for this boot; empty: none.
	CacheFile string
	// Fresh ignores what CacheFile holds, and replaces it.
	Fresh bool
	Log   *slog.Logger // nil: discard
	// Device replaces /dev/kvm in tests.
	Device string
}

// Probe answers within a second, from the cache file if that was written since
// the host started for the same user and device. It errors only when ctx ends or
// the child cannot be started; every other failure is a verdict.
func Probe(ctx context.Context, o Options) (Verdict, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Device == "" {
		o.Device = Device
	}
	key, err := hostKey(o.Device)
	if err != nil {
		o.Log.DebugContext(ctx, "accelerator verdict is not cached", logkey.Err, err)
		o.CacheFile = ""
	}
	if o.CacheFile != "" && !o.Fresh {
		if v, ok := readCache(o.CacheFile, key); ok {
			return v, nil
		}
	}
	v, conclusive, err := measure(ctx, o)
	if err != nil {
		return Verdict{}, err
	}
	o.Log.DebugContext(ctx, "accelerator probed", logkey.Kind, v.Kind, logkey.Reason, v.Reason,
		logkey.Guest, v.GuestNanos, logkey.Host, v.HostNanos, logkey.Conclusive, conclusive)
	if o.CacheFile != "" && conclusive {
		if err := writeCache(o.CacheFile, key, v); err != nil {
			o.Log.WarnContext(ctx, "keep accelerator verdict", logkey.Err, err)
		}
	}
	return v, nil
}

// slowFactor and slowGrace say how much slower than the host a guest may count
// before it counts as emulated. Hardware is within a few per cent plus the cost
// of one exit; emulation is off by three orders of magnitude.
const (
	slowFactor = 50
	slowGrace  = 5 * time.Millisecond
)

// busyCPU is how much CPU time a child must have used for its silence to prove
// anything; with less, the host was merely too busy to run it.
const busyCPU = 250 * time.Millisecond

// cpuTime is what p used so far.
func cpuTime(p *sysexec.Proc) time.Duration {
	u, err := p.Usage()
	if err != nil {
		return 0
	}
	return u.CPU
}
