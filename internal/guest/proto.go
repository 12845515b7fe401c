package guest

// Channels of a frame.
const (
	ChanStdin   byte = 1 // host to guest; a frame of length zero is end of file
	ChanStdout  byte = 2
	ChanStderr  byte = 3
	ChanControl byte = 4 // JSON: Request first, then Control both ways
)

// Limits of the wire format. A peer that exceeds one is cut off.
const (
	MaxFrame        = 256 << 10 // bytes of payload in one frame
	MaxControl      = 64 << 10  // bytes of payload in one control frame, but for the first
	MaxRequest      = 256 << 10 // bytes of the first control frame
	InitialWindow   = 1 << 20   // bytes of stdin a host may send before the agent grants more
	NonceSize       = 16
	ProtocolVersion = 1
)

// Magics of the handshake; 16 bytes each.
const (
	HelloMagic = "\x00banger-hello-1\n"
	AckMagic   = "\x00banger-ack--1\n\x00"
	NakMagic   = "\x00banger-nak--1\n\x00"
)

// PortName is the virtio-serial port the agent serves.
const PortName = "banger.agent.0"

// VsockPort is the vsock port the agent listens on where MachineMMIO says so. Once
// it does, it connects to the same port of the host and hangs up: a host that came
// too early need not try again and again.
const VsockPort = 1024

// Kernel parameters by which a driver tells the agent what machine it is in.
const (
	// ParamMachine is MachineMMIO, or absent: devices on PCI, disks with serials,
	// the channel on a virtio-serial port, power-off by ACPI.
	ParamMachine = "banger.machine"
	// MachineMMIO: devices on MMIO, disks in the order of ParamDisks, the channel on
	// vsock, and nothing ends the machine but a reset.
	MachineMMIO = "mmio"
	// ParamDisks lists the serials of the disks, joined by commas, in the order the
	// machine has the disks.
	ParamDisks = "banger.disks"
)

// Ready is what the agent says of itself in every handshake.
type Ready struct {
	Protocol     int    `json:"protocol"`
	AgentVersion string `json:"agent_version"`
	Release      string `json:"release"`         // uname -r
	RootReady    bool   `json:"root_ready"`      // the root is mounted: commands can run
	InitSystem   string `json:"init"`            // "systemd", "other", "none" (the agent is PID 1)
	Error        string `json:"error,omitempty"` // why the root could not be made ready
	UptimeMillis int64  `json:"uptime_millis"`
}

// Kind is what a stream is for.
type Kind string

// The kinds of stream.
const (
	KindPing       Kind = "ping"        // answered by Control{Type: done}; repeatable on one stream: each ping control is answered
	KindConfigure  Kind = "configure"   // identity of this VM; answered by done
	KindExec       Kind = "exec"        // run a command
	KindCopyIn     Kind = "copy-in"     // stdin is a tar stream; answered by done
	KindCopyOut    Kind = "copy-out"    // stdout is a tar stream, then done
	KindStat       Kind = "stat"        // describe one path; answered by done with Stat
	KindShutdown   Kind = "shutdown"    // orderly power-off; answered by done once it is certain to happen
	KindDial       Kind = "dial"        // connect to a TCP port of the guest's own: see Dial
	KindSSH        Kind = "ssh"         // serve the SSH protocol: see SSH
	KindSync       Kind = "sync"        // flush file systems; answered by done
	KindGrow       Kind = "grow"        // make the root file system as large as its disk; answered by done
	KindWaitSystem Kind = "wait-system" // answered by done when the init system has settled
	KindMount      Kind = "mount"       // mount a directory of the host: see Mount
	KindBenchSpawn Kind = "bench-spawn" // measure fork+exec+wait of a command; answered by done with Nanos

	KindWorkspacePut     Kind = "workspace-put"     // bring a tree, or what of it has changed, in: see WorkspacePut
	KindWorkspaceChanges Kind = "workspace-changes" // what of a workspace is not as it was sent: see WorkspaceChanges
	KindWorkspaceForget  Kind = "workspace-forget"  // forget what was put there; answered by done
)

// Request opens a stream. Exactly the member that Kind names is set.
type Request struct {
	Kind       Kind        `json:"kind"`
	Exec       *Exec       `json:"exec,omitempty"`
	Configure  *Configure  `json:"configure,omitempty"`
	CopyIn     *CopyIn     `json:"copy_in,omitempty"`
	CopyOut    *CopyOut    `json:"copy_out,omitempty"`
	Stat       *StatPath   `json:"stat,omitempty"`
	BenchSpawn *BenchSpawn `json:"bench_spawn,omitempty"`
	Dial       *Dial       `json:"dial,omitempty"`
	SSH        *SSH        `json:"ssh,omitempty"`
	Grow       *Grow       `json:"grow,omitempty"`
	Mount      *Mount      `json:"mount,omitempty"`
	Shutdown   *Shutdown   `json:"shutdown,omitempty"` // may be left out

	WorkspacePut     *WorkspacePut     `json:"workspace_put,omitempty"`
	WorkspaceChanges *WorkspaceChanges `json:"workspace_changes,omitempty"`
	WorkspaceForget  *WorkspaceForget  `json:"workspace_forget,omitempty"`
	// Ephemeral is for the daemon, not the agent: delete the VM when this stream ends.
	Ephemeral bool `json:"ephemeral,omitempty"`
}

