package cli

import (
	"fmt"
	"strings"
	"testing"
)

// What a program said last is told, however much it said before.
func TestLastBytes(t *testing.T) {
	l := &lastBytes{}
	for n := range 5000 {
		fmt.Fprintf(l, "line %d\n", n)
	}
	fmt.Fprint(l, strings.Repeat("x", 10<<10)+"\nlast ", "line\n\n")
	if got := l.line(); got != "last line" || len(l.b) > 4<<10 || cap(l.b) > 64<<10 {
		t.Errorf("%q, of %d bytes in %d", got, len(l.b), cap(l.b))
	}
	if got := (&lastBytes{}).line(); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}
