package config

import (
	"net/netip"
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
	minMTU         = 1280 // IPv6 needs that much
	maxMTU         = 65_520
	maxPool        = 256
	maxVMs         = 100_000
	maxBoots       = 1024
	minCache       = 1 * MiB
	maxCache       = 16 * TiB
	minImage       = 1 * MiB
	maxImage       = 4 * TiB
	maxFiles       = 100_000_000
)

// Validate checks every value. The error names the key, as in
// "config: vm.cpus: must be at most 256, not 999".
func (c Config) Validate() error {
	checks := []struct {
		key string
		err *errdefs.Error
	}{
		{"driver", oneOf(c.Driver, Auto, DriverQEMU, DriverFirecracker, DriverFake)},
		{"root_disk", oneOf(c.RootDisk, Auto, DiskQCOW2, DiskReflink, DiskDMSnap, DiskSparse)},
		{"log_level", oneOf(c.LogLevel, "debug", "info", "warn", "error")},
		{"vm.cpus", between(c.VM.CPUs, 0, maxCPUs)},
		{"vm.memory", autoOr(c.VM.Memory, minMemory, maxMemory)},
		{"vm.disk", autoOr(c.VM.Disk, minDisk, maxDisk)},
		{"vm.image", artifact("image", c.VM.Image)},
		{"vm.kernel", artifact("kernel", c.VM.Kernel)},
		{"vm.net", oneOf(string(c.VM.Net), string(model.NetUser), string(model.NetBridge), string(model.NetNone))},
		{"vm.stop_timeout", between(c.VM.StopTimeout, Duration(time.Second), Duration(maxStopTimeout))},
		{"qemu.binary", program(c.QEMU.Binary)},
		{"qemu.accel", oneOf(c.QEMU.Accel, Auto, AccelKVM, AccelTCG)},
		{"firecracker.binary", program(c.Firecracker.Binary)},
		{"firecracker.jailer", program(c.Firecracker.Jailer)},
		{"network.bridge", bridge(c.Network.Bridge)},
		{"network.prefix", guests(c.Network.Prefix)},
		{"network.loopback", loopback(c.Network.Loopback)},
		{"network.mtu", between(c.Network.MTU, minMTU, maxMTU)},
		{"network.pool", between(c.Network.Pool, 1, maxPool)},
		{"dns.listen", listen(c.DNS.Listen)},
		{"images.mirrors", c.Images.Mirrors.check()},
		{"images.insecure", c.Images.Insecure.check()},
		{"images.catalogs", c.Images.Catalogs.check()},
		{"images.platform", platform(c.Images.Platform)},
		{"images.cache", autoOr(c.Images.Cache, minCache, maxCache)},
		{"images.max_size", autoOr(c.Images.MaxSize, minImage, maxImage)},
		{"images.max_files", between(c.Images.MaxFiles, 0, maxFiles)},
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

// CheckHost reports, with class permission, what a daemon on h may not do. It is apart
// from Validate because a config file says nothing of who reads it.
func (c Config) CheckHost(h Host) error {
	if c.VM.Net == model.NetBridge && h.UID != 0 {
		return errdefs.Permission("config: vm.net: bridge is for a daemon that is root").
			WithHint("set it to user, or run the daemon as root")
	}
	return nil
}

// loopback checks a prefix for addresses that only this host has. The first one of it
// is everybody's already.
func loopback(prefix Prefix) *errdefs.Error {
	p := prefix.Std()
	switch {
	case !p.IsValid() || !p.Addr().Is4() || !p.Addr().IsLoopback() || p.Bits() < 9 || p.Bits() > 28:
		return errdefs.Invalid("must be within 127.0.0.0/8, with /9 to /28, not %s", prefix)
	case p != p.Masked():
		return errdefs.Invalid("must be %s, not %s", p.Masked(), prefix)
	case p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})):
		return errdefs.Invalid("must not contain 127.0.0.1")
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

// maxBridge leaves room for "-" and the number of a tap in the 15 bytes of a name.
const maxBridge = 8

// bridge checks the name of a network device that is to be ours.
func bridge(name string) *errdefs.Error {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return errdefs.Invalid("must be letters a to z and digits, not %q", name)
		}
	}
	if name == "" || len(name) > maxBridge {
		return errdefs.Invalid("must have 1 to %d bytes, not %q", maxBridge, name).
			WithHint("names of network devices have at most 15, and a tap's is longer than its bridge's")
	}
	return nil
}

// The sizes of a prefix: room for a few guests, and none for the whole Internet.
const (
	minPrefixBits = 8
	maxPrefixBits = 29
)

// guests checks the prefix that guests get their addresses from.
func guests(prefix Prefix) *errdefs.Error {
	p := prefix.Std()
	switch {
	case !p.IsValid():
		return nil
	case !p.Addr().Is4() || p.Bits() < minPrefixBits || p.Bits() > maxPrefixBits:
		return errdefs.Invalid("must be IPv4 with /%d to /%d, not %s", minPrefixBits, maxPrefixBits, prefix)
	case p.Masked() != p:
		return errdefs.Invalid("must begin at its own start, as in %s, not %s", p.Masked(), prefix)
	case !p.Addr().IsPrivate():
		return errdefs.Invalid("must be of a private network, not %s", prefix).
			WithHint("choose one inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, or auto")
	}
	return nil
}

// listen allows an address of the loopback only: the networks of VMs are answered on
// anyway, and nobody else has business with their names.
func listen(at string) *errdefs.Error {
	if at == Auto || at == None {
		return nil
	}
	const example = "for example 127.0.0.42:53, or [::1]:5300"
	addr, err := netip.ParseAddrPort(at)
	switch {
	case err != nil:
		return errdefs.Invalid("must be auto, none or an IP address and a port, not %q", at).WithHint(example)
	case !addr.Addr().Unmap().IsLoopback():
		return errdefs.Invalid("must be a loopback address, not %s", addr.Addr()).WithHint(example)
	case addr.Port() == 0:
		return errdefs.Invalid("must have a port from 1 to 65535, not 0").WithHint(example)
	}
	return nil
}
