// Package agent is the program that makes a VM usable: the first process of its
// boot, and from then on the host's hand in the guest.
//
// Process 1 prepares the root (package boot), starts the agent proper as a child,
// and becomes the image's init or reaps orphans. The child answers the host over
// one virtio-serial port or vsock (packages port, guest, serve) for as long as the VM
// lives. Its name begins with '@', which tells systemd to leave it alone at
// shutdown.
package agent

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	"banger/internal/guest/agent/boot"
	"banger/internal/guest/agent/sftpd"
)

// name is argv[0] of the agent proper.
const name = "@banger-agent"

// spareProcs is how many threads may run Go code at least.
const spareProcs = 4

// stateEnv carries the boot's state from process 1 to the agent proper.
const stateEnv = "BANGER_BOOT"

// Main is the program; args are without its name's meaning to the kernel: args[0]
// is what it was called. It returns an exit status. As process 1 it returns only
// when nothing is left to do, which stops the machine.
func Main(args []string, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("program", "banger-agent")
	switch {
	case os.Getpid() == 1:
		return first(log)
	case len(args) > 0 && args[0] == sftpd.Name:
		return sftpd.Main(stderr)
	case len(args) > 0 && args[0] == name:
		// With one processor only, the runtime's monitor takes it away from every
		// system call that lasts 20 µs, which all do where code is emulated. A spare
		// one stops that: small files unpack two to three times as fast.
		runtime.GOMAXPROCS(max(spareProcs, runtime.NumCPU()))
		if err := serveHost(context.Background(), log); err != nil {
			log.Error("the agent ends", "err", err)
			return 1
		}
		return 0
	}
	log.Error("this program is the first process of a banger VM; it has no use elsewhere")
	return 2
}

// first is the life of process 1.
func first(log *slog.Logger) int {
	state, late := boot.Prepare(log)
	if state.Error != "" {
		log.Error("the VM has no root file system", "err", state.Error)
	}
	encoded, err := json.Marshal(state)
	if err != nil {
		log.Error("encode the boot's state", "err", err)
		return 1
	}
	child := boot.Child{Name: name, Env: []string{stateEnv + "=" + string(encoded)}, Dir: late}
	if err := child.Start(); err != nil {
		log.Error("start the agent", "err", err)
	}
	if late != nil {
		_ = late.Close()
	}
	if state.Init != "none" {
		err := boot.ExecInit(state.Program)
		log.Error("the image's init cannot be executed; going on without", "err", err)
	}
	// This process sleeps from now on: give back what the boot took.
	debug.FreeOSMemory()
	return boot.Reap(log, child)
}
