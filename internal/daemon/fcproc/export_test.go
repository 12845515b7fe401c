package fcproc

import (
	"context"
	"os"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// The parts below are tested by themselves.
var (
	CheckSpec = checkSpec
	Strip     = strip
)

// Meter adds up metrics for the VM in dir.
type Meter struct{ m *meter }

// NewMeter begins where an earlier one in dir has come to.
func NewMeter(dir string) Meter { return Meter{newMeter(dir)} }

// Read reads on in f. It returns nil when what it found makes no sense.
func (m Meter) Read(ctx context.Context, f *os.File) (disk, card *hypervisor.Transfer, err error) {
	sum, err := m.m.read(ctx, f)
	if err != nil || sum.Broken {
		return nil, nil, err
	}
	return &sum.Disk, &sum.Net, nil
}

// KeepEvery is after how many bytes the sums are written down.
const KeepEvery = keepEvery

// ParseVersion returns what is made of a program's answer.
func ParseVersion(out, program string) (major, minor int, text string, err error) {
	v, err := parseVersion(out, program)
	return v.major, v.minor, v.text, err
}

// Explain makes an error of what Firecracker said.
func Explain(text string) (errdefs.Class, string) {
	err := explain(text, facts{})
	return errdefs.ClassOf(err), errdefs.HintOf(err)
}
