package fcapi

// Paths of the API.
const (
	PathInstance = "/"
	PathMachine  = "/machine-config"
	PathBoot     = "/boot-source"
	PathDrives   = "/drives/" // and the id
	PathVsock    = "/vsock"
	PathEntropy  = "/entropy"
	PathBalloon  = "/balloon"
	PathStats    = "/balloon/statistics"
	PathMetrics  = "/metrics"
	PathNets     = "/network-interfaces/" // and the id
	PathActions  = "/actions"
	PathVM       = "/vm"
)

// Instance is what a Firecracker says of itself.
type Instance struct {
	State   string `json:"state"`
	Version string `json:"vmm_version"`
}

// NotStarted is the state of an instance whose CPUs have never run.
const NotStarted = "Not started"

// Machine is the shape of the VM.
type Machine struct {
	CPUs      int   `json:"vcpu_count"`
	MemoryMiB int64 `json:"mem_size_mib"`
	SMT       bool  `json:"smt"`
}

// Boot is what the VM boots.
type Boot struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args"`
}

// Drive is one disk.
type Drive struct {
	ID       string       `json:"drive_id"`
	Path     string       `json:"path_on_host"`
	Root     bool         `json:"is_root_device"`
	ReadOnly bool         `json:"is_read_only"`
	Cache    string       `json:"cache_type,omitempty"`
	Limiter  *RateLimiter `json:"rate_limiter,omitempty"`
}

// Writeback is the cache type that carries a guest's flushes to the host's disk.
const Writeback = "Writeback"

// RateLimiter bounds bytes and operations; nil: no bound.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// TokenBucket refills Size tokens in RefillMillis.
type TokenBucket struct {
	Size         int64 `json:"size"`
	RefillMillis int64 `json:"refill_time"`
}

// Vsock is the vsock device.
type Vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// Net is the network card.
type Net struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
	MAC string `json:"guest_mac,omitempty"`
}

// Balloon is the balloon device.
type Balloon struct {
	MiB          int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
	StatsSeconds int   `json:"stats_polling_interval_s"`
}

// BalloonStats is what the guest told of its memory; fields are zero when it did not.
type BalloonStats struct {
	Free      int64 `json:"free_memory"` // bytes, as the rest
	Total     int64 `json:"total_memory"`
	Available int64 `json:"available_memory"`
}

// Metrics names the file that metrics go to.
type Metrics struct {
	Path string `json:"metrics_path"`
}

// Action makes the VM do something.
type Action struct {
	Type string `json:"action_type"`
}

// The actions.
const (
	ActionStart   = "InstanceStart"
	ActionCAD     = "SendCtrlAltDel"
	ActionMetrics = "FlushMetrics"
)

// VM pauses and resumes.
type VM struct {
	State string `json:"state"`
}

// The states that VM may ask for.
const (
	StatePaused  = "Paused"
	StateResumed = "Resumed"
)
