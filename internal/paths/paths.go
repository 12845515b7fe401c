// Package paths names every file, directory and socket banger makes, once.
// docs/internals.md explains each; a test keeps the two equal.
package paths

import (
	"os"
	"path/filepath"

	"banger/internal/errdefs"
)

// Names below the state directory.
const (
	DatabaseFile  = "banger.db"    // SQLite: what is durable
	LockFile      = "bangerd.lock" // held by the one daemon of this directory; holds its pid
	SocketFile    = "bangerd.sock" // the API of a daemon that is not the system's
	DaemonLogFile = "bangerd.log"  // the daemon's log when the CLI started it
	AccelFile     = "accel.json"   // verdict of the accelerator probe, per boot
	ImagesDir     = "images"       // images/<id>/
	KernelsDir    = "kernels"      // kernels/<id>/
	InitramfsDir  = "initramfs"    // initramfs/<hash>.cpio
	VMsDir        = "vms"          // vms/<id>/
	CatalogsDir   = "catalogs"     // the last of each catalog, with its signature
	CacheDir      = "cache"        // content of images from registries, by digest
	UsernetSocket = "usernet.sock" // control socket of the user-mode network helper
	UsernetLog    = "usernet.log"  // its log
	StagingPrefix = ".staging-"    // sibling of the final name while something is being made
	CorruptSuffix = ".corrupt-"    // a database that could not be read is kept under this
)

// Names in images/<id>/.
const (
	RootfsFile = "rootfs.ext4"
)

// Names in a staging directory.
const (
	ElsewhereFile = "elsewhere" // path of what is being made outside of the state directory
)

// Names in kernels/<id>/.
const (
	VmlinuxFile      = "vmlinux"
	BzImageFile      = "bzImage"
	EarlyModulesDir  = "early"        // modules the initramfs loads
	EarlyOrderFile   = "order"        // in early/: file names in load order, one a line
	MMIOOrderFile    = "order-mmio"   // in early/: the same for a machine without PCI
	LateOrderFile    = "order-late"   // in early/: those that may be loaded once the root is there
	ModulesImageFile = "modules.ext4" // the full tree of /lib/modules/<release>
	KernelConfigFile = "config"
)

// Names in vms/<id>/. They are short and used relative to that directory, which
// keeps sockets under the 108-byte limit wherever the state directory is.
const (
	RootDiskFile   = "root.qcow2"   // the root disk as an overlay
	RootRawFile    = "root.raw"     // the same as a file of its own
	RootCOWFile    = "root.cow"     // the same by device-mapper: what differs from the image
	RootNode       = "root.dev"     // and the node by which the VMM opens it, while it is active
	HandlesFile    = "handles.json" // scratch: pid, start time, sockets of the running VMM
	QMPSocket      = "qmp.sock"
	AgentSocket    = "agent.sock" // the guest channel
	NetSocket      = "net.sock"   // QEMU listens, usernet connects
	ConsoleLog     = "console.log"
	VMMLog         = "vmm.log"
	FirecrackerDir = "fc"           // Firecracker's working directory when it is not jailed
	MetricsSum     = "metrics.json" // scratch: what Firecracker's metrics come to, up to a place in them
	JailDir        = "jail"         // base of the jailer: jail/<program>/vm/root/ is the jailed one's root
	WorkspacesDir  = "workspaces"   // what was sent into workspaces, a file for each, by id
	FakeRoot       = "fake-root"    // the fake driver's file system of the guest
	SSHHostKey     = "ssh_host_key" // by which SSH clients know this VM; made when one first comes
	FakeKnobs      = "fake.json"    // read by the fake driver: how this VM is to fail
)

// Names in Firecracker's working directory, or in its jail; AgentSocket as well.
const (
	APISocket   = "api.sock"
	MetricsFile = "metrics" // a line of JSON per minute
)

// Names of what SSH clients of a user need, in its directory.
const (
	SSHConfigFile = "config"      // for OpenSSH, to be included
	SSHKnownHosts = "known_hosts" // host keys of VMs, as their daemons gave them
	SSHClientKey  = "id_ed25519"  // by which VMs know this user
	SSHPublicKey  = "id_ed25519.pub"
)

// Well-known places.
const (
	SystemStateDir = "/var/lib/banger"
	SystemSocket   = "/run/banger/bangerd.sock"
	SystemConfig   = "/etc/banger/config.yaml"
	CgroupDir      = "/sys/fs/cgroup/banger"               // of root's daemon: one control group per jailed VMM
	SystemUnit     = "/etc/systemd/system/bangerd.service" // runs root's daemon where it was installed
	SystemdDir     = "/run/systemd/system"                 // systemd's own; it is there where systemd is the init
)

// The programs, in the bin/ of a prefix.
const (
	CLIProgram    = "banger"
	DaemonProgram = "bangerd"
	AgentProgram  = "banger-agent"
)

