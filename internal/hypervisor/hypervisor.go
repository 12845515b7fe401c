// Package hypervisor is the seam between banger and the programs that run
// virtual machines (VMMs).
//
// A Driver starts and finds again the VMM process of one VM. The words:
//
//	Spec     everything the VMM must be told; made by the VM service, the same
//	         for every start of a VM except for what a user changed in between
//	Handle   what identifies a started VMM process; survives the daemon as JSON
//	Machine  a live connection to one started VMM
//
// Life: Driver.Start launches a detached process and returns once the guest's
// CPUs run; it never ties the process to ctx, which bounds the launch only. A
// daemon that restarts calls Driver.Attach with the stored Handle, or with what
// Driver.Find makes out when that is lost. Machine.Done
// closes when the VMM process has ended, whoever ended it. A failed Start leaves
// no process behind. The driver owns the sockets and the logs it makes in
// Spec.Dir and replaces stale ones at Start; the VM service owns the directory,
// the disks and everything else in it.
//
// Every driver, the fake one included, passes hypervisortest.
package hypervisor

import (
	"context"
	"net"
	"time"
)

// Accel is how guest code is executed.
type Accel string

// The accelerators.
const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg"
)

// Capabilities declares what a driver can do on this host. Each comment says
// what the caller does differently.
type Capabilities struct {
	// QcowDisks: root disks may be qcow2 files with a backing file; otherwise raw.
	QcowDisks bool
	// UserNet: the driver can connect the card to a stream socket for usernet;
	// otherwise NetUser is refused.
	UserNet bool
	// Tap: the driver can connect the card to Spec.Tap; otherwise NetBridge is refused.
	Tap bool
	// Pause: Machine also implements Pauser.
	Pause bool
	// Resize: Machine also implements Resizer; otherwise disks grow only while the
	// machine does not run.
	Resize bool
	// Link: Machine.SetLink moves the network card's cable; otherwise a machine that
	// starts with LinkUp false has no card, and stays without.
	Link bool
	// DiskLimits: the driver keeps to Disk.Limit; otherwise that is refused.
	DiskLimits bool
	// MMIO: the machine has no PCI; a kernel that cannot boot in such is refused.
	MMIO bool
	// NetOverride: a restored machine's card can be connected to another tap;
	// otherwise the tap must have the name it had when the machine was saved.
	NetOverride bool
	// VsockOverride: a restored machine's channel can have another path; otherwise it
	// has the one it was saved with, relative to the VM directory.
	VsockOverride bool
}

// Info describes a driver on this host.
type Info struct {
	Driver       string // "qemu", "firecracker", "fake"
	Binary       string // absolute path of the VMM
	Version      string // as the VMM reports it
	Accel        Accel
	Machine      string // versioned machine type new VMs get
	CPUModel     string // named, version-stable CPU model new VMs get
	NestedModel  string // the same for VMs that run VMs themselves; empty: this host gives none
	Capabilities Capabilities
}

// Driver drives one kind of VMM.
type Driver interface {
	// Name is the driver's name as stored in a VM's row.
	Name() string
	// Info probes the VMM. It errors with class unsupported, and a hint, when the
	// VMM is missing or too old. The answer is cached while the binary is unchanged.
	Info(ctx context.Context) (Info, error)
	// Start launches a VMM for spec and returns when its CPUs run.
	Start(ctx context.Context, spec Spec) (Machine, error)
	// Attach finds a VMM started earlier. It errors with class not_found when that
	// process is gone (or its pid now belongs to another), after which Cleanup may
	// be called, and with class unavailable when another process serves in the
	// directory, or none answers. It must not disturb the guest.
	Attach(ctx context.Context, spec Spec, h Handle) (Machine, error)
	// Find identifies the VMM that serves the API socket in dir, or works there without
	// one, for a daemon that has lost its handle. It errors with class not_found when
	// there is none. What of the handle only a connection can tell is missing; Attach
	// adds it.
	Find(ctx context.Context, dir string) (Handle, error)
	// Cleanup kills what a lost or half-started VMM of this VM may have left, found
	// by handle and by what it holds in dir, and removes its sockets.
	// It is idempotent, and safe when nothing was ever started (zero Handle).
	Cleanup(ctx context.Context, dir string, h Handle) error
}

