package hypervisortest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"banger/internal/hypervisor"
)

// starterArg makes a test binary play a daemon that starts a machine and dies.
const starterArg = "hypervisortest-start-and-die"

// Main must be called first thing in TestMain. In the process that plays the
// dying daemon it reports true, and the code to exit with at once:
//
//	if code, ok := hypervisortest.Main(newDriver); ok {
//		os.Exit(code)
//	}
func Main(newDriver func() hypervisor.Driver) (code int, ok bool) {
	if len(os.Args) != 3 || os.Args[1] != starterArg {
		return 0, false
	}
	if err := startAndDie(newDriver(), os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

func startAndDie(d hypervisor.Driver, text string) error {
	var spec hypervisor.Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := d.Start(ctx, spec)
	if err != nil {
		return err
	}
	// The guest channel is open, and half a message in it, when the daemon dies.
	c, err := m.DialAgent(ctx)
	if err != nil {
		return err
	}
	if err := say(c, "half a mess"); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(m.Handle())
}
