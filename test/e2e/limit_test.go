//go:build e2e

package e2e_test

import (
	"strconv"
	"strings"
	"testing"
)

// A guest's disk is as fast as it may be and no faster, and what it did is counted.
func TestDiskBound(t *testing.T) {
	w := s.main
	const mibs, bound, least = 80, 20, 3 // MiB, MiB/s, seconds
	v := w.create(t, "e2e-bound", "--disk-bps", strconv.Itoa(bound)+"M", "--disk-iops", "5000")
	if text := w.ok(t, "vm", "show", v.ID); !strings.Contains(text, "20 MiB/s, 5000 operations/s") {
		t.Errorf("show says\n%s", text)
	}
	written := func() int64 {
		var now struct {
			CPU  float64 `json:"cpu_seconds"`
			Disk struct {
				Bytes int64 `json:"write_bytes"`
			} `json:"disk"`
		}
		w.decode(t, &now, "vm", "stats", "--json", v.ID)
		if now.CPU <= 0 {
			t.Errorf("stats are %+v", now)
		}
		return now.Disk.Bytes
	}
	before := written()
	text := w.execRoot(t, v, "sh", "-c", "read a _ </proc/uptime; dd if=/dev/zero of=/var/tmp/big bs=1M count="+strconv.Itoa(mibs)+
		" oflag=direct 2>/dev/null; read b _ </proc/uptime; echo $((${b%.*} - ${a%.*}))")
	if took, err := strconv.Atoi(text); err != nil || took < least {
		t.Errorf("%d MiB took %s s at %d MiB/s", mibs, text, bound)
	}
	if got := written() - before; got < mibs<<20 || got > 3*mibs<<20 {
		t.Errorf("%d bytes were written, and %d are counted", mibs<<20, got)
	}
}
