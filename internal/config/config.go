// Package config is what a user may set once for all VMs: a YAML file of which
// every key is optional, decoded strictly and checked before anything uses it.
//
// A value that depends on the host ("auto") stays auto in Config and is replaced
// by Resolve, so that Default is the same everywhere and can be compared with the
// commented example in docs/config.example.yaml.
package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/model"
)

// Config is the whole file. Keep docs/config.example.yaml in step; a test
// compares the two.
type Config struct {
	Driver      string      `yaml:"driver"`    // "auto", "qemu", "firecracker" or "fake"
	RootDisk    string      `yaml:"root_disk"` // "auto", "qcow2", "reflink", "dmsnap" or "sparse"
	LogLevel    string      `yaml:"log_level"` // "debug", "info", "warn" or "error"
	VM          VM          `yaml:"vm"`
	QEMU        QEMU        `yaml:"qemu"`
	Firecracker Firecracker `yaml:"firecracker"`
	Network     Network     `yaml:"network"`
	DNS         DNS         `yaml:"dns"`
	Images      Images      `yaml:"images"`
	Limits      Limits      `yaml:"limits"`
}

// VM holds the defaults of new VMs; each has a flag that overrides it.
type VM struct {
	CPUs        Count     `yaml:"cpus"`   // auto: half the host's, 1 to 4
	Memory      AutoSize  `yaml:"memory"` // auto: an eighth of the host's, 1G to 8G
	Disk        AutoSize  `yaml:"disk"`   // size the root filesystem grows to; auto: what the state's file system holds, 4G to 16G
	Image       string    `yaml:"image"`
	Kernel      string    `yaml:"kernel"`
	Net         model.Net `yaml:"net"`
	StopTimeout Duration  `yaml:"stop_timeout"` // how long an orderly stop may take
}

// QEMU tells how the qemu driver runs its VMM.
type QEMU struct {
	Binary string `yaml:"binary"` // absolute path or a name in PATH
	Accel  string `yaml:"accel"`  // "auto", "kvm" or "tcg"
}

// Network tells how a daemon that is root joins VMs to the host's network by taps.
type Network struct {
	Bridge string `yaml:"bridge"` // its name; begins the names of the taps as well
	Prefix Prefix `yaml:"prefix"` // of IPv4; auto: one that is free when the first VM starts
	MTU    Count  `yaml:"mtu"`    // bytes
	Pool   Count  `yaml:"pool"`   // taps kept ready

	// Loopback is where VMs without a tap have addresses for their forwarded ports; of
	// any daemon.
	Loopback Prefix `yaml:"loopback"`
}

// DNS tells where names of VMs are answered.
type DNS struct {
	Listen string `yaml:"listen"` // "auto", "none" or a loopback address and port; see Resolve
}

// Images tells how images come from registries and files, and what they may be like.
type Images struct {
	Mirrors  Mirrors  `yaml:"mirrors"`   // by host of a registry: mirrors to try before it
	Insecure Hosts    `yaml:"insecure"`  // registries that http will do for, or TLS that cannot be verified
	Catalogs Catalogs `yaml:"catalogs"`  // lists of kernels and images, in their order, and who signs them
	Platform string   `yaml:"platform"`  // OS/ARCHITECTURE[/VARIANT]; auto: this host's
	Cache    AutoSize `yaml:"cache"`     // how much of what was fetched is kept; auto: a tenth of the state's file system, 2G to 32G
	MaxSize  AutoSize `yaml:"max_size"`  // of an image's layers, as they are stored and unpacked; auto: 128G
	MaxFiles Count    `yaml:"max_files"` // of an image; auto: 2 million
}

// Addr returns the address to answer on; false for none. Resolve comes first.
func (d DNS) Addr() (netip.AddrPort, bool) {
	addr, err := netip.ParseAddrPort(d.Listen)
	return addr, err == nil
}

// Firecracker tells how the firecracker driver runs its VMM.
type Firecracker struct {
	Binary string `yaml:"binary"` // absolute path or a name in PATH
	Jailer string `yaml:"jailer"` // the same, or "auto": beside the binary, else in PATH
	Jail   bool   `yaml:"jail"`   // whether a daemon that is root jails it
}

