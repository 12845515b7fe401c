package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/daemon/steps/stepstest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/nettest"
	"banger/internal/paths"
	"banger/internal/store"
)

// The sweep of package vm runs over fakes of everything a VM has on its host. This
// one runs over the real ones: a daemon in a process of its own, with taps, a bridge,
// firewall rules, and root disks of the kind the host is best at. Only the VMM is
// made up.

// How a daemon is disturbed at a point.
const (
	disturbNot   = ""
	disturbFail  = "fail"  // the step fails
	disturbCrash = "crash" // the daemon is killed
)

// victimMain is a daemon that is disturbed at one point. It says so on stdout when it
// serves, then every point that it passes.
func victimMain(args []string) int {
	state, conf, agent, disturb := args[0], args[1], args[2], args[3]
	at, err := strconv.ParseInt(args[4], 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	layout, err := paths.At(state)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var serving atomic.Bool
	var passed atomic.Int64
	self, _ := os.Executable()
	d, err := Open(context.Background(), Options{
		Layout: layout, ConfigFile: conf, Self: []string{self}, AgentPath: agent,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		faults: func(step string, done bool) error {
			if !serving.Load() {
				return nil // it settles what was before
			}
			// One that has died prints nothing and does nothing any more.
			fmt.Println(when(done), step)
			if passed.Add(1)-1 != at {
				return nil
			}
			if disturb == disturbCrash {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			return errors.New("injected fault")
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx) }()
	serving.Store(true)
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it, or is gone itself
	stop()
	if err := errors.Join(<-ended, d.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func when(done bool) string {
	if done {
		return "after"
	}
	return "before"
}

// victim is such a daemon, seen from outside.
type victim struct {
	h      *host
	cmd    *exec.Cmd
	stdin  io.Closer
	lines  chan string // what it says; closed at its end
	log    *strings.Builder
	client *client.Client
}

func (h *host) victim(disturb string, at int) *victim {
	h.t.Helper()
	v := &victim{h: h, log: new(strings.Builder), lines: make(chan string, 1000), client: client.New(h.opts.Layout.Socket)}
	v.cmd = exec.Command(h.opts.Self[0], "daemon", h.opts.Layout.State, h.opts.ConfigFile, h.opts.AgentPath, disturb, strconv.Itoa(at))
	v.cmd.Stderr = v.log
	var err error
	v.stdin, err = v.cmd.StdinPipe()
	h.must(err)
	out, err := v.cmd.StdoutPipe()
	h.must(err)
	h.must(v.cmd.Start())
	go func() {
		defer close(v.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			v.lines <- s.Text()
		}
	}()
	if first := <-v.lines; first != "serving" {
		_ = v.cmd.Wait()
		h.t.Fatalf("the daemon did not open: %s", v.log)
	}
	h.t.Cleanup(func() { v.end(true) })
	return v
}

// end ends the daemon in order, or waits for the death that it is to die, and returns
// the points it has passed.
func (v *victim) end(dead bool) (passed []string) {
	v.h.t.Helper()
	if v.cmd.ProcessState != nil {
		return nil
	}
	_ = v.stdin.Close()
	for line := range v.lines {
		passed = append(passed, line)
	}
	if err := v.cmd.Wait(); err != nil && !dead {
		v.h.t.Errorf("the daemon ended with %v: %s", err, v.log)
	}
	v.client.Close()
	return passed
}

// hostVerb is what is swept.
type hostVerb struct {
	name string
	have model.State // of the VM before; "": there is none
	do   func(v *victim) error
	want model.State // of it after
}

func done(v *victim, op *bangerv1.Operation, err error) error {
	if err != nil {
		return err
	}
	_, err = v.client.WaitOperation(context.Background(), op, nil)
	return err
}

func hostVerbs() []hostVerb {
	ctx := context.Background()
	create := func(start bool) func(v *victim) error {
		return func(v *victim) error {
			op, err := v.client.CreateVM(ctx, &bangerv1.CreateRequest{Name: "dev", NoStart: !start, Ports: []*bangerv1.Port{{GuestPort: 7}}})
			return done(v, op, err)
		}
	}
	remove := func(v *victim) error {
		op, err := v.client.DeleteVM(ctx, "dev", true)
		return done(v, op, err)
	}
	const running, stopped = model.StateRunning, model.StateStopped
	return []hostVerb{
		{name: "create", do: create(true), want: running},
		{name: "create without start", do: create(false), want: stopped},
		{name: "start", have: stopped, want: running, do: func(v *victim) error {
			op, err := v.client.StartVM(ctx, "dev")
			return done(v, op, err)
		}},
		{name: "stop", have: running, want: stopped, do: func(v *victim) error {
			op, err := v.client.StopVM(ctx, &bangerv1.StopRequest{Ref: "dev"})
			return done(v, op, err)
		}},
		{name: "restart", have: running, want: running, do: func(v *victim) error {
			op, err := v.client.RestartVM(ctx, &bangerv1.StopRequest{Ref: "dev"})
			return done(v, op, err)
		}},
		{name: "delete", have: stopped, do: remove},
		{name: "delete a running one", have: running, do: remove},
	}
}

// bring makes the VM what a verb is to find.
func (v *victim) bring(state model.State) {
	v.h.t.Helper()
	all := hostVerbs()
	if state != "" {
		v.h.must(all[0].do(v))
	}
	if state == model.StateStopped {
		v.h.must(all[3].do(v)) // it has been started, so that its logs are there
	}
}

// check verifies that what is on the host is what a VM in that state has.
func (h *host) check(want model.State) {
	h.t.Helper()
	now := h.inventory()
	if state, _, _ := strings.Cut(now.kind(), ","); state != string(want) {
		h.t.Errorf("VMs %+v are left, want one that is %q", now.VMs, want)
	}
	if was := h.usual[now.kind()]; now.things() != was {
		h.t.Errorf("on the host there is\n%swith a vm that is %q there usually is\n%s", now.things(), now.kind(), was)
	}
}

// Every step of every verb fails, and the daemon is killed before and after every
// step: nothing is left that the VM, in the state it is in then, does not have.
func TestSweepOnHost(t *testing.T) {
	nettest.Require(t)
	if testing.Short() {
		t.Skip("takes minutes")
	}
	for _, disturb := range []string{disturbFail, disturbCrash} {
		t.Run(disturb, func(t *testing.T) {
			for _, verb := range hostVerbs() {
				t.Run(verb.name, func(t *testing.T) { verb.sweep(t, disturb) })
			}
		})
	}
}

func newSweptHost(t *testing.T) *host {
	h := newHost(t)
	conf := strings.Replace(testConfig, "net: none", "net: bridge", 1)
	if method := os.Getenv("BANGER_TEST_DISK"); method != "" {
		conf += "root_disk: " + method + "\n"
	}
	h.write(h.opts.ConfigFile, conf)
	h.artifacts()
	h.usual = map[string]string{}
	note := func(bring func(v *victim)) {
		v := h.victim(disturbNot, -1)
		bring(v)
		v.end(false)
		now := h.inventory()
		h.usual[now.kind()] = now.things()
		h.clear()
	}
	note(func(v *victim) { v.bring(model.StateRunning) })
	note(func(v *victim) { v.bring(model.StateStopped) })
	note(func(v *victim) { h.must(hostVerbs()[1].do(v)) })
	note(func(*victim) {})
	return h
}

// clear deletes the VM, if there is one.
func (h *host) clear() {
	h.t.Helper()
	v := h.victim(disturbNot, -1)
	all := hostVerbs()
	if err := all[len(all)-1].do(v); !errors.Is(err, errdefs.ErrNotFound) {
		h.must(err)
	}
	v.end(false)
}

func (verb hostVerb) sweep(t *testing.T, disturb string) {
	h := newSweptHost(t)
	v := h.victim(disturbNot, -1)
	v.bring(verb.have)
	v.end(false)
	v = h.victim(disturbNot, -1)
	h.must(verb.do(v))
	points := v.end(false)
	h.check(verb.want)
	if len(points) < 4 {
		t.Fatalf("the verb passed only %v: the sweep would prove nothing", points)
	}
	h.clear()
	for at, point := range points {
		if !stepstest.Sampled() {
			continue
		}
		t.Run(fmt.Sprintf("%02d %s", at, point), func(t *testing.T) {
			h := h.with(t)
			v := h.victim(disturbNot, -1)
			v.bring(verb.have)
			v.end(false)
			v = h.victim(disturb, at)
			err := verb.do(v)
			passed := v.end(disturb == disturbCrash)
			if len(passed) <= at || passed[at] != point {
				t.Fatalf("it passed %v, undisturbed %v", passed, points)
			}
			if err == nil && disturb == disturbFail {
				t.Error("the verb succeeded although a step failed")
			}
			// Whoever comes next settles it.
			v = h.victim(disturbNot, -1)
			state := v.state()
			v.end(false)
			half := verb.have == model.StateRunning && state == model.StateStopped
			if state != verb.have && state != verb.want && !half {
				t.Errorf("the vm is %q, was %q, to be %q", state, verb.have, verb.want)
			}
			h.check(state)
			h.clear()
			h.check("")
		})
	}
}

// with is h for a subtest.
func (h *host) with(t *testing.T) *host {
	sub := *h
	sub.t = t
	return &sub
}

// state is that of the VM; "": there is none.
func (v *victim) state() model.State {
	v.h.t.Helper()
	vm, err := v.client.GetVM(context.Background(), "dev")
	if errors.Is(err, errdefs.ErrNotFound) {
		return ""
	}
	v.h.must(err)
	return model.State(vm.GetState())
}

// ours says whether a file is of this host's daemon.
func (h *host) ours(path string) bool {
	return strings.HasPrefix(path, filepath.Dir(h.opts.ConfigFile)+"/")
}

// inventory is everything on the host that banger has a hand in.
type inventory struct {
	VMs   []model.VM
	lines []string
}

func (i *inventory) add(format string, args ...any) {
	i.lines = append(i.lines, fmt.Sprintf(format, args...))
}

// kind is what decides on what there has to be: the state of the VM there is, and
// whether it has ever run, which leaves logs and more.
func (i inventory) kind() string {
	switch {
	case len(i.VMs) == 0:
		return ""
	case len(i.VMs) > 1:
		return "more than one"
	case i.VMs[0].StartedAt.IsZero():
		return string(i.VMs[0].State) + ", never run"
	}
	return string(i.VMs[0].State)
}

// things are what is there, but for what differs from VM to VM.
func (i inventory) things() string {
	text := strings.Join(slices.Sorted(slices.Values(i.lines)), "\n") + "\n"
	for _, v := range i.VMs {
		text = strings.ReplaceAll(text, v.ID, "ID")
	}
	return text
}

func (h *host) inventory() (i inventory) {
	h.t.Helper()
	h.rows(&i)
	h.files(&i)
	h.processes(&i)
	h.devices(&i)
	h.network(&i)
	return i
}

// read is the content of a file that may be gone by now.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h *host) files(i *inventory) {
	h.t.Helper()
	h.must(filepath.WalkDir(h.opts.Layout.State, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(h.opts.Layout.State, path)
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(rel, filepath.Base(h.opts.Layout.Database())), e.IsDir() && rel == "vms",
			strings.HasSuffix(rel, ".log"), strings.Contains(rel, ".log."):
			return nil // as many as there was to say
		}
		i.add("file %s %s", e.Type(), rel)
		return nil
	}))
}

func (h *host) processes(i *inventory) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err == nil && h.ours(cwd+"/") {
			i.add("process %s", filepath.Base(cwd))
		}
	}
}

