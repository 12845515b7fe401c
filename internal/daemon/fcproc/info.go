package fcproc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/sysexec"
)

// The oldest Firecracker that serves: the first whose devices a kernel finds by
// ACPI. Debian's kernels know no other way.
var oldest = version{major: 1, minor: 8}

// Machine type and CPU model of new VMs. Firecracker versions neither: what the
// guest sees follows the binary, and its processor is the host's.
const (
	machineType = "fc-mmio-1"
	cpuModel    = "host"
)

const installHint = "install Firecracker %d.%d or newer: banger system fetch-firecracker; or name it in the config: firecracker.binary"

// askTime bounds how long a program may take to tell its version.
const askTime = 10 * time.Second

// identity is one state of a program.
type identity struct {
	path     string
	dev, ino uint64
	size     int64
	mtime    time.Time
}

type version struct {
	major, minor int
	text         string
}

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

// facts are the programs and what they can do.
type facts struct {
	binary, jailer string // jailer is empty where none is used
	version        version
}

// Info implements hypervisor.Driver.
func (d *Driver) Info(ctx context.Context) (hypervisor.Info, error) {
	f, err := d.look(ctx)
	if err != nil {
		return hypervisor.Info{}, err
	}
	return hypervisor.Info{
		Driver: Name, Binary: f.binary, Version: f.version.text, Accel: hypervisor.AccelKVM,
		Machine: machineType, CPUModel: cpuModel,
		Capabilities: hypervisor.Capabilities{
			Pause: true, DiskLimits: true, MMIO: true,
			Tap:           os.Geteuid() == 0, // whoever else has no device of the host's to be given
			NetOverride:   f.version.atLeast(1, 12),
			VsockOverride: f.version.atLeast(1, 16),
		},
	}, nil
}

// Jailed reports whether VMMs of this daemon are jailed.
func (d *Driver) Jailed() bool { return os.Geteuid() == 0 && !d.deps.NoJailer }

// look finds the programs and makes sure that they serve.
func (d *Driver) look(ctx context.Context) (f facts, err error) {
	if f.binary, err = find(d.deps.Binary, "firecracker"); err != nil {
		return f, errdefs.Unsupported("Firecracker is not installed (%w)", err).WithHint(installHint, oldest.major, oldest.minor)
	}
	if f.version, err = d.ask(ctx, f.binary, "Firecracker"); err != nil {
		return f, err
	}
	if !f.version.atLeast(oldest.major, oldest.minor) {
		return f, errdefs.Unsupported("Firecracker %s is too old", f.version.text).WithHint(installHint, oldest.major, oldest.minor)
	}
	if d.Jailed() {
		if f.jailer, err = d.findJailer(ctx, f); err != nil {
			return f, err
		}
	}
	if err := d.deps.KVM(ctx); err != nil {
		return f, err
	}
	return f, nil
}

// find returns the absolute path of a program, links resolved: the jailer knows it
// by the name of the file.
func find(name, fallback string) (string, error) {
	if name == "" {
		name = fallback
	}
	path, err := sysexec.Look(name)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

const jailerHint = "install the jailer of the same release beside Firecracker, or do without: firecracker.jail: false in the config"

func (d *Driver) findJailer(ctx context.Context, f facts) (string, error) {
	var path string
	var err error
	if d.deps.Jailer == "" {
		// Releases call the two firecracker-v1.10.1-x86_64 and jailer-v1.10.1-x86_64.
		dir, base := filepath.Split(f.binary)
		path, err = find(dir+strings.Replace(base, "firecracker", "jailer", 1), "")
	}
	if d.deps.Jailer != "" || err != nil || path == f.binary {
		path, err = find(d.deps.Jailer, "jailer")
	}
	if err != nil {
		return "", errdefs.Unsupported("Firecracker's jailer is not installed: %w", err).WithHint(jailerHint)
	}
	v, err := d.ask(ctx, path, "Jailer")
	if err != nil {
		return "", err
	}
	if v.text != f.version.text {
		return "", errdefs.Unsupported("the jailer has version %s and Firecracker %s", v.text, f.version.text).WithHint(jailerHint)
	}
	return path, nil
}

// ask returns what a program calls its version, asking only when it is new to us.
func (d *Driver) ask(ctx context.Context, path, program string) (version, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return version{}, errdefs.Unsupported("stat %s: %w", path, err).WithHint(installHint, oldest.major, oldest.minor)
	}
	id := identity{path, st.Dev, st.Ino, st.Size, time.Unix(st.Mtim.Unix())}
	d.mu.Lock()
	v, ok := d.known[id]
	d.mu.Unlock()
	if ok {
		return v, nil
	}
	call, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	out, err := sysexec.Output(call, sysexec.Cmd{Path: path, Args: []string{"--version"}, Dir: "/", Env: []string{}})
	if err == nil {
		v, err = parseVersion(string(out), program)
	}
	if err != nil {
		if ctx.Err() != nil {
			return version{}, errdefs.Wrap(context.Cause(ctx), "ask %s for its version", path)
		}
		return version{}, errdefs.Unsupported("%s is not %s: %w", path, program, err).WithHint(installHint, oldest.major, oldest.minor)
	}
	d.mu.Lock()
	d.known[id] = v
	d.mu.Unlock()
	d.log.DebugContext(ctx, "program found", logkey.Binary, path, logkey.Version, v.text)
	return v, nil
}

var versionPattern = regexp.MustCompile(`^v((\d{1,4})\.(\d{1,4})[A-Za-z0-9.+-]{0,40})$`)

// parseVersion reads "Firecracker v1.16.1" in the first line of what a program says.
func parseVersion(out, program string) (version, error) {
	line, _, _ := strings.Cut(out, "\n")
	name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
	m := versionPattern.FindStringSubmatch(number)
	if name != program || m == nil {
		return version{}, fmt.Errorf("asked for its version it says %.60q", line)
	}
	v := version{text: m[1]}
	v.major, _ = strconv.Atoi(m[2])
	v.minor, _ = strconv.Atoi(m[3])
	return v, nil
}
