package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api/bangerv1"
)

// The views are what --json prints. Their field names are a promise: fields may be
// added, never renamed.

// vmView is a VM. Sizes are in the unit of their name; times are RFC 3339, null
// where there is none.
type vmView struct {
	ID            string     `json:"id"`
	Name          string     `json:"name"`
	State         string     `json:"state"`
	Busy          string     `json:"busy"`
	Paused        string     `json:"paused"`
	Image         string     `json:"image"`
	ImageID       string     `json:"image_id"`
	Kernel        string     `json:"kernel"`
	KernelID      string     `json:"kernel_id"`
	CPUs          int32      `json:"cpus"`
	MemoryMiB     int64      `json:"memory_mib"`
	DiskBytes     int64      `json:"disk_bytes"`
	DiskUsedBytes int64      `json:"disk_used_bytes"`
	DiskBPS       int64      `json:"disk_bytes_per_second"` // bounds; 0: none
	DiskIOPS      int64      `json:"disk_ops_per_second"`
	Net           string     `json:"net"`
	Network       string     `json:"network"` // named, on the bridge
	NoNAT         bool       `json:"no_nat"`
	ExposeHost    []uint32   `json:"expose_host"`
	Addresses     []string   `json:"addresses"` // at which the host reaches it
	DNSName       string     `json:"dns_name"`
	Ports         []portView `json:"ports"`
	User          string     `json:"user"`
	Workdir       string     `json:"workdir"`
	AutoRemove    bool       `json:"auto_remove"`
	Driver        string     `json:"driver"`
	DriverWhy     string     `json:"driver_why"`
	DiskMethod    string     `json:"disk_method"`
	DiskWhy       string     `json:"disk_why"`
	Accel         string     `json:"accel"`
	Machine       string     `json:"machine"`
	CPUModel      string     `json:"cpu_model"`
	VMMVersion    string     `json:"vmm_version"`
	PID           int32      `json:"pid"`
	BootID        string     `json:"boot_id"`
	Dir           string     `json:"dir"`
	LastError     string     `json:"last_error"`
	CreatedAt     *time.Time `json:"created_at"`
	StartedAt     *time.Time `json:"started_at"`

	ImageConfig *imageConfigView `json:"image_config"` // of the image it was made from; null in lists
}

// imageConfigView is how an image's author wants it to be run.
type imageConfigView struct {
	User         string            `json:"user"`
	Workdir      string            `json:"workdir"`
	Env          []string          `json:"env"`
	Entrypoint   []string          `json:"entrypoint"`
	Cmd          []string          `json:"cmd"`
	StopSignal   string            `json:"stop_signal"`
	ExposedPorts []string          `json:"exposed_ports"`
	Volumes      []string          `json:"volumes"`
	Labels       map[string]string `json:"labels"`
}

func viewImageConfig(c *bangerv1.ImageConfig) *imageConfigView {
	if c == nil {
		return nil
	}
	return &imageConfigView{
		User: c.GetUser(), Workdir: c.GetWorkdir(), Env: list(c.GetEnv()), Entrypoint: list(c.GetEntrypoint()), Cmd: list(c.GetCmd()),
		StopSignal: c.GetStopSignal(), ExposedPorts: list(c.GetExposedPorts()), Volumes: list(c.GetVolumes()), Labels: c.GetLabels(),
	}
}

func viewVM(v *bangerv1.VM) vmView {
	return vmView{
		ID: v.GetId(), Name: v.GetName(), State: v.GetState(), Busy: v.GetBusy(), Paused: v.GetPaused(),
		Image: v.GetImage(), ImageID: v.GetImageId(), Kernel: v.GetKernel(), KernelID: v.GetKernelId(),
		CPUs: v.GetCpus(), MemoryMiB: v.GetMemoryMib(), DiskBytes: v.GetDiskBytes(), DiskUsedBytes: v.GetDiskUsedBytes(),
		DiskBPS: v.GetDiskBytesPerSecond(), DiskIOPS: v.GetDiskOpsPerSecond(),
		Net: v.GetNet(), Network: v.GetNetwork(), NoNAT: v.GetNoNat(), ExposeHost: list(v.GetExposeHost()), Addresses: list(v.GetAddresses()), DNSName: v.GetDnsName(), Ports: views(v.GetPorts(), viewPort), User: v.GetUser(), Workdir: v.GetWorkdir(), AutoRemove: v.GetAutoRemove(),
		Driver: v.GetDriver(), DriverWhy: v.GetDriverWhy(), DiskMethod: v.GetDiskMethod(), DiskWhy: v.GetDiskWhy(), Accel: v.GetAccel(), Machine: v.GetMachine(), CPUModel: v.GetCpuModel(),
		VMMVersion: v.GetVmmVersion(), PID: v.GetPid(), BootID: v.GetBootId(), Dir: v.GetDir(), LastError: v.GetLastError(),
		CreatedAt: viewTime(v.GetCreatedAt()), StartedAt: viewTime(v.GetStartedAt()),
		ImageConfig: viewImageConfig(v.GetImageConfig()),
	}
}

