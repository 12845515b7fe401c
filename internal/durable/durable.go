// Package durable makes changes last over a loss of power.
package durable

import (
	"errors"
	"fmt"
	"os"
)

// SyncDir makes what was created, renamed and removed in a directory last. Writing a file
// that is there already, as a database does, brings none of that to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
