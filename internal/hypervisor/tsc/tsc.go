// Package tsc measures how fast the host's time stamp counter counts. An emulated
// processor shows its guest this same counter, and a guest that measures it against
// an emulated timer gets nonsense when the host is busy: its clock then runs at
// several times the speed of time.
package tsc

import (
	"sync"
	"time"
)

func read() uint64

// reading is the counter at a moment.
type reading struct {
	at    time.Time
	count uint64
	width time.Duration // the moment is known to be within it
}

// take reads counter and clock as closely together as one of a few tries allows:
// in most of them nothing comes in between.
func take() reading {
	best := reading{width: time.Hour}
	for range 20 {
		before := time.Now()
		count := read()
		if width := time.Since(before); width < best.width {
			best = reading{before.Add(width / 2), count, width}
		}
	}
	return best
}

// window is what has to lie between two readings.
const window = 50 * time.Millisecond

// first is the reading to measure from. The program has done other things for a
// while by the time somebody asks.
var first = take()

// MHz is how often the counter counts in a microsecond, to the nearest whole, or 0
// where that is not credible. It is measured once; the first call waits if the
// program has only just begun.
var MHz = sync.OnceValue(func() int {
	if wait := window - time.Since(first.at); wait > 0 {
		<-time.After(wait)
	}
	return rate(first, take())
})

func rate(from, to reading) int {
	passed := to.at.Sub(from.at)
	mhz := int((float64(to.count-from.count)/float64(passed.Nanoseconds()))*1e3 + 0.5)
	const slowest, fastest = 100, 20_000
	// The widths are how wrong the time may be: a guest's clock takes no more than a
	// hundredth, and one tenth of that is left to it.
	if to.count <= from.count || mhz < slowest || mhz > fastest || (from.width+to.width)*1000 > passed {
		return 0
	}
	return mhz
}
