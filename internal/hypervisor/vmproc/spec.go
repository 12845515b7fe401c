package vmproc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"regexp"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

const (
	maxDisks     = 8  // see hypervisor.Spec
	minMemoryMiB = 32 // no kernel of ours comes up in less
)

var serialPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`)

// CheckSpec refuses what no VMM of ours can be told, with class invalid_argument.
func CheckSpec(s hypervisor.Spec) error {
	switch {
	case !filepath.IsAbs(s.Dir):
		return errdefs.Invalid("VM directory %q is not absolute", s.Dir)
	case s.MemoryMiB < minMemoryMiB:
		return errdefs.Invalid("%d MiB of memory: a VM needs %d at least", s.MemoryMiB, minMemoryMiB)
	case len(s.Disks) > maxDisks:
		return errdefs.Invalid("%d disks: a VM has %d at most", len(s.Disks), maxDisks)
	}
	seen := make(map[string]bool, len(s.Disks))
	for _, d := range s.Disks {
		switch {
		case !serialPattern.MatchString(d.Serial):
			return errdefs.Invalid("disk serial %q: use 1 to 20 of A-Z, a-z, 0-9, '_' and '-'", d.Serial)
		case seen[d.Serial]:
			return errdefs.Invalid("two disks have serial %q", d.Serial)
		case d.Limit.BytesPerSecond < 0 || d.Limit.OpsPerSecond < 0:
			return errdefs.Invalid("disk %s has a negative limit", d.Serial)
		}
		seen[d.Serial] = true
	}
	if _, err := net.ParseMAC(s.MAC); err != nil {
		return errdefs.Invalid("MAC address %q: %w", s.MAC, err)
	}
	return nil
}

// OpenError explains why a file that a VMM is to be given could not be opened.
func OpenError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.Precondition("a file of the VM is missing: %w", err).
			WithHint("pull its image and kernel again: banger image pull --force, banger kernel pull --force")
	}
	return fmt.Errorf("open a file of the VM: %w", err)
}