// Environment variables.
const (
	EnvStateDir = "BANGER_STATE_DIR" // overrides the state directory (and so the socket)
	EnvSocket   = "BANGER_SOCKET"    // overrides the socket the CLI talks to
	EnvConfig   = "BANGER_CONFIG"    // overrides the config file
	EnvLogLevel = "BANGER_LOG_LEVEL"
	EnvFake     = "BANGER_FAKE" // as FakeKnobs, for all VMs of the fake driver
)

// MaxSocketPath is how long a unix socket path may be: sun_path holds 108 bytes
// and the last one ends the string.
const MaxSocketPath = 107

// Layout is the set of paths under one state directory.
type Layout struct {
	State  string // absolute
	Socket string // absolute; the API socket
}

// System returns the layout of root's daemon.
func System() Layout { return Layout{State: SystemStateDir, Socket: SystemSocket} }

// Default returns the layout of this user: the environment's, root's system
// directory, or the user's own under XDG_STATE_HOME. The daemon's socket lies in
// the state directory (not in a runtime directory that vanishes at logout),
// except for the system daemon's.
func Default() (Layout, error) {
	if dir := os.Getenv(EnvStateDir); dir != "" {
		return At(dir)
	}
	if os.Geteuid() == 0 {
		return System(), nil
	}
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return Layout{}, errdefs.Invalid("find the home directory: %w", err).
				WithHint("set HOME or %s", EnvStateDir)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return At(filepath.Join(base, "banger"))
}

// At returns the layout of a daemon that keeps everything under dir.
func At(dir string) (Layout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Layout{}, errdefs.Invalid("resolve state directory %q: %w", dir, err)
	}
	return Layout{State: abs, Socket: filepath.Join(abs, SocketFile)}, nil
}

// ConfigFile returns the config file of this user; it need not exist.
func ConfigFile() string {
	if f := os.Getenv(EnvConfig); f != "" {
		return f
	}
	if os.Geteuid() == 0 {
		return SystemConfig
	}
	base := os.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return SystemConfig
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "banger", "config.yaml")
}

// SSHDir is the directory of what this user's SSH clients need, whatever daemon the VMs are
// of. It need not exist.
func SSHDir() (string, error) {
	base, err := os.UserConfigDir()
	if err != nil {
		return "", errdefs.Invalid("find the directory of your configuration: %w", err).WithHint("set HOME")
	}
	return filepath.Join(base, "banger", "ssh"), nil
}

// CheckSocket refuses a socket path the kernel would refuse, before anything is made.
func CheckSocket(path string) error {
	if len(path) <= MaxSocketPath {
		return nil
	}
	return errdefs.Invalid("socket path %q has %d bytes; the kernel allows %d", path, len(path), MaxSocketPath).
		WithHint("use a shorter state directory: set %s", EnvStateDir)
}

// Database and the methods below name one file or directory of the layout.
func (l Layout) Database() string { return filepath.Join(l.State, DatabaseFile) }

// Lock is the daemon's lock file.
func (l Layout) Lock() string { return filepath.Join(l.State, LockFile) }

// DaemonLog is the daemon's log file.
func (l Layout) DaemonLog() string { return filepath.Join(l.State, DaemonLogFile) }

// Accel is the cached accelerator verdict.
func (l Layout) Accel() string { return filepath.Join(l.State, AccelFile) }

// Images is the directory of managed images.
func (l Layout) Images() string { return filepath.Join(l.State, ImagesDir) }

// Image is the directory of one managed image.
func (l Layout) Image(id string) string { return filepath.Join(l.Images(), id) }

// Kernels is the directory of kernels.
func (l Layout) Kernels() string { return filepath.Join(l.State, KernelsDir) }

// Kernel is the directory of one kernel.
func (l Layout) Kernel(id string) string { return filepath.Join(l.Kernels(), id) }

// Initramfs is the directory of built initramfs files.
func (l Layout) Initramfs() string { return filepath.Join(l.State, InitramfsDir) }

// Catalogs is the directory of the catalogs that were seen last.
func (l Layout) Catalogs() string { return filepath.Join(l.State, CatalogsDir) }

// Cache is the directory of what was fetched of images.
func (l Layout) Cache() string { return filepath.Join(l.State, CacheDir) }

// VMs is the directory of VM directories.
func (l Layout) VMs() string { return filepath.Join(l.State, VMsDir) }

// VM is the directory of one VM.
func (l Layout) VM(id string) string { return filepath.Join(l.VMs(), id) }

// Usernet is the control socket of the user-mode network helper.
func (l Layout) Usernet() string { return filepath.Join(l.State, UsernetSocket) }

// StateNames are the names of all that lies in a state directory. The database has
// others beside it that begin with its name.
func StateNames() []string {
	return []string{
		DatabaseFile, LockFile, SocketFile, DaemonLogFile, AccelFile, ImagesDir, KernelsDir, InitramfsDir, CatalogsDir, CacheDir, VMsDir,
		UsernetSocket, UsernetLog,
	}
}

// UsernetLogFile is the helper's log.
func (l Layout) UsernetLogFile() string { return filepath.Join(l.State, UsernetLog) }
