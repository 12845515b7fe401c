//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// churn makes, stops and deletes VMs for ever, of the made-up kind: it is the
// daemon's books that are to be tried, and the disks and taps of the host, not the
// guest. It says what was acknowledged, once it was.
const churn = `
i=0
while :; do
	i=$((i + 1))
	banger vm create --driver fake --net bridge --image small --disk 128M --name "churn-$i" >/dev/null && echo "made churn-$i"
	banger vm stop "churn-$i" >/dev/null && echo "stopped churn-$i"
	[ $((i % 3)) -eq 0 ] || { banger vm delete "churn-$i" >/dev/null && echo "deleted churn-$i"; }
done 2>&1`

// count keeps a number in a file of the guest, and says it when it was synced.
const count = `
i=$(cat /root/number 2>/dev/null || echo 0)
while :; do
	i=$((i + 1))
	echo $i >/root/number.new && sync /root/number.new && mv /root/number.new /root/number && sync /root || exit 1
	echo $i
done`

// saying runs something in the lab that goes on until the power is cut, and gathers
// the lines it says.
type saying struct {
	cmd       *exec.Cmd
	first     chan struct{} // closed with the first line
	lines     chan []string // all of them, at the end
	complaint bytes.Buffer  // to be read after the lines
}

func say(t *testing.T, args ...string) *saying {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s := &saying{
		cmd:   exec.CommandContext(ctx, filepath.Join(bin, "banger"), append([]string{"exec", "lab", "--"}, args...)...),
		first: make(chan struct{}), lines: make(chan []string, 1),
	}
	s.cmd.Stderr = &s.complaint
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		var all []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if all = append(all, lines.Text()); len(all) == 1 {
				close(s.first)
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = s.cmd.Wait()
		s.lines <- all
	}()
	return s
}

// begun waits for the first line.
func (s *saying) begun(t *testing.T) {
	t.Helper()
	select {
	case <-s.first:
	case all := <-s.lines:
		s.lines <- all
		if len(all) == 0 {
			t.Fatalf("%s ended before it said anything: %s", s.cmd, &s.complaint)
		}
	}
}

// cut takes the lab's power away, and gives it back.
func cut(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"vm", "kill", "lab"}, {"vm", "start", "--wait", "system", "lab"},
	} {
		if _, err := host(args...); err != nil {
			t.Fatal(err)
		}
	}
}

// rounds is how often the power goes: LAB_POWER_CUTS, else a few.
func rounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("LAB_POWER_CUTS"))
	if err != nil {
		return 3
	}
	return n
}

// seed is that of what happens by chance, LAB_SEED to have it again.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n, err := strconv.ParseUint(os.Getenv("LAB_SEED"), 10, 64)
	if err != nil {
		n = rand.Uint64N(1 << 32)
	}
	t.Logf("LAB_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// The power of the host goes at some moment while VMs come and go, and one of them
// writes. Afterwards every VM that was acknowledged is there, those whose end was are
// not, what the guest had synced is in its file, and nothing else of a VM is left.
func TestPowerCuts(t *testing.T) {
	chance := seed(t)
	ok(t, append([]string{"vm", "create", "--name", "kept"}, small...)...)
	t.Cleanup(func() { deleteAll(t) })
	var kept vm
	if decode(t, &kept, "vm", "show", "--json", "kept"); kept.State != "running" || kept.Accel != "kvm" {
		t.Fatalf("%+v", kept)
	}
	said := []string{"made kept"}
	for round := range rounds(t) {
		writing, churning := say(t, "banger", "exec", "kept", "--", "sh", "-c", count), say(t, "sh", "-c", churn)
		writing.begun(t)
		churning.begun(t)
		<-time.After(time.Duration(chance.IntN(20_000)) * time.Millisecond)
		cut(t)
		numbers := <-writing.lines
		now := append(slices.Clone(said), <-churning.lines...)
		t.Logf("round %d: %d numbers written; %q", round, len(numbers), now[len(said):])
		checkPower(t, now)
		ok(t, "vm", "start", "kept")
		last, err := strconv.Atoi(numbers[len(numbers)-1])
		got, nerr := strconv.Atoi(strings.TrimSpace(ok(t, "exec", "kept", "--", "cat", "/root/number")))
		if err != nil || nerr != nil || got < last {
			t.Errorf("round %d: the file holds %d, and %d was synced (%v, %v)", round, got, last, err, nerr)
		}
		// The next round begins with the one.
		for _, v := range list(t) {
			if v.Name != "kept" {
				ok(t, "vm", "delete", "--force", v.Name)
			}
		}
	}
}

func list(t *testing.T) (all []vm) {
	t.Helper()
	decode(t, &all, "vm", "list", "--all", "--json")
	return all
}

// checkPower compares what there is with what was said before the power went. What
// was under way then may have happened or not.
func checkPower(t *testing.T, said []string) {
	t.Helper()
	want := map[string]string{} // names, and the last that was said of them
	for _, line := range said {
		if what, name, found := strings.Cut(line, " "); found {
			want[name] = what
		}
	}
	under := fmt.Sprintf("churn-%d", len(want)) // kept is one of them
	var ids []string
	for _, v := range list(t) {
		ids = append(ids, v.ID)
		what, known := want[v.Name]
		switch {
		case !known && v.Name != under, what == "deleted":
			t.Errorf("%s is there, of which was said last: %q", v.Name, what)
		case v.State != "stopped":
			t.Errorf("%s is %s", v.Name, v.State)
		}
		delete(want, v.Name)
	}
	for name, what := range want {
		if what == "made" || what == "stopped" && name != last(said) {
			t.Errorf("%s is gone, of which was said last: %q", name, what)
		}
	}
	things, err := lab("sh", "-c", `ls /var/lib/banger/vms
		dmsetup ls 2>/dev/null | awk '/banger/ { print $1 }'
		cat /sys/block/loop*/loop/backing_file 2>/dev/null || true`)
	if err != nil {
		t.Fatal(err)
	}
	for _, thing := range strings.Fields(things) {
		if !slices.Contains(ids, thing) {
			t.Errorf("%s belongs to no VM that there is", thing)
		}
	}
}

// last is the VM that was spoken of last: its delete may have been under way.
func last(said []string) string {
	_, name, _ := strings.Cut(said[len(said)-1], " ")
	return name
}

func deleteAll(t *testing.T) {
	t.Helper()
	for _, v := range list(t) {
		ok(t, "vm", "delete", "--force", v.Name)
	}
}