// portView is a forwarded port. VM is its name where ports of many are listed.
type portView struct {
	VM      string `json:"vm,omitempty"`
	Address string `json:"address"` // of the host; empty: its loopback
	Host    uint32 `json:"host_port"`
	Guest   uint32 `json:"guest_port"`
	Problem string `json:"problem"`
}

func viewPort(p *bangerv1.Port) portView {
	return portView{Address: p.GetAddress(), Host: p.GetHostPort(), Guest: p.GetGuestPort(), Problem: p.GetProblem()}
}

// statsView is what a VM uses; null where that is not known.
type statsView struct {
	ID                  string        `json:"id"`
	Name                string        `json:"name"`
	At                  *time.Time    `json:"at"`
	StartedAt           *time.Time    `json:"started_at"`
	CPUSeconds          float64       `json:"cpu_seconds"`
	MemoryBytes         int64         `json:"memory_bytes"`
	GuestTotalBytes     *int64        `json:"guest_total_bytes"`
	GuestFreeBytes      *int64        `json:"guest_free_bytes"`
	GuestAvailableBytes *int64        `json:"guest_available_bytes"`
	Disk                *transferView `json:"disk"`
	Net                 *transferView `json:"net"`
}

// transferView counts bytes, and operations or packets.
type transferView struct {
	ReadBytes  int64 `json:"read_bytes"`
	WriteBytes int64 `json:"write_bytes"`
	Reads      int64 `json:"reads"`
	Writes     int64 `json:"writes"`
}

func viewStats(s *bangerv1.VMStats) statsView {
	return statsView{
		ID: s.GetId(), Name: s.GetName(), At: viewTime(s.GetAt()), StartedAt: viewTime(s.GetStartedAt()),
		CPUSeconds: time.Duration(s.GetCpuNanos()).Seconds(), MemoryBytes: s.GetMemoryBytes(),
		GuestTotalBytes: s.GuestTotalBytes, GuestFreeBytes: s.GuestFreeBytes, GuestAvailableBytes: s.GuestAvailableBytes,
		Disk: viewTransfer(s.GetDisk()), Net: viewTransfer(s.GetNet()),
	}
}

func viewTransfer(t *bangerv1.VMTransfer) *transferView {
	if t == nil {
		return nil
	}
	return &transferView{ReadBytes: t.GetReadBytes(), WriteBytes: t.GetWriteBytes(), Reads: t.GetReads(), Writes: t.GetWrites()}
}

// imageView is an image.
type imageView struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Managed    bool       `json:"managed"`
	Path       string     `json:"path"`
	SizeBytes  int64      `json:"size_bytes"`
	UsedBytes  int64      `json:"used_bytes"`
	Kernel     string     `json:"kernel"`
	Digest     string     `json:"digest"`
	Source     string     `json:"source"`
	User       string     `json:"user"`
	Workdir    string     `json:"workdir"`
	Env        []string   `json:"env"`
	Entrypoint []string   `json:"entrypoint"`
	Cmd        []string   `json:"cmd"`
	UsedBy     []string   `json:"used_by"`
	CreatedAt  *time.Time `json:"created_at"`

	StopSignal   string            `json:"stop_signal"`
	ExposedPorts []string          `json:"exposed_ports"`
	Volumes      []string          `json:"volumes"`
	Labels       map[string]string `json:"labels"`
	Layers       []layerView       `json:"layers"`
}

