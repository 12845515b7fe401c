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
// dying daemon it does not return.
func Main(newDriver func() hypervisor.Driver) {
	if len(os.Args) != 3 || os.Args[1] != starterArg {
		return
	}
	var spec hypervisor.Spec
	if err := json.Unmarshal([]byte(os.Args[2]), &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := newDriver().Start(ctx, spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The guest channel is open, and half a message in it, when the daemon dies.
	if c, err := m.DialAgent(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	} else if _, err := c.Write([]byte("half a mess")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Handle()); err != nil {
		os.Exit(2)
	}
	os.Exit(0)
}