// Machine is a live VMM.
type Machine interface {
	// Handle identifies the process.
	Handle() Handle
	// DialAgent opens the guest channel: a raw byte stream to the agent. At most
	// one connection is open at a time; close it before dialing again.
	DialAgent(ctx context.Context) (net.Conn, error)
	// PowerButton asks the guest's firmware for an orderly power-off.
	PowerButton(ctx context.Context) error
	// SetLink connects or disconnects the network card's cable. Without
	// Capabilities.Link only what is so already succeeds.
	SetLink(ctx context.Context, up bool) error
	// Stalled says since when the guest stands still because a disk of it cannot grow,
	// for want of space on the host (zero: it does not). The channel closes when that
	// changes.
	Stalled() (since time.Time, changed <-chan struct{})
	// Continue lets a stalled guest try again what it could not write, and returns when
	// it runs. It stalls again when there is still no space. On a guest that is not
	// stalled it does nothing.
	Continue(ctx context.Context) error
	// Kill ends the VMM at once and waits until the process is gone.
	Kill(ctx context.Context) error
	// Done is closed when the VMM process has ended.
	Done() <-chan struct{}
	// Exit says how the process ended; valid after Done.
	Exit() Exit
	// Close releases the daemon's connections and leaves the VMM running.
	Close() error
}

// Exit is how a VMM ended.
type Exit struct {
	Known  bool // false when the process was not our child and its status is lost
	Code   int
	Signal int    // non-zero when a signal ended it
	Detail string // last lines of the VMM's log when it failed; may be empty
}

// Spec is everything a VMM is told. Paths are absolute; the driver runs the VMM
// in Dir and uses names relative to it for what lies there.
type Spec struct {
	VMID      string
	Dir       string // the VM directory; the VMM's working directory
	CPUs      int
	MemoryMiB int64
	Machine   string // as in Info at the time the VM was made
	CPUModel  string
	Vmlinux   string
	BzImage   string // preferred by drivers that boot it faster; may be empty
	Initramfs string
	Cmdline   string // kernel command line; the driver appends what its devices need
	Disks     []Disk // at most 8; the first is the root disk
	LinkUp    bool   // state of the network card's cable at start
	MAC       string // the same for every VM: the guest learns its own later
	// Tap names the host's network device that the card is connected to; empty: a
	// socket. Frames through it carry virtio-net headers. It is UID's to open, and root's:
	// a VMM that can be handed an open descriptor gets that, and a network namespace of
	// its own, with nothing in it; only one that cannot opens the device by name, as UID,
	// in the host's. Attach needs none.
	Tap      string
	UID, GID int // identity to run the VMM as when the daemon is root; 0 keeps the daemon's
}

// DiskFormat is the format of a disk file.
type DiskFormat string

// The disk formats.
const (
	FormatRaw   DiskFormat = "raw"
	FormatQcow2 DiskFormat = "qcow2"
)

// Disk is one virtio disk; the guest finds it by serial.
type Disk struct {
	Serial   string // at most 20 bytes
	Path     string
	Format   DiskFormat
	ReadOnly bool
	Backing  string // raw image that a qcow2 disk is a view of; empty: as its header says
	Limit    DiskLimit
}

// DiskLimit bounds what a guest does with a disk, reads and writes together, in the long
// run: for a moment it may do more. Zero is no bound.
type DiskLimit struct {
	BytesPerSecond int64
	OpsPerSecond   int64
}

// Serials of the disks every VM has.
const (
	SerialRoot    = "root"
	SerialModules = "modules"
)

// Handle identifies a VMM process across daemon restarts. StartTime (clock ticks
// since boot, field 22 of /proc/<pid>/stat) guards against a reused pid.
type Handle struct {
	Driver    string `json:"driver"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	Accel     Accel  `json:"accel,omitempty"`
	Version   string `json:"version,omitempty"`
}

// Stats is what a machine has used since its VMM started, and what it uses now. What is
// not known is nil; what the guest or a VMM says of itself is only its word.
type Stats struct {
	CPU    time.Duration // of the VMM's process, with the guest in it
	Memory int64         // bytes of the host's memory it has
	Guest  *GuestMemory
	Disk   *Transfer // all disks together
	Net    *Transfer // read: to the guest, packets
}

// GuestMemory is how a guest uses its memory, in bytes.
type GuestMemory struct{ Total, Free, Available int64 }

// Transfer counts bytes, and operations or packets.
type Transfer struct{ ReadBytes, WriteBytes, Reads, Writes int64 }

// Sampler is implemented by machines that can say what they use.
type Sampler interface {
	Stats(ctx context.Context) (Stats, error)
}

// Pauser is implemented by machines whose driver declares Capabilities.Pause.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Resizer is implemented by machines whose driver declares Capabilities.Resize.
type Resizer interface {
	// ResizeDisk makes the disk with that serial larger, to so many bytes, and tells the
	// guest. A file grows with it; a block device must have grown already.
	ResizeDisk(ctx context.Context, serial string, bytes int64) error
}
