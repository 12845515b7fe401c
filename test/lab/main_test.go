//go:build lab

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds a command in the lab: a boot there is emulated twice.
const patience = 5 * time.Minute

// answerTime is how long nothing at all may answer in the lab.
const answerTime = 2 * time.Minute

// bin is the directory of the programs, on this side and after install in the lab.
var bin = os.Getenv("BANGER_LAB_BIN")

const inside = "/usr/local/bin"

// full asks for everything, and not what fits into a run for each change.
var full = os.Getenv("LAB_FULL") != ""

func TestMain(m *testing.M) {
	if bin == "" {
		fmt.Fprintln(os.Stderr, "BANGER_LAB_BIN is not set: run scripts/lab test")
		os.Exit(2)
	}
	go watch()
	if err := install(); err != nil {
		fmt.Fprintln(os.Stderr, "install banger in the lab:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// watch ends everything when the lab has hung up: QEMU's emulation of processors is
// not beyond that. scripts/lab begins again then.
func watch() {
	for {
		<-time.After(answerTime / 4)
		if _, err := labWithin(answerTime, "true"); errors.Is(err, context.DeadlineExceeded) {
			fmt.Fprintf(os.Stderr, "the lab has not answered for %v\n", answerTime)
			os.Exit(1)
		}
	}
}

// install brings the programs, the kernel of this host's daemon and a small image
// into the lab. What an earlier run left there goes first.
func install() error {
	steps := [][]string{
		{"exec", "lab", "--", "sh", "-c", `command -v banger >/dev/null || exit 0
			[ ! -e /etc/systemd/system/bangerd.service ] || banger system uninstall --force
			banger vm list --all --json | grep -q '"name"' && banger vm list --all --quiet | xargs banger vm delete --force
			banger daemon stop || true`},
		{"cp", filepath.Join(bin, "banger"), "lab:" + inside + "/"},
		{"cp", filepath.Join(bin, "bangerd"), "lab:" + inside + "/"},
		{"cp", filepath.Join(bin, "banger-agent"), "lab:" + inside + "/"},
	}
	for _, args := range steps {
		if _, err := host(args...); err != nil {
			return err
		}
	}
	var kernel struct{ Vmlinux string }
	out, err := host("kernel", "show", "--json", "debian")
	if err == nil {
		err = json.Unmarshal([]byte(out), &kernel)
	}
	if err != nil {
		return err
	}
	if _, err := lab("test", "-e", "/srv/kernel/vmlinux"); err != nil {
		if _, err := lab("mkdir", "-p", "/srv/kernel/lib"); err != nil {
			return err
		}
		if _, err := host("cp", kernel.Vmlinux, "lab:/srv/kernel/vmlinux"); err != nil {
			return err
		}
		if _, err := lab("cp", "-r", "/lib/modules", "/srv/kernel/lib/"); err != nil {
			return err
		}
	}
	_, err = lab("sh", "-c", makeSmall)
	return err
}

// makeSmall registers a kernel and an image that is a shell and little else.
const makeSmall = `set -e
if [ ! -e /srv/small.ext4 ]; then
	rm -rf /srv/small && mkdir -p /srv/small/bin /srv/small/etc /srv/small/tmp /srv/small/root
	cp /bin/busybox /srv/small/bin/
	for a in $(busybox --list); do [ "$a" = busybox ] || ln -s busybox "/srv/small/bin/$a"; done
	mke2fs -q -t ext4 -d /srv/small /srv/small.ext4 96M
fi
banger kernel show lab >/dev/null 2>&1 || banger kernel import lab --from /srv/kernel
banger image show small >/dev/null 2>&1 || banger image register small --rootfs /srv/small.ext4 --kernel lab`

// small are the flags of a VM in the lab that boots as fast as one can there.
var small = []string{"--image", "small", "--disk", "128M", "--memory", "192M"}

// host runs banger on this side.
func host(args ...string) (string, error) { return hostWithin(patience, args...) }

func hostWithin(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "banger"), args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		err = errors.Join(err, ctx.Err())
		return out.String(), fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), nil
}

// lab runs a command in the lab.
func lab(args ...string) (string, error) { return labWithin(patience, args...) }

func labWithin(limit time.Duration, args ...string) (string, error) {
	return hostWithin(limit, append([]string{"exec", "lab", "--"}, args...)...)
}

// ok runs banger in the lab and returns what it prints.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab(append([]string{"banger"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// decode runs banger in the lab and decodes the JSON it prints.
func decode(t *testing.T, into any, args ...string) {
	t.Helper()
	if out := ok(t, args...); json.Unmarshal([]byte(out), into) != nil {
		t.Fatalf("banger %s prints no JSON of that kind: %s", strings.Join(args, " "), out)
	}
}
