package sysexec

import (
	"errors"
	"fmt"
	"testing"
)

// A process passes through these states at its end, each for too short to be met on
// purpose.
func TestStatOfTheEnd(t *testing.T) {
	for _, test := range []struct {
		state   string
		threads int
		gone    bool
	}{
		{"S", 1, false},
		{"Z", 3, false}, // its first thread has ended
		{"Z", 1, true},
		{"Z", 0, true},
		{"X", 1, true}, // being waited for
	} {
		line := fmt.Sprintf("7 (a ) b) %s 1 7 7 0 -1 4 0 0 0 0 30 12 0 0 20 0 %d 0 4711 0 99 0", test.state, test.threads)
		st, err := parseStat([]byte(line))
		if test.gone && !errors.Is(err, ErrGone) {
			t.Errorf("%s with %d threads: got %+v, %v", test.state, test.threads, st, err)
		}
		if want := (stat{ticks: 42, start: 4711, pages: 99}); !test.gone && (err != nil || st != want) {
			t.Errorf("%s with %d threads: got %+v, %v; want %+v", test.state, test.threads, st, err, want)
		}
	}
}
