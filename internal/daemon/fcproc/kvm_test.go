package fcproc_test

import (
	"context"
	"errors"
	"os"
	"sync"

	"banger/internal/hypervisor/accel"
)

// probeArg makes a test binary the child of kvmRuns.
const probeArg = "kvm-probe"

// kvmRuns says why KVM runs no guest here, once for all tests.
var kvmRuns = sync.OnceValue(func() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// On a machine that is emulated and busy one answer is too slow at times.
	var v accel.Verdict
	for range 5 {
		if v, err = accel.Probe(context.Background(), accel.Options{Command: []string{self, probeArg}}); err != nil {
			return err
		}
		if v.Works() {
			return nil
		}
	}
	return errors.New(v.Reason)
})
