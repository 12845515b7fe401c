// Command banger-agent is the first process of a banger VM and serves the host in
// it; see internal/guest/agent.
package main

import (
	"os"

	"banger/internal/guest/agent"
)

func main() { os.Exit(agent.Main(os.Args, os.Stderr)) }