func (h *host) devices(i *inventory) {
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if file := read(l); h.ours(file) {
			i.add("loop %s", filepath.Base(file))
		}
	}
	maps, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, m := range maps {
		if name := read(m); strings.Contains(name, "banger") {
			i.add("dm %s", name)
		}
	}
	for _, line := range strings.Split(read("/proc/self/mountinfo"), "\n") {
		if f := strings.Fields(line); len(f) > 4 && h.ours(f[4]) {
			i.add("mount %s", f[4])
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/banger*/*")
	for _, g := range groups {
		if st, err := os.Stat(g); err == nil && st.IsDir() {
			i.add("cgroup %s", g)
		}
	}
}

// network adds bridge, taps and rules. Which of the taps is whose differs, as does
// which ones are warm.
func (h *host) network(i *inventory) {
	h.t.Helper()
	var links []struct {
		Name   string `json:"ifname"`
		Master string `json:"master"`
	}
	out, err := exec.Command("ip", "-j", "link", "show").Output()
	h.must(err)
	h.must(json.Unmarshal(out, &links))
	bridges := 0
	for _, l := range links {
		if l.Name != "lo" && l.Master == "" {
			i.add("link %s", l.Name)
			bridges++
		}
	}
	if bridges == 0 && len(links) > 1 {
		i.add("%d links without a bridge", len(links)-1)
	}
	var rules struct {
		Nftables []map[string]struct {
			Name string            `json:"name"`
			Elem []json.RawMessage `json:"elem"`
		} `json:"nftables"`
	}
	out, err = exec.Command("nft", "-j", "list", "ruleset").Output()
	h.must(err)
	h.must(json.Unmarshal(out, &rules))
	for _, object := range rules.Nftables {
		for kind, o := range object {
			if kind != "metainfo" {
				i.add("nft %s %s of %d", kind, o.Name, len(o.Elem))
			}
		}
	}
}

// rows adds what the database says.
func (h *host) rows(i *inventory) {
	h.t.Helper()
	ctx := context.Background()
	db, _, err := store.Open(ctx, h.opts.Layout.Database())
	h.must(err)
	i.VMs, err = db.ListVMs(ctx)
	h.must(err)
	leases, err := db.Leases(ctx)
	h.must(err)
	ports, err := db.Ports(ctx)
	h.must(err)
	h.must(db.Close())
	for _, p := range ports {
		i.add("port of %s to %d", p.VMID, p.Guest)
	}
	for _, l := range leases {
		i.add("lease of %s, with a tap: %t", l.VMID, l.Tap != "")
	}
}
