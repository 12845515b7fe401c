package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"banger/internal/errdefs"
)

// errGaveUp is the cause of a context that the user ended on a terminal in raw mode.
var errGaveUp = errors.New("given up")

// gaveUp is the error for it; ephemeral says that the VM is deleted now.
func gaveUp(ref string, ephemeral bool) error {
	hint := fmt.Sprintf("look again: banger shell %s; or end it: banger vm kill %s", ref, ref)
	if ephemeral {
		hint = "nothing needs doing: --rm deletes it"
	}
	return &exitError{exitInterrupt, errdefs.Unavailable("gave up on vm %q, which showed nothing after three Ctrl-C", ref).WithHint("%s", hint)}
}

// impatient stands between the command and our terminal, where Ctrl-C is a byte for
// the command. Of a VM that is frozen that byte is the only way out.
type impatient struct {
	in     io.Reader
	out    *os.File
	giveUp func()

	mu      sync.Mutex  // guards presses, which both directions change
	presses []time.Time // of Ctrl-C, with nothing else and no output between
}

func (i *impatient) Read(p []byte) (int, error) {
	n, err := i.in.Read(p)
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, b := range p[:n] {
		if b != 0x03 {
			i.presses = nil
			continue
		}
		now := time.Now()
		i.presses = append(i.presses, now)
		if n := len(i.presses); n >= 3 && now.Sub(i.presses[n-3]) <= impatience {
			i.giveUp()
		}
	}
	return n, err
}

func (i *impatient) Write(p []byte) (int, error) {
	i.mu.Lock()
	i.presses = nil
	i.mu.Unlock()
	return i.out.Write(p)
}
