//go:build lab

package lab

import (
	"path/filepath"
	"testing"
	"time"
)

// Figures that need KVM, or root's network with device-mapper under it. Whatever they
// are, they fail nothing here.
func TestBench(t *testing.T) {
	if !full {
		t.Skip("takes long: a part of make test-lab-full, or make bench-lab")
	}
	firecracker(t)
	cache := bringCache(t, filepath.Join("..", ".."))
	send(t, filepath.Join(bin, "lab", "bench"), inside+"/banger-bench")
	// The bench keeps its kernel and image in bench/, the end-to-end tests theirs right
	// in their cache.
	out, err := labWithin(time.Hour, "sh", "-c", `set -e
		mkdir -p /srv/bench && ln -sfn '`+cache+`' /srv/bench/bench && cd /srv/bench
		for try in 1 2 3 4 5; do # a lab that was busy takes KVM for slower than it is
			BANGER_STATE_DIR=/srv/bench/bench/state banger doctor | grep -q '^PASS *accelerator' && break
		done
		exec env BANGER_TEST_CACHE=/srv/bench BANGER_E2E_BIN=`+inside+` banger-bench -only firecracker,host-start -o results.json`)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(out, 16<<10))
	}
	t.Log("\n" + out)
}
