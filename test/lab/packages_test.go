//go:build lab

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// suite is a package's tests, built on this side, that run in the lab as they are.
type suite struct {
	program string   // in bin/lab
	source  string   // of its files of data, from the repository's root
	run     string   // which of its tests
	must    []string // tests that have to run there: a skip is a failure
	needs   string   // a program that is brought along if there is one, as its variable says
	env     string
}

var suites = []suite{
	{program: "dmsnap.test", source: "internal/daemon/dmsnap", run: ".", must: []string{"TestVolume", "TestFreeze"}},
	{program: "rootdisk.test", source: "internal/daemon/rootdisk", run: ".", must: []string{"TestLife/dmsnap", "TestHeldForSpace", "TestHeldIsReleased", "TestLostLayer"}},
	{program: "resolved.test", source: "internal/daemon/resolved", run: "."},
	{program: "daemon.test", source: "internal/daemon", run: "TestSweepOnHost", must: []string{"TestSweepOnHost"}, env: "BANGER_TEST_DISK=dmsnap"},
	{program: "fcproc.test", source: "internal/daemon/fcproc", run: ".", must: []string{"TestConformance/bare", "TestConformance/jailed", "TestRealGuest/bare"},
		needs: "FIRECRACKER_BIN", env: "BANGER_TEST_GUEST=" + guestDir},
}

// guestDir is made of what banger makes for a VM: a kernel, its first programs, and
// disks.
const guestDir = "/srv/guest"

const makeGuest = `set -e
banger vm run --rm --image small --disk 128M --memory 192M --net none -- true
kernel=$(dirname "$(banger kernel show lab --json | sed -n 's/.*"vmlinux": *"\(.*\)".*/\1/p')")
rm -rf ` + guestDir + ` && mkdir ` + guestDir + ` && cd ` + guestDir + `
ln -s "$kernel/vmlinux" "$kernel/modules.ext4" .
ln -s "$(ls -t /var/lib/banger/initramfs/*.cpio | head -1)" initramfs.cpio
ln -s /srv/small.ext4 rootfs.ext4
ls -L vmlinux modules.ext4 initramfs.cpio rootfs.ext4`

// The tests of packages that find what they need nowhere else.
func TestPackages(t *testing.T) {
	for _, s := range suites {
		t.Run(strings.TrimSuffix(s.program, ".test"), func(t *testing.T) { s.inLab(t) })
	}
}

func (s suite) inLab(t *testing.T) {
	env := []string{"BANGER_TEST_PATIENCE=3m", s.env}
	if s.needs != "" {
		if env = append(env, firecracker(t)...); len(env) == 2 {
			t.Skipf("no Firecracker: neither %s nor PATH has one", s.needs)
		}
		if _, err := lab("sh", "-c", makeGuest); err != nil {
			t.Fatal(err)
		}
	}
	if !full {
		env = append(env, fmt.Sprintf("SWEEP_SAMPLE=%d/%d", seed(t).Uint32(), 20))
	}
	dir := "/srv/tests/" + s.program
	send(t, filepath.Join(bin, "lab", s.program), dir+"/")
	if data := filepath.Join("..", "..", s.source, "testdata"); exists(data) {
		send(t, data, dir+"/")
	}
	line := fmt.Sprintf("cd %s && exec env %s ./%s -test.v -test.timeout %s -test.run '%s' 2>&1",
		dir, strings.Join(env, " "), s.program, 2*time.Hour, s.run)
	out, err := labWithin(3*time.Hour, "sh", "-c", line)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(out, 16<<10))
	}
	for _, name := range s.must {
		if !strings.Contains(out, "--- PASS: "+name) {
			t.Errorf("%s did not run:\n%s", name, tail(out, 4<<10))
		}
	}
	t.Logf("%d tests passed, skipped were %q", strings.Count(out, "--- PASS"), skipped(out))
}

// skipped are the tests that a run has left out.
func skipped(out string) (names []string) {
	for line := range strings.Lines(out) {
		if _, name, found := strings.Cut(strings.TrimSpace(line), "--- SKIP: "); found {
			names = append(names, name)
		}
	}
	return names
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tail is the end of a text, which is where tests say what failed.
func tail(text string, most int) string { return text[max(0, len(text)-most):] }

// send copies a file or a directory into the lab.
func send(t *testing.T, path, dest string) {
	t.Helper()
	if _, err := lab("mkdir", "-p", filepath.Dir(dest+"x")); err != nil {
		t.Fatal(err)
	}
	if _, err := host("cp", path, "lab:"+dest); err != nil {
		t.Fatal(err)
	}
}