// layerView is a layer of an image from elsewhere, as it is stored there.
type layerView struct {
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"size_bytes"`
}

func viewLayer(l *bangerv1.ImageLayer) layerView {
	return layerView{Digest: l.GetDigest(), SizeBytes: l.GetSizeBytes()}
}

// cacheView is what is kept of what was fetched of images, or what of it went.
type cacheView struct {
	Dir             string     `json:"dir"`
	LimitBytes      int64      `json:"limit_bytes"` // 0: none
	UnfinishedBytes int64      `json:"unfinished_bytes"`
	Blobs           []blobView `json:"blobs"`
}

type blobView struct {
	Digest     string     `json:"digest"`
	SizeBytes  int64      `json:"size_bytes"`
	UsedAt     *time.Time `json:"used_at"`
	InUse      bool       `json:"in_use"`
	References []string   `json:"references"`
}

func viewCache(c *bangerv1.ImageCache) cacheView {
	return cacheView{
		Dir: c.GetDir(), LimitBytes: c.GetLimitBytes(), UnfinishedBytes: c.GetUnfinishedBytes(),
		Blobs: views(c.GetBlobs(), func(b *bangerv1.CachedBlob) blobView {
			return blobView{
				Digest: b.GetDigest(), SizeBytes: b.GetSizeBytes(), UsedAt: viewTime(b.GetUsedAt()), InUse: b.GetInUse(),
				References: list(b.GetReferences()),
			}
		}),
	}
}

// prunedView is what a prune of images removed, or would. What images share that stay does
// not count as bytes.
type prunedView struct {
	Images []imageView `json:"images"`
	Bytes  int64       `json:"bytes"`
}

func viewImage(i *bangerv1.Image) imageView {
	labels := i.GetLabels()
	if labels == nil {
		labels = map[string]string{} // prints as {}
	}
	return imageView{
		ID: i.GetId(), Name: i.GetName(), Managed: i.GetManaged(), Path: i.GetPath(),
		SizeBytes: i.GetSizeBytes(), UsedBytes: i.GetUsedBytes(), Kernel: i.GetKernel(), Digest: i.GetDigest(),
		Source: i.GetSource(), User: i.GetUser(), Workdir: i.GetWorkdir(), Env: list(i.GetEnv()),
		Entrypoint: list(i.GetEntrypoint()), Cmd: list(i.GetCmd()), UsedBy: list(i.GetUsedBy()),
		StopSignal: i.GetStopSignal(), ExposedPorts: list(i.GetExposedPorts()), Volumes: list(i.GetVolumes()),
		Labels: labels, Layers: views(i.GetLayers(), viewLayer),
		CreatedAt: viewTime(i.GetCreatedAt()),
	}
}

// offerView is what a catalog has.
type offerView struct {
	Name          string `json:"name"`
	Digest        string `json:"digest"`
	SizeBytes     int64  `json:"size_bytes"`
	UnpackedBytes int64  `json:"unpacked_bytes"`
	Description   string `json:"description"`
	Kernel        string `json:"kernel"`
	Catalog       string `json:"catalog"` // "": the built-in one
	Key           string `json:"key"`
}

func viewOffer(o *bangerv1.CatalogOffer) offerView {
	return offerView{
		Name: o.GetName(), Digest: o.GetDigest(), SizeBytes: o.GetSizeBytes(), UnpackedBytes: o.GetUnpackedBytes(),
		Description: o.GetDescription(), Kernel: o.GetKernel(), Catalog: o.GetCatalog(), Key: o.GetKey(),
	}
}

// kernelView is a kernel.
type kernelView struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Release   string     `json:"release"`
	Vmlinux   string     `json:"vmlinux"`
	BzImage   string     `json:"bzimage"`
	Modules   string     `json:"modules"`
	Source    string     `json:"source"`
	UsedBytes int64      `json:"used_bytes"`
	UsedBy    []string   `json:"used_by"`
	CreatedAt *time.Time `json:"created_at"`
}

func viewKernel(k *bangerv1.Kernel) kernelView {
	return kernelView{
		ID: k.GetId(), Name: k.GetName(), Release: k.GetRelease(), Vmlinux: k.GetVmlinux(), BzImage: k.GetBzimage(),
		Modules: k.GetModules(), Source: k.GetSource(), UsedBytes: k.GetUsedBytes(), UsedBy: list(k.GetUsedBy()),
		CreatedAt: viewTime(k.GetCreatedAt()),
	}
}

// networkView is a named network.
type networkView struct {
	Name string   `json:"name"`
	VMs  []string `json:"vms"`
}

func viewNetwork(n *bangerv1.Network) networkView {
	return networkView{Name: n.GetName(), VMs: list(n.GetVms())}
}

// membersView is a named network with what is known of its VMs.
type membersView struct {
	Name    string       `json:"name"`
	Members []memberView `json:"members"`
}

type memberView struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	State     string     `json:"state"`
	DNSName   string     `json:"dns_name"`
	Addresses []string   `json:"addresses"`
	Ports     []portView `json:"ports"`
}

func viewMembers(n *bangerv1.Network, vms []*bangerv1.VM) membersView {
	return membersView{Name: n.GetName(), Members: views(membersOf(n, vms), func(v *bangerv1.VM) memberView {
		return memberView{
			ID: v.GetId(), Name: v.GetName(), State: v.GetState(), DNSName: v.GetDnsName(),
			Addresses: list(v.GetAddresses()), Ports: views(v.GetPorts(), viewPort),
		}
	})}
}

func viewTime(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime().UTC()
	return &at
}

// list keeps an empty list from printing as null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// views converts a whole list.
func views[T, V any](in []T, view func(T) V) []V {
	out := make([]V, 0, len(in))
	for _, x := range in {
		out = append(out, view(x))
	}
	return out
}

// printJSON prints v as indented JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable prints aligned columns under a header.
func printTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = oneLine(r[i])
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// printFields prints one thing as aligned "name: value" lines, leaving out what
// is empty.
func printFields(w io.Writer, fields [][2]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 1, ' ', 0)
	for _, f := range fields {
		if f[1] != "" {
			fmt.Fprintf(tw, "%s:\t%s\n", f[0], oneLine(f[1]))
		}
	}
	return tw.Flush()
}
