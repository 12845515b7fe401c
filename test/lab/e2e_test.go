//go:build lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// smoke are the end-to-end tests that fit into a run for each change.
const smoke = `TestExitCodes|TestStreams|TestVMMDies`

// The end-to-end tests of banger, with the lab as their host.
func TestEndToEnd(t *testing.T) {
	const tree = "/srv/banger"
	root := filepath.Join("..", "..")
	for _, dir := range []string{"bin", "scripts", "test", "examples"} {
		if _, err := lab("rm", "-rf", tree+"/"+dir); err != nil {
			t.Fatal(err)
		}
		send(t, filepath.Join(root, dir), tree+"/")
	}
	cache := bringCache(t, root)
	run, limit := smoke, "15m" // a kernel and an image may have to be made
	if full {
		run, limit = ".", "150m"
	}
	out, err := labWithin(3*time.Hour, "sh", "-c", fmt.Sprintf(
		"cd %[1]s/test/e2e && exec env BANGER_TEST_CACHE=%[2]s BANGER_E2E_BIN=%[1]s/bin BANGER_TEST_PATIENCE=3m ../../bin/e2e.test -test.v -test.timeout %[3]s -test.run '%[4]s' 2>&1",
		tree, cache, limit, run))
	if err != nil {
		t.Errorf("%v\n%s", err, tail(out, 16<<10))
	}
	for name := range strings.SplitSeq(smoke, "|") {
		if !strings.Contains(out, "--- PASS: "+name) {
			t.Errorf("%s did not run", name)
		}
	}
	t.Logf("%d passed, skipped were %q", strings.Count(out, "\n--- PASS"), skipped(out))
}

// bringCache spares the lab the making of a kernel and an image, if this side has run
// the same tests as root. It returns where they are kept, which is the same there.
func bringCache(t *testing.T, root string) string {
	t.Helper()
	key := exec.Command("bash", "-c", ". scripts/lib.sh && test_cache \"$(image_key)\"")
	key.Dir = root
	out, err := key.Output()
	if err != nil {
		t.Fatal(err)
	}
	cache := strings.TrimSpace(string(out))
	if !exists(cache + "/state/banger.db") {
		return cache
	}
	if _, err := lab("test", "-e", cache+"/state/banger.db"); err == nil {
		return cache
	}
	pack := exec.Command("tar", "-C", cache, "--exclude=*.sock", "--exclude=*.log", "-cS", "state")
	unpack := exec.Command(filepath.Join(bin, "banger"), "exec", "lab", "--", "sh", "-c", "mkdir -p "+cache+" && tar -xS -C "+cache)
	unpack.Stdin, err = pack.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	unpack.Stderr = os.Stderr
	if err := unpack.Start(); err != nil {
		t.Fatal(err)
	}
	if err := pack.Run(); err != nil {
		t.Error(err)
	}
	if err := unpack.Wait(); err != nil {
		t.Fatal(err)
	}
	return cache
}
