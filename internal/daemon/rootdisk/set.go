package rootdisk

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// Auto is the configured method that leaves the choice to the host.
const Auto = "auto"

// Set is the methods there are, and which of them new disks are made with.
type Set struct {
	configured string // a method's name, or Auto
	dir        string // where the disks will lie
	methods    []Method
}

// NewSet returns the methods for disks below dir, in the order of preference.
func NewSet(configured, dir string, methods ...Method) *Set {
	return &Set{configured: configured, dir: dir, methods: methods}
}

// Method finds a method by its name.
func (s *Set) Method(name string) (Method, error) {
	for _, m := range s.methods {
		if m.Name() == name {
			return m, nil
		}
	}
	return nil, errdefs.Unsupported("root disks by %q are not in this build", name).
		WithHint("use the bangerd that made the VM")
}

// Choose picks the method for new disks of a driver that reads these formats, and
// says for people why it is that one. An error is about what was configured: auto
// always finds one.
func (s *Set) Choose(ctx context.Context, formats ...hypervisor.DiskFormat) (m Method, why string, err error) {
	if s.configured != Auto {
		if m, err = s.Method(s.configured); err != nil {
			return nil, "", err
		}
		if !slices.Contains(formats, m.Format()) {
			return nil, "", errdefs.Unsupported("root_disk: %s is configured, and the driver reads no %s disks", m.Name(), m.Format()).
				WithHint("set root_disk: auto in the config, or use --driver qemu")
		}
		if _, err := m.Check(ctx, s.dir); err != nil {
			return nil, "", errdefs.Wrap(err, "root_disk: %s is configured", m.Name())
		}
		return m, "as configured", nil
	}
	var passed []string
	for _, m := range s.methods {
		if !slices.Contains(formats, m.Format()) {
			continue
		}
		why, err := m.Check(ctx, s.dir)
		if err == nil {
			return m, strings.Join(append([]string{why}, passed...), "; "), nil
		}
		passed = append(passed, fmt.Sprintf("no %s: %v", m.Name(), err))
	}
	return nil, "", errdefs.Unsupported("no root disk can be made: %s", strings.Join(passed, "; "))
}
