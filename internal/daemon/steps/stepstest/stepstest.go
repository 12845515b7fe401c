// Package stepstest helps tests that disturb steps at every point.
package stepstest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
)

// Sampled says whether the next point is tried: each one, but for SWEEP_SAMPLE, which
// is "SEED/N" and takes one of N by chance.
func Sampled() bool { return sampled()() }

var sampled = sync.OnceValue(func() func() bool {
	var seed, n uint64
	if _, err := fmt.Sscanf(os.Getenv("SWEEP_SAMPLE"), "%d/%d", &seed, &n); err != nil || n < 1 {
		return func() bool { return true }
	}
	var mu sync.Mutex
	chance := rand.New(rand.NewPCG(seed, n))
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		return chance.Uint64N(n) == 0
	}
})
