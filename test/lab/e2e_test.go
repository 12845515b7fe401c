//go:build lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	suite := fmt.Sprintf("cd %[1]s/test/e2e && exec env BANGER_TEST_CACHE=%[2]s BANGER_E2E_BIN=%[1]s/bin BANGER_TEST_PATIENCE=3m ../../bin/e2e.test -test.v -test.timeout 40m",
		tree, bringCache(t, root))
	names := strings.Split(smoke, "|")
	if full {
		names = endToEnd(t, suite)
	}
	passed := 0
	for part := range slices.Chunk(names, perPart) {
		t.Run(part[0], func(t *testing.T) {
			began := time.Now()
			out, err := labWithin(45*time.Minute, "sh", "-c", fmt.Sprintf("%s -test.run '^(%s)$' 2>&1", suite, strings.Join(part, "|")))
			if err != nil {
				t.Errorf("%v\n%s", err, tail(out, 16<<10))
			}
			for _, name := range part {
				switch {
				case strings.Contains(out, "--- PASS: "+name+" "):
					passed++
					remember(t, name)
				case strings.Contains(out, "--- SKIP: "+name+" "):
					remember(t, name)
				case err == nil:
					t.Errorf("%s did not run", name)
				}
			}
			t.Logf("%s: %v, skipped were %q", strings.Join(part, " "), time.Since(began).Round(time.Second), skipped(out))
		})
	}
	t.Logf("%d of %d passed", passed, len(names))
}

// perPart is how many end-to-end tests run at a time: few enough that not much is lost
// with a lab that hangs up, enough to share what costs them a start.
const perPart = 8

// endToEnd lists the tests that have not passed before the lab began anew.
func endToEnd(t *testing.T, suite string) []string {
	t.Helper()
	out, err := lab("sh", "-c", suite+" -test.list '^Test'")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(os.Getenv("LAB_PASSED"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	done := strings.Fields(string(before))
	return slices.DeleteFunc(strings.Fields(out), func(name string) bool {
		return !strings.HasPrefix(name, "Test") || slices.Contains(done, name)
	})
}

// remember spares a test the next try, if there is one.
func remember(t *testing.T, name string) {
	t.Helper()
	file := os.Getenv("LAB_PASSED")
	if file == "" {
		return
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(f, name); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
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
