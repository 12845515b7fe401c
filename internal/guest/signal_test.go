package guest

import (
	"errors"
	"testing"

	"banger/internal/errdefs"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"9": 9, "15": 15, "64": 64, "SIGTERM": 15, "term": 15, "sigquit": 3, "SIGINT": 2, "WINCH": 28, "SIGPWR": 30,
		"SIGRTMIN": 34, "SIGRTMIN+3": 37, "rtmin+30": 64, "RTMAX": 64, "SIGRTMAX-14": 50, "SIGRTMAX-30": 34,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "0", "65", "-1", "SIG", "SIGNONE", "SIGSIGTERM", "TERM ", "SIGRTMIN-1", "SIGRTMIN+31", "SIGRTMAX+1", "RTMIN3", "RTMIN+", "RTMIN+x", "RTMIN+9999999999999999999", "15\x00",
	} {
		if got, err := ParseSignal(text); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
}
