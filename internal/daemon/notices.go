package daemon

import (
	"os"

	"banger/internal/api/bangerv1"
)

// notices are what the user should know of, until it is settled. Who removes a
// database that was put aside hears no more of it, without a restart.
func (d *Daemon) notices() []*bangerv1.Notice {
	var all []*bangerv1.Notice
	for _, file := range d.kept {
		if _, err := os.Stat(file); err == nil {
			message, hint := lostDatabase(file)
			all = append(all, &bangerv1.Notice{Message: message, Hint: hint})
		}
	}
	return all
}

// lostDatabase says that a database was put aside, and what to try.
func lostDatabase(file string) (message, hint string) {
	return "the state database could not be read and a new one was begun: VMs, images and kernels from before are not listed. It is kept as " + file,
		"sqlite3 " + file + " .recover shows what can still be read of it; when you need nothing of it: rm " + file + "*"
}
