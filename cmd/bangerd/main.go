// Command bangerd is the daemon; see internal/cli/daemoncmd.
package main

import (
	"os"

	"banger/internal/cli/daemoncmd"
)

func main() { os.Exit(daemoncmd.Main(os.Args[1:], os.Stdout, os.Stderr)) }
