//go:build e2e

package e2e_test

import (
	"fmt"
	"strconv"
	"testing"
)

// rootMiB is the size of a VM's root file system.
func (w *world) rootMiB(t *testing.T, v vm) int64 {
	t.Helper()
	n, err := strconv.ParseInt(w.exec(t, v, "sh", "-c", "df -m / | tail -1 | (read a b c; echo $b)"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSet grows the disk of a VM while it runs and while it does not, and gives it
// other CPUs and memory; its files stay.
func TestSet(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-set", "--cpus", "2", "--net", "none", "--memory", "512M", "--user", "root")
	w.exec(t, v, "sh", "-c", "echo kept > /root/file")
	at := w.rootMiB(t, v)
	size := func(more int64) string { return fmt.Sprintf("%dM", v.DiskBytes>>20+more) }
	grown := func(more int64) {
		t.Helper()
		if now := w.rootMiB(t, v); now < at+more*9/10 {
			t.Errorf("the file system has %d MiB, before %d; the disk has %d more", now, at, more)
		}
	}
	w.ok(t, "vm", "set", "--disk", size(1024), v.Name)
	grown(1024)
	w.fails(t, 1, []string{"running VM", "vm stop"}, "vm", "set", "--memory", "640M", v.Name)
	w.fails(t, 1, []string{"cannot become smaller"}, "vm", "set", "--disk", size(0), v.Name)
	w.ok(t, "vm", "stop", v.Name)
	w.ok(t, "vm", "set", "--disk", size(2048), "--cpus", "1", "--memory", "640M", v.Name)
	if now := w.show(t, v.ID); now.CPUs != 1 || now.MemoryMiB != 640 || now.DiskBytes != v.DiskBytes+2048<<20 {
		t.Errorf("after set: %+v", now)
	}
	w.ok(t, "vm", "start", v.Name)
	grown(2048)
	if got := w.exec(t, v, "sh", "-c", "cat /root/file; nproc"); got != "kept\n1" {
		t.Errorf("in the guest: %q", got)
	}
}
