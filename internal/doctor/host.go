package doctor

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The oldest Linux banger runs on: it waits for processes on pidfds that do not
// block, which 5.10 brought.
const minMajor, minMinor = 5, 10

// The remedies here.
const (
	supported = "use an x86-64 machine with Linux 5.10 or newer"
	mountProc = "mount what is missing: mount -t proc proc /proc"
)

// Kernel checks the host's own kernel and architecture.
func Kernel() Check {
	return Check{Name: "host", Run: func(context.Context) Result {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return FailErr(supported, fmt.Errorf("read kernel version: %w", err))
		}
		return kernelVerdict(unix.ByteSliceToString(u.Release[:]), runtime.GOARCH)
	}}
}

func kernelVerdict(release, arch string) Result {
	if arch != "amd64" {
		return Fail(supported, "%s is not supported", arch)
	}
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return Warn(supported, "Linux %s: no version to read", release)
	}
	major, _ := strconv.Atoi(parts[0])
	minor, _ := strconv.Atoi(parts[1])
	if major < minMajor || major == minMajor && minor < minMinor {
		return Fail(supported, "Linux %s is older than %d.%d", release, minMajor, minMinor)
	}
	return Pass("Linux %s, %s", release, arch)
}

// Memory checks the memory that is free to use: less than need bytes, one VM of
// the default size, is a warning.
func Memory(need int64) Check {
	return Check{Name: "memory", Run: func(context.Context) Result {
		return memory("/proc/meminfo", need)
	}}
}

func memory(file string, need int64) Result {
	kib := map[string]int64{}
	f, err := os.Open(file)
	if err != nil {
		return Warn(mountProc, "%v", err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 {
			kib[strings.TrimSuffix(fields[0], ":")], _ = strconv.ParseInt(fields[1], 10, 64)
		}
	}
	total, ok := kib["MemTotal"]
	free, ok2 := kib["MemAvailable"]
	if !ok || !ok2 {
		return Warn(mountProc, "%s does not say how much memory there is", file)
	}
	if free*1024 < need {
		return Warn("stop something, or lower vm.memory in the configuration",
			"%s of %s available, less than a VM of the default size (%s)", human(free*1024), human(total*1024), human(need))
	}
	return Pass("%s of %s available", human(free*1024), human(total*1024))
}

// Cgroup reports limits that the control group of this process puts on all VMs
// it starts: they are its children and count in it.
func Cgroup() Check {
	return Check{Name: "cgroup", Run: func(context.Context) Result {
		return cgroup("/proc/self/cgroup", "/sys/fs/cgroup")
	}}
}

// Below these a handful of VMs cannot run.
const (
	lowCgroupMemory = 2 << 30
	lowCgroupPids   = 512
)

func cgroup(self, root string) Result {
	data, err := os.ReadFile(self)
	if err != nil {
		return Warn(mountProc, "%v", err)
	}
	var groups []string // directories that may hold a limit of this process
	version := "v1"
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[0] == "0" && parts[1] == "":
			for _, base := range []string{root, filepath.Join(root, "unified")} {
				if _, err := os.Stat(filepath.Join(base, "cgroup.controllers")); err == nil {
					groups = append(groups, filepath.Join(base, parts[2]))
					version = map[bool]string{true: "v2", false: "v1 and v2"}[base == root]
				}
			}
		case parts[1] == "memory" || parts[1] == "pids":
			groups = append(groups, filepath.Join(root, parts[1], parts[2]))
		}
	}
	mem, pids := lowest(root, groups, "memory.max", "memory.limit_in_bytes"), lowest(root, groups, "pids.max")
	detail := version
	if mem > 0 {
		detail += ", memory limited to " + human(mem)
	}
	if pids > 0 {
		detail += ", processes limited to " + strconv.FormatInt(pids, 10)
	}
	if mem > 0 && mem < lowCgroupMemory || pids > 0 && pids < lowCgroupPids {
		return Warn("start the daemon outside this control group, or raise its limits", "%s", detail)
	}
	return Pass("%s", detail)
}

// lowest returns the smallest limit of that name on the way from any of dirs up
// to root; zero when there is none.
func lowest(root string, dirs []string, names ...string) int64 {
	var low int64
	for _, dir := range dirs {
		for d := dir; strings.HasPrefix(d, root); d = filepath.Dir(d) {
			for _, name := range names {
				data, err := os.ReadFile(filepath.Join(d, name))
				if err != nil {
					continue
				}
				// "max", and the enormous number that means it in v1, are no limit.
				v, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
				if err == nil && v > 0 && v < 1<<60 && (low == 0 || v < low) {
					low = v
				}
			}
		}
	}
	return low
}

// Resolver checks that the host knows a name server: guests ask the host's.
func Resolver() Check {
	return Check{Name: "DNS resolver", Run: func(context.Context) Result {
		return resolver("/etc/resolv.conf")
	}}
}

func resolver(file string) Result {
	const fix = "put a line \"nameserver ADDRESS\" into /etc/resolv.conf"
	f, err := os.Open(file)
	if err != nil {
		return Warn(fix, "names do not resolve in guests: %v", err)
	}
	defer func() { _ = f.Close() }()
	var servers []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if _, err := netip.ParseAddr(fields[1]); err != nil {
			return Warn(fix, "%s names a server %q that is no address", file, fields[1])
		}
		servers = append(servers, fields[1])
	}
	if len(servers) == 0 {
		return Warn(fix, "names do not resolve in guests: %s names no server", file)
	}
	return Pass("%s", strings.Join(servers, ", "))
}
