package tsc

import (
	"math"
	"testing"
	"time"
)

// Two measurements that have nothing in common agree.
func TestRate(t *testing.T) {
	mhz := MHz()
	if mhz == 0 {
		t.Skip("this host is too busy to measure, or its counter stands still")
	}
	from := take()
	<-time.After(window)
	again := rate(from, take())
	if again != 0 && math.Abs(float64(mhz-again)) > float64(mhz)/100 {
		t.Errorf("%d MHz, then %d", mhz, again)
	}
	t.Logf("%d MHz", mhz)
}

func TestNonsenseIsNoRate(t *testing.T) {
	now := time.Now()
	at := func(after time.Duration, count uint64, width time.Duration) reading {
		return reading{now.Add(after), count, width}
	}
	const good = 2_600_000_000
	for name, c := range map[string]struct {
		to   reading
		want int
	}{
		"good":         {at(time.Second, good, time.Microsecond), 2600},
		"disturbed":    {at(time.Second, good, 10*time.Millisecond), 0},
		"stands still": {at(time.Second, 0, time.Microsecond), 0},
		"too slow":     {at(time.Second, 50_000_000, time.Microsecond), 0},
		"too fast":     {at(time.Second, 50_000_000_000, time.Microsecond), 0},
	} {
		if got := rate(at(0, 0, 0), c.to); got != c.want {
			t.Errorf("%s: %d MHz, want %d", name, got, c.want)
		}
	}
}
