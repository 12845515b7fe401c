package guest

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Signals of Linux: the highest, and the range of those that have no name of their own.
const (
	MaxSignal = 64
	rtMin     = 34 // as C libraries count: they keep two for themselves
	rtMax     = 64
)

// ParseSignal returns the number of a signal that is written as a number or as a name,
// with or without SIG, in any case: "9", "SIGKILL", "term", "SIGRTMIN+3", "RTMAX-1".
// Its error is of class invalid_argument.
func ParseSignal(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= MaxSignal {
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n := int(unix.SignalNum("SIG" + name)); n != 0 {
		return n, nil
	}
	for base, from := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		offset, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n := 0
		if offset != "" {
			var err error
			if n, err = strconv.Atoi(offset); err != nil || offset[0] != '+' && offset[0] != '-' {
				continue
			}
		}
		if n += from; n >= rtMin && n <= rtMax {
			return n, nil
		}
	}
	return 0, errdefs.Invalid("%q is no signal", cleanText(text, 40)).
		WithHint("write a number from 1 to %d or a name, e.g. SIGTERM or SIGRTMIN+3", MaxSignal)
}
