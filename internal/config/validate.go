package config

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// Bounds of what a config may ask for. What this host can really give is checked
// when a VM is made.
const (
	maxCPUs        = 256
	minMemory      = 64 * MiB
	maxMemory      = 4 * TiB
	minDisk        = 64 * MiB
	maxDisk        = 16 * TiB
	maxStopTimeout = time.Hour
	maxVMs         = 100_000
	maxBoots       = 1024
)

// Validate checks every value. The error names the key, as in
// "config: vm.cpus: must be at most 256, not 999".
func (c Config) Validate() error {
	checks := []struct {
		key string
		err *errdefs.Error
	}{
		{"driver", oneOf(c.Driver, Auto, DriverQEMU, DriverFake)},
		{"log_level", oneOf(c.LogLevel, "debug", "info", "warn", "error")},
		{"vm.cpus", between(c.VM.CPUs, 0, maxCPUs)},
		{"vm.memory", autoOr(c.VM.Memory, minMemory, maxMemory)},
		{"vm.disk", autoOr(c.VM.Disk, minDisk, maxDisk)},
		{"vm.image", artifact("image", c.VM.Image)},
		{"vm.kernel", artifact("kernel", c.VM.Kernel)},
		{"vm.net", oneOf(string(c.VM.Net), string(model.NetUser), string(model.NetNone))},
		{"vm.stop_timeout", between(c.VM.StopTimeout, Duration(time.Second), Duration(maxStopTimeout))},
		{"qemu.binary", program(c.QEMU.Binary)},
		{"qemu.accel", oneOf(c.QEMU.Accel, Auto, AccelKVM, AccelTCG)},
		{"limits.vms", between(c.Limits.VMs, 1, maxVMs)},
		{"limits.boots", between(c.Limits.Boots, 0, maxBoots)},
	}
	for _, check := range checks {
		if e := check.err; e != nil {
			return &errdefs.Error{Class: e.Class, Msg: "config: " + check.key + ": " + e.Msg, Hint: e.Hint, Err: e}
		}
	}
	return nil
}

func oneOf(v string, allowed ...string) *errdefs.Error {
	if slices.Contains(allowed, v) {
		return nil
	}
	return errdefs.Invalid("must be %s, not %q", strings.Join(allowed, " or "), v)
}

// unit is any number of this package that prints itself.
type unit interface {
	~int | ~int64
	String() string
}

func between[T unit](v, lo, hi T) *errdefs.Error {
	switch {
	case v < lo && lo == 0:
		return errdefs.Invalid("must not be negative")
	case v < lo:
		return errdefs.Invalid("must be at least %v, not %v", lo, v)
	case v > hi:
		return errdefs.Invalid("must be at most %v, not %v", hi, v)
	}
	return nil
}

func autoOr(v, lo, hi AutoSize) *errdefs.Error {
	if v == 0 {
		return nil
	}
	return between(v, lo, hi)
}

func artifact(kind, name string) *errdefs.Error {
	err := model.CheckArtifactName(kind, name)
	if err == nil {
		return nil
	}
	return &errdefs.Error{Class: errdefs.ClassOf(err), Msg: err.Error(), Hint: errdefs.HintOf(err), Err: err}
}

// program allows a bare name, looked up in PATH, or an absolute path: a relative
// one would depend on where the daemon was started.
func program(name string) *errdefs.Error {
	if filepath.IsAbs(name) || (name != "" && !strings.Contains(name, "/")) {
		return nil
	}
	return errdefs.Invalid("must be an absolute path or a program's name, not %q", name)
}
