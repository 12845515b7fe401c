package rootdisk_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/rootdisk"
	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// stub is a method of which only what Set asks for is there.
type stub struct {
	rootdisk.Method
	name   string
	format hypervisor.DiskFormat
	err    error
}

func (s stub) Name() string                  { return s.name }
func (s stub) Format() hypervisor.DiskFormat { return s.format }
func (s stub) Check(_ context.Context, dir string) (string, error) {
	return "the " + s.name + " of " + dir, s.err
}

// The first method that the driver reads and the host allows is chosen, and why those
// before it are not; what is configured is chosen or refused.
func TestChoose(t *testing.T) {
	missing := errdefs.Unsupported("no device-mapper").WithHint("load it")
	methods := []rootdisk.Method{
		stub{name: "q", format: hypervisor.FormatQcow2},
		stub{name: "bad", format: hypervisor.FormatRaw, err: missing},
		stub{name: "good", format: hypervisor.FormatRaw},
	}
	raw := []hypervisor.DiskFormat{hypervisor.FormatRaw}
	both := append(raw, hypervisor.FormatQcow2)
	for _, c := range []struct {
		configured string
		formats    []hypervisor.DiskFormat
		name, why  string
		class      errdefs.Class
		hint       string
	}{
		{rootdisk.Auto, both, "q", "the q of /state", "", ""},
		{rootdisk.Auto, raw, "good", "the good of /state; no bad: no device-mapper", "", ""},
		{"good", both, "good", "as configured", "", ""},
		{"bad", both, "", "root_disk: bad is configured: no device-mapper", errdefs.ClassUnsupported, "load it"},
		{"q", raw, "", "the driver reads no qcow2 disks", errdefs.ClassUnsupported, "root_disk: auto"},
		{"other", raw, "", `root disks by "other"`, errdefs.ClassUnsupported, "bangerd that made"},
		{rootdisk.Auto, nil, "", "no root disk can be made", errdefs.ClassUnsupported, ""},
	} {
		m, why, err := rootdisk.NewSet(c.configured, "/state", methods...).Choose(t.Context(), c.formats...)
		switch {
		case c.class == "" && (err != nil || m.Name() != c.name || why != c.why):
			t.Errorf("%s for %v: %v, %q, %v", c.configured, c.formats, m, why, err)
		case c.class != "" && (errdefs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.why) || !strings.Contains(errdefs.HintOf(err), c.hint)):
			t.Errorf("%s for %v: %v (%s, hint %q)", c.configured, c.formats, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
	}
}

// What a host cannot do is found out without leaving anything.
func TestCheck(t *testing.T) {
	dir, _ := disktest.Small(t, 1*mib) // memory shares no blocks
	w := &world{T: t}
	_, err := rootdisk.Reflink().Check(t.Context(), dir)
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "btrfs") {
		t.Errorf("reflinks in memory: %v (hint %q)", err, errdefs.HintOf(err))
	}
	w.only(dir)
	if why, err := rootdisk.Reflink().Check(t.Context(), dir+"/later"); err != nil || why == "" {
		t.Errorf("before there is a directory: %q, %v", why, err)
	}
	_, err = rootdisk.DMSnap(dmsnap.New(t.TempDir()), nil).Check(t.Context(), dir)
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "modprobe dm_mod") {
		t.Errorf("no device-mapper: %v (hint %q)", err, errdefs.HintOf(err))
	}
}

// Device-mapper is refused to an ordinary user, who may run the daemon, too.
func TestCheckAsUser(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("this is root")
	}
	_, err := rootdisk.DMSnap(dmsnap.New(t.TempDir()), nil).Check(t.Context(), t.TempDir())
	if !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "as root") {
		t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
	}
}