// Exec runs a command. An empty Args runs the user's login shell. Empty User and
// Workdir take the defaults given by Configure. Env is added to the defaults.
type Exec struct {
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"` // KEY=VALUE
	Workdir string   `json:"workdir,omitempty"`
	User    string   `json:"user,omitempty"` // name, uid, name:group or uid:gid
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"` // false: the command's stdin is /dev/null
	// StopSignal is the number of the signal that the command gets first when the machine
	// is shut down; 0: it is ended with everything else.
	StopSignal int `json:"stop_signal,omitempty"`
}

// Shutdown says how long commands with a StopSignal have to end by it, before the
// machine goes down all the same; 0: 10 s.
type Shutdown struct {
	GraceMillis int64 `json:"grace_millis,omitempty"`
}

// Configure gives a booted guest its identity. The agent applies what is set.
type Configure struct {
	Hostname  string   `json:"hostname,omitempty"`
	BootID    string   `json:"boot_id,omitempty"`
	UnixNanos int64    `json:"unix_nanos,omitempty"` // wall clock now
	Net       *NetConf `json:"net,omitempty"`        // nil: link down, loopback only
	User      string   `json:"user,omitempty"`       // default user of commands; empty: root
	Workdir   string   `json:"workdir,omitempty"`    // default directory; empty: the user's home
	Env       []string `json:"env,omitempty"`        // added to every command
	Dirs      []string `json:"dirs,omitempty"`       // absolute; made if they are missing
}

// NetConf is the guest's network configuration.
type NetConf struct {
	Address  string   `json:"address"` // CIDR, e.g. 192.168.127.2/24
	Gateway  string   `json:"gateway"`
	Address6 string   `json:"address6,omitempty"` // a second one, of IPv6; a guest without IPv6 goes without
	Gateway6 string   `json:"gateway6,omitempty"`
	DNS      []string `json:"dns"`
	Search   string   `json:"search,omitempty"` // domain in which names of one label are looked up first; empty: none
	MTU      int      `json:"mtu,omitempty"`
	MAC      string   `json:"mac,omitempty"` // set on the card before it goes up; empty keeps it
}

// CopyIn unpacks a tar stream below Dest. Entry names are relative, never escape
// Dest (a symlink in the guest is not followed out of it by an entry's parents).
type CopyIn struct {
	Dest  string `json:"dest"`            // absolute, or relative to the default directory
	User  string `json:"user,omitempty"`  // owner of everything; empty keeps the tar's ids
	Mkdir bool   `json:"mkdir,omitempty"` // make Dest (and parents), owned by User
	// File: the stream holds one regular file and Dest is its final name, or the
	// directory to put it in when Dest is an existing directory.
	File bool `json:"file,omitempty"`
}

// CopyOut packs Path: a file as one entry, a directory as its tree, with names
// relative to the parent of Path.
type CopyOut struct {
	Path string `json:"path"`
}

// StatPath asks what Path is.
type StatPath struct {
	Path string `json:"path"`
}

// Dial connects to a TCP port on a loopback address of the guest, 127.0.0.1 or else
// ::1. The agent answers with started, or with error when nobody listens. Bytes then go
// to the connection as stdin and come from it as stdout; an empty frame is the end of
// its direction, and the other goes on. Done follows when both have ended, error when
// the connection was reset. A host that closes the stream before resets it.
//
// Neither side may send faster than the other takes in: the stream itself holds it up.
type Dial struct {
	Port uint16 `json:"port"`
}

// SSH makes the stream a connection to an SSH server. The agent answers with started, or
// with error; what follows is SSH's own bytes, without frames: it has packets, ends and
// errors of its own.
type SSH struct {
	// HostKey is the seed of the server's ed25519 key, HostKeySize bytes. The daemon puts it
	// in: a client cannot choose it, and the guest keeps it nowhere.
	HostKey []byte `json:"host_key,omitempty"`
	// ClientKeys are the public keys that may log in, as lines of authorized_keys: 1 to
	// MaxClientKeys.
	ClientKeys []string `json:"client_keys"`
}

// What there may be of the keys of an SSH request.
const (
	HostKeySize   = 32
	MaxClientKeys = 16
	maxClientKey  = 16 << 10 // bytes
)

// SSHDefaultUser is the login name that stands for the default user of the VM. A user of
// the image who is called so is reached by number.
const SSHDefaultUser = "banger"

// Grow says how large the root disk is now, in bytes: the guest's kernel may not have
// heard yet.
type Grow struct {
	Bytes int64 `json:"bytes"`
}

