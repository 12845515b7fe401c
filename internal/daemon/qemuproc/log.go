package qemuproc

import (
	"os"
	"strings"

	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
)

// openLog opens the log of the VMM in dir again, for reading.
func openLog(dir string) (*os.File, error) {
	return vmmlog.Log{Dir: dir, Name: paths.VMMLog}.Open()
}

// strip removes "2026-01-02T03:04:05.678901Z qemu-system-x86_64: ".
func strip(line string) string {
	if i := strings.IndexByte(line, ' '); i > 0 && line[i-1] == 'Z' && strings.IndexByte(line[:i], 'T') == 10 {
		line = line[i+1:]
	}
	if prog, rest, ok := strings.Cut(line, ": "); ok && !strings.ContainsRune(prog, ' ') && strings.Contains(prog, "qemu") {
		line = rest
	}
	return line
}
