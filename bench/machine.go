package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the figures were taken. They are not to be compared with those
// of another.
type Machine struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryMiB uint64 `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	Accel     string `json:"accel,omitempty"` // as the daemon decided; empty: no VM was needed
	QEMU      string `json:"qemu,omitempty"`
	Banger    string `json:"banger"`
	Guest     string `json:"guest,omitempty"` // shape of the VMs
	Load      string `json:"load"`            // load average when the run began
}

func thisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), CPU: cpuModel(), Load: strings.Join(firstFields("/proc/loadavg", 3), " ")}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		m.MemoryMiB = s.Totalram * uint64(s.Unit) >> 20
	}
	return m
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func firstFields(file string, n int) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b))
	return f[:min(n, len(f))]
}

func (m Machine) print(w io.Writer) {
	fmt.Fprintf(w, "machine  %s, %d CPUs, %d MiB, Linux %s, load at start %s\n", m.CPU, m.CPUs, m.MemoryMiB, m.Kernel, m.Load)
	if m.Accel != "" {
		fmt.Fprintf(w, "guests   %s, accelerator %s, QEMU %s\n", m.Guest, m.Accel, m.QEMU)
	}
	fmt.Fprintf(w, "banger   %s\n\n", m.Banger)
}
