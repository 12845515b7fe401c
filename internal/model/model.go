// Package model holds the records banger keeps and the states they move
// through. It does no I/O and imports nothing of banger but errdefs.
package model

import "time"

// Net is how a VM's network card is connected.
type Net string

// The network modes.
const (
	NetUser   Net = "user"   // user-mode network: outbound only, no root needed
	NetBridge Net = "bridge" // a tap on the host's bridge, an address of its own; needs a daemon that is root
	NetNone   Net = "none"   // the card is there, its link is down
)

// VM is one sandbox machine. It describes only what is durable: process ids,
// sockets and devices of a running VM live in its handles.json.
type VM struct {
	ID        string // 12 lower-case hex digits, random
	Name      string // DNS label, unique
	State     State
	ImageID   string // the image its root disk is a view of
	ImageRef  string // what the user asked for, for display
	KernelID  string
	Network   string // the named network it is on; empty: none
	Spec      VMSpec
	VMMUID    int    // uid its VMM runs as when the daemon is root; 0: the daemon's own
	BootID    string // random, new at every start; empty when never started
	LastError string // what went wrong last, for people
	Ports     []Port // to be forwarded to one that is made; not kept in its row
	CreatedAt time.Time
	UpdatedAt time.Time
	StartedAt time.Time // zero when never started
}

// VMSpec is the shape of a VM. A memory snapshot depends on Driver, Machine and
// CPUModel, which are fixed when the VM is made, and on CPUs, MemoryMiB and DiskBytes,
// of which a running VM changes no more than that its disk grows.
type VMSpec struct {
	CPUs       int               `json:"cpus"`
	MemoryMiB  int64             `json:"memory_mib"`
	DiskBytes  int64             `json:"disk_bytes"`
	DiskBPS    int64             `json:"disk_bps,omitempty"`  // bytes per second, of the root disk; 0: no bound
	DiskIOPS   int64             `json:"disk_iops,omitempty"` // operations per second
	Net        Net               `json:"net"`
	NoNAT      bool              `json:"no_nat,omitempty"`      // on the bridge: it reaches nothing beyond the host
	ExposeHost []uint16          `json:"expose_host,omitempty"` // on the bridge: ports of the host that it reaches; in order, each once
	Driver     string            `json:"driver"`                // "qemu", "firecracker", "fake"
	DriverWhy  string            `json:"driver_why,omitempty"`  // for people
	Machine    string            `json:"machine"`               // versioned machine type, e.g. pc-q35-7.2
	CPUModel   string            `json:"cpu_model"`             // named, version-stable CPU model
	DiskMethod string            `json:"disk_method,omitempty"` // how its root disk is made; empty: qcow2, of rows from before there was a choice
	DiskWhy    string            `json:"disk_why,omitempty"`    // for people
	Nested     bool              `json:"nested,omitempty"`      // the guest may run VMs with KVM itself
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`    // default user of commands; empty: the image's
	Workdir    string            `json:"workdir,omitempty"` // default directory of commands; empty: the image's
	AutoRemove bool              `json:"auto_remove,omitempty"`
}

// Network is a named network of the bridge: VMs on it see each other.
type Network struct {
	Name string   // DNS label, unique
	VMs  []string // names of the VMs on it
}

// Image is a bootable root filesystem.
type Image struct {
	ID        string // 12 hex digits
	Name      string // unique, e.g. "debian"
	Managed   bool   // banger owns the files; otherwise Path points at the user's file
	Path      string // absolute path of the ext4 file
	SizeBytes int64  // size of the filesystem, apparent
	KernelID  string // kernel it prefers; empty: the default kernel
	Config    ImageConfig
	Digest    string // content id of what it was made from; empty when unknown
	Source    string // where it came from; of an image from elsewhere, the reference in full
	Layers    []ImageLayer
	CreatedAt time.Time
}

// ImageLayer is one of what an image from elsewhere was made of, the lowest first.
type ImageLayer struct {
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"size"` // as it is stored, mostly compressed
}

// ImageConfig is how the image's author wants commands to run.
type ImageConfig struct {
	User       string   `json:"user,omitempty"` // empty: root
	Workdir    string   `json:"workdir,omitempty"`
	Env        []string `json:"env,omitempty"` // KEY=VALUE
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`

	StopSignal   string            `json:"stop_signal,omitempty"`   // of the command, e.g. "SIGINT"; empty: SIGTERM
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // e.g. "80/tcp"
	Volumes      []string          `json:"volumes,omitempty"`       // absolute paths in the guest
	Labels       map[string]string `json:"labels,omitempty"`

	Platform string `json:"platform,omitempty"` // what its programs are for, e.g. "linux/arm64"; empty: this host
}

// Kernel is a bootable kernel with what it needs to reach a root filesystem.
type Kernel struct {
	ID          string // 12 hex digits, derived from the content
	Name        string // unique, e.g. "debian"
	Release     string // uname -r
	VmlinuxPath string // ELF image
	BzImagePath string // compressed image; empty when there is none
	EarlyDir    string // directory of the modules the initramfs loads, plus "order"
	ModulesPath string // ext4 image of /lib/modules/<release>; empty when built in
	Source      string
	CreatedAt   time.Time
}