// JailerProgram is Jailer as a program's name; empty for auto.
func (f Firecracker) JailerProgram() string {
	if f.Jailer == Auto {
		return ""
	}
	return f.Jailer
}

// Limits keep one user of the daemon from taking the whole host.
type Limits struct {
	VMs   Count `yaml:"vms"`   // how many may exist
	Boots Count `yaml:"boots"` // how many may boot at once; auto: the host's CPUs, at least 2
}

// The values of Driver, RootDisk, QEMU.Accel and DNS.Listen.
const (
	None              = "none"
	Auto              = "auto"
	DriverQEMU        = "qemu"
	DriverFirecracker = "firecracker"
	DriverFake        = "fake"
	DiskQCOW2         = "qcow2"
	DiskReflink       = "reflink"
	DiskDMSnap        = "dmsnap"
	DiskSparse        = "sparse"
	AccelKVM          = "kvm"
	AccelTCG          = "tcg"
)

// Default returns the configuration of a host without a config file.
func Default() Config {
	return Config{
		Driver:   Auto,
		RootDisk: Auto,
		LogLevel: "info",
		VM: VM{
			CPUs:        0,
			Memory:      0,
			Disk:        0,
			Image:       "debian",
			Kernel:      "debian",
			Net:         model.NetUser,
			StopTimeout: Duration(20 * time.Second),
		},
		QEMU: QEMU{
			Binary: "qemu-system-x86_64",
			Accel:  Auto,
		},
		Firecracker: Firecracker{
			Binary: "firecracker",
			Jailer: Auto,
			Jail:   true,
		},
		Network: Network{
			Bridge: "bgr0",
			MTU:    1500,
			Pool:   4,

			Loopback: Prefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 42, 0, 0}), 16)),
		},
		DNS:    DNS{Listen: Auto},
		Images: Images{Platform: Auto},
		Limits: Limits{
			VMs:   2000,
			Boots: 0,
		},
	}
}

// Host is what the auto values are taken from.
type Host struct {
	CPUs        int
	MemoryBytes int64
	UID         int   // of the daemon
	DiskBytes   int64 // size of the file system that holds the state directory
}

// DetectHost reads the size of this machine, and of the file system where the
// directory state is or would be made. What the kernel does not say is zero.
func DetectHost(state string) Host {
	h := Host{CPUs: runtime.NumCPU(), UID: os.Geteuid()}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		h.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(state, &fs)
		if err == nil {
			h.DiskBytes = int64(fs.Blocks) * fs.Bsize
		}
		if !errors.Is(err, unix.ENOENT) || state == filepath.Dir(state) {
			return h
		}
		state = filepath.Dir(state)
	}
}

// Resolve returns c with every auto value replaced by the one for host h.
// Driver and accelerator stay: what they mean takes a probe, not arithmetic.
func (c Config) Resolve(h Host) Config {
	if c.VM.CPUs == 0 {
		c.VM.CPUs = Count(min(max(h.CPUs/2, 1), 4))
	}
	if c.VM.Memory == 0 {
		// Whole MiB: a VM's memory is counted in them.
		eighth := AutoSize(h.MemoryBytes / 8 / MiB * MiB)
		c.VM.Memory = min(max(eighth, 1*GiB), 8*GiB)
	}
	if c.VM.Disk == 0 {
		// A disk larger than what it lies on is refused, and so would be every VM.
		holds := AutoSize(h.DiskBytes / GiB * GiB)
		c.VM.Disk = min(max(holds, 4*GiB), 16*GiB)
	}
	if c.Images.Cache == 0 {
		c.Images.Cache = min(max(AutoSize(h.DiskBytes/10/GiB*GiB), 2*GiB), 32*GiB)
	}
	if c.Images.MaxSize == 0 {
		c.Images.MaxSize = 128 * GiB
	}
	if c.Images.MaxFiles == 0 {
		c.Images.MaxFiles = 2_000_000
	}
	if c.Limits.Boots == 0 {
		c.Limits.Boots = Count(max(h.CPUs, 2))
	}
	if c.DNS.Listen == Auto {
		// Not an address that other name servers of a host take. Every user has a
		// port, below those the kernel gives to outgoing connections.
		port := uint16(53)
		if h.UID != 0 {
			port = uint16(20000 + h.UID%10000)
		}
		c.DNS.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 42}), port).String()
	}
	return c
}