// WorkspacePut brings a tree into a workspace, all of it or what has changed. Stdin is a
// section of a manifest (package guest/manifest) with what will be written and what goes,
// each with the hashes of what was sent before and of what will be; then a tar stream as
// of copy-in. Between the two the agent answers: with started, or with an error of class
// failed_precondition when the guest has changed what would be overwritten, and a section
// of a manifest on stdout before either that names it. An error at that point says that
// nothing was changed. Done follows the tar stream.
type WorkspacePut struct {
	ID       string `json:"id"`             // of the workspace: 12 hex digits
	Dest     string `json:"dest"`           // absolute; made if it is missing
	User     string `json:"user,omitempty"` // owner of everything; empty: root
	Fresh    bool   `json:"fresh,omitempty"`
	Force    bool   `json:"force,omitempty"` // what the guest changed is overwritten
	ReadOnly bool   `json:"read_only,omitempty"`
}

// WorkspaceChanges asks what of a workspace is not as it was sent. Stdin is a section of
// a manifest that names files which are wanted in any case; stdout is a tar stream (see
// guest/agent/record), then comes done.
type WorkspaceChanges struct {
	ID      string `json:"id"`
	Dest    string `json:"dest"`
	Content bool   `json:"content,omitempty"` // with the files
	Git     bool   `json:"git,omitempty"`     // with references and new objects
	All     bool   `json:"all,omitempty"`     // nothing is ignored
	Plain   bool   `json:"plain,omitempty"`   // it is no repository: .bangerignore counts
	Ignore  string `json:"ignore,omitempty"`  // rules of the host's user, as .gitignore has them
}

// WorkspaceForget ends a workspace; its files stay.
type WorkspaceForget struct {
	ID string `json:"id"`
}

// MaxMountIO is how much the kernel of a guest reads from a mount, or writes to it, by one
// request, in bytes.
const MaxMountIO = 128 << 10

// Mount makes a directory of the host appear at Target, which is made if it is missing, for
// as long as the stream lasts. The agent answers with started once it is mounted. From then
// on stdout carries what the guest's kernel asks, a FUSE request a frame, and stdin what the
// host answers and tells, likewise; the host may send changed controls. The agent ends the
// stream with done when somebody in the guest has unmounted it.
type Mount struct {
	Target   string `json:"target"`         // absolute, or relative to the default directory
	User     string `json:"user,omitempty"` // owner of a Target that is made; empty: the default user
	ReadOnly bool   `json:"read_only,omitempty"`
}

// BenchSpawn asks the agent to run Args Count times, one after another.
type BenchSpawn struct {
	Args  []string `json:"args"`
	Count int      `json:"count"` // at most 10000
}

// Control is every control frame after the first.
type Control struct {
	Type ControlType `json:"type"`
	// started
	PID int `json:"pid,omitempty"`
	// exit: Code is the exit status, 128+n when signal n ended the command
	Code   int `json:"code,omitempty"`
	Signal int `json:"signal,omitempty"`
	// error
	Class   string `json:"class,omitempty"` // an errdefs.Class
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`
	// window: bytes of stdin the host may send in addition
	Bytes int64 `json:"bytes,omitempty"`
	// resize
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
	// signal: number to deliver to the command's process group
	Number int `json:"number,omitempty"`
	// done
	Nanos []int64   `json:"nanos,omitempty"` // bench-spawn: duration of each run
	Stat  *FileStat `json:"stat,omitempty"`
	State string    `json:"state,omitempty"` // wait-system: "running", "degraded", "none"
	// started, of a mount: whom what is mounted is to belong to. PID is the thread of the
	// agent's that lets programs hear of changes; what it asks for is already so.
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
	// changed: relative to what is mounted, in their order; programs of the guest are to
	// hear of it
	Changes []Change `json:"changes,omitempty"`
}

// Change is a file of a mount that the host has changed, or that is gone there.
type Change struct {
	Path []byte `json:"path"`
	Gone bool   `json:"gone,omitempty"`
	Dir  bool   `json:"dir,omitempty"`
}

// ControlType is the type of a control frame.
type ControlType string

// The control types. Ends: exit, error and done are the last frame of a stream.
const (
	ControlStarted ControlType = "started" // agent: the command runs
	ControlExit    ControlType = "exit"    // agent: the command ended, all output was sent
	ControlError   ControlType = "error"   // agent: the request failed
	ControlDone    ControlType = "done"    // agent: the request succeeded
	ControlWindow  ControlType = "window"  // agent: more stdin may be sent
	ControlResize  ControlType = "resize"  // host
	ControlSignal  ControlType = "signal"  // host
	ControlPing    ControlType = "ping"    // host, on a ping stream
	ControlChanged ControlType = "changed" // host, on a mount
)

// FileStat describes a path in the guest.
type FileStat struct {
	Mode  uint32 `json:"mode"` // st_mode
	Size  int64  `json:"size"`
	IsDir bool   `json:"is_dir"`
}

// Exit codes that are not the command's own, as a shell and env(1) use them.
const (
	ExitNotFound      = 127 // no such command in the guest
	ExitNotExecutable = 126
	ExitBanger        = 125 // banger itself failed
)
