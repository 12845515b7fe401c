package vm_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/daemon/fakevm"
	"banger/internal/daemon/opstate"
	"banger/internal/daemon/rootdisk"
	"banger/internal/daemon/vm"
	"banger/internal/daemon/vmcap"
	"banger/internal/daemon/vmlock"
	"banger/internal/hypervisor"
	"banger/internal/lockrank"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/store/storetest"

	"connectrpc.com/connect"
)

// TestMain lets the test binary play the fake VMM's process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "fakevm" {
		os.Exit(fakevm.ChildMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// world is one state directory and everything a daemon's VM service makes in it
// and around it. It outlives any one service, as a host outlives its daemon.
type world struct {
	t      *testing.T
	layout paths.Layout
	net    *network
	bridge *bridge
	more   []capability
	disks  *disks
	mode   model.Net // of the VMs

	ended sync.Once

	// The parts below are replaced by restart.
	db    *store.Store
	ops   *opstate.Service
	svc   *vm.Service
	fake  *watchedDriver
	locks *vmlock.Set
	fault atomic.Pointer[func(point) error]
	step  atomic.Pointer[string] // the step that runs, or ran last
	clock func(time.Duration, func()) vm.Timer
	uids  int
	max   int // how many VMs may exist
	boots int // how many may boot at once
}

// capability is one that a test has made up, with what there is of it in the world.
type capability interface {
	hooks(w *world) vmcap.Capability
	// state is part of the snapshot of a world.
	state() string
	// legal says what is wrong with its state when these VMs run and no verb is at work.
	legal(all, running []string) error
}

func newWorld(t *testing.T) *world { return newWorldWith(t, func(*world) {}) }

// newWorldWith makes a world whose service is set up as option says.
func newWorldWith(t *testing.T, option func(*world)) *world {
	t.Helper()
	layout, err := paths.At(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, layout: layout, max: 100, boots: 4, mode: model.NetUser}
	w.net = &network{w: w, attached: map[string]bool{}}
	w.bridge = &bridge{w: w, names: map[string]string{}}
	w.disks = &disks{inner: diskMethod(t, layout), w: w, active: map[string]bool{}, bounded: map[string]bool{}, devices: map[string]bool{}}
	option(w)
	w.open()
	rootfs := filepath.Join(layout.State, "rootfs.ext4")
	if err := os.WriteFile(rootfs, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	storetest.Kernel(t, w.db, model.Kernel{})
	storetest.Image(t, w.db, model.Image{Path: rootfs, SizeBytes: 1 << 20})
	return w
}

// end takes the world down, with whatever daemon runs in it.
func (w *world) end() {
	w.inject(nil)
	for _, v := range w.vms() {
		w.must(w.delete(v.Name, true))
	}
	w.close()
	if left := w.processes(); len(left) > 0 {
		w.t.Errorf("processes left: %v", left)
	}
}

func (w *world) open() {
	db := storetest.Open(w.t, w.layout.Database())
	w.t.Cleanup(func() { w.ended.Do(w.end) }) // before the database closes, so at each open
	log := slog.New(slog.NewTextHandler(testLog{w.t}, nil))
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	w.db, w.ops = db, opstate.New(log)
	w.fake = &watchedDriver{w: w, Driver: fakevm.New(fakevm.Deps{Command: []string{self, "fakevm"}, Log: log})}
	w.locks = &vmlock.Set{Noun: "vm", Rank: lockrank.VM}
	caps := []vmcap.Capability{w.net.capability(), w.bridge.nat(), w.bridge.dns()}
	for _, c := range w.more {
		caps = append(caps, c.hooks(w))
	}
	w.svc = vm.New(vm.Deps{
		Store: faultyStore{db, w}, Layout: w.layout, Log: log, Ops: w.ops, Caps: vmcap.New(caps...),
		Drivers: map[string]hypervisor.Driver{w.fake.Name(): w.fake},
		Pick: func(context.Context, vm.Want) (vm.Choice, error) {
			return vm.Choice{Driver: w.fake, Why: "of the test"}, nil
		},
		Artifacts: artifacts{db, w}, Disks: w.disks,
		Defaults: vm.Defaults{
			CPUs: 1, MemoryMiB: 128, DiskBytes: 64 << 20, Image: "debian", Kernel: "debian",
			Net: w.mode, StopTimeout: 20 * time.Second, BootTimeout: 30 * time.Second,
		},
		MaxVMs: w.max, MaxBoots: w.boots, Locks: w.locks, After: w.clock, UIDBase: w.uids,
		Faults: func(step string, done bool) error {
			w.step.Store(&step)
			return w.at("", done)
		},
	})
}

func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w.must(w.ops.Close(ctx))
	w.must(w.svc.Close())
	w.must(w.db.Close())
	w.inject(nil)
}

// restart is a daemon that ends and another that begins on the same host.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
	w.must(w.svc.Restore(context.Background()))
}

// inject makes fault be asked after every step; nil: nothing.
func (w *world) inject(fault func(step string) error) {
	if fault == nil {
		w.fault.Store(nil)
		return
	}
	w.injectAt(func(p point) error {
		if p.call != "" || !p.done {
			return nil
		}
		return fault(p.step)
	})
}

// injectAt makes fault be asked at every point.
func (w *world) injectAt(fault func(point) error) { w.fault.Store(&fault) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// wait follows an operation to its end.
func (w *world) wait(resp *connect.Response[bangerv1.Operation], err error) error {
	w.t.Helper()
	if err != nil {
		return api.FromConnect(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	rec, err := w.ops.Await(ctx, resp.Msg.Id)
	if err != nil {
		return err
	}
	return api.FromDetail(rec.Error)
}

func (w *world) create(name string, start bool) error {
	return w.wait(w.svc.Handlers().Create(context.Background(), connect.NewRequest(&bangerv1.CreateRequest{Name: name, NoStart: !start})))
}

func (w *world) start(name string) error {
	return w.wait(w.svc.Handlers().Start(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: name})))
}

func (w *world) stop(name string) error {
	return w.wait(w.svc.Handlers().Stop(context.Background(), connect.NewRequest(&bangerv1.StopRequest{Ref: name})))
}

func (w *world) kill(name string) error {
	return w.wait(w.svc.Handlers().Kill(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: name})))
}

func (w *world) delete(name string, force bool) error {
	return w.wait(w.svc.Handlers().Delete(context.Background(), connect.NewRequest(&bangerv1.DeleteRequest{Ref: name, Force: force})))
}

func (w *world) vms() []model.VM {
	w.t.Helper()
	all, err := w.db.ListVMs(context.Background())
	w.must(err)
	return all
}

// settled waits until the VM is in a state no verb or watcher is going to change.
func (w *world) settled(name string) model.State {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	resp, err := w.svc.Handlers().Wait(ctx, connect.NewRequest(&bangerv1.VMRef{Ref: name}))
	w.must(err)
	return model.State(resp.Msg.State)
}

// processes lists the VMMs that run in this world, found by where they run.
func (w *world) processes() []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range dirs {
		if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, w.layout.VMs()+"/") {
			out = append(out, filepath.Base(strings.TrimSuffix(dir, " (deleted)")))
		}
	}
	slices.Sort(out)
	return out
}

// logs are files whose size says nothing, handles are those of a VM that runs.
var (
	logs    = []string{paths.ConsoleLog, paths.VMMLog}
	handles = []string{paths.HandlesFile, paths.QMPSocket, paths.AgentSocket, paths.NetSocket}
)

// snapshot describes the world: rows, files, processes, network. What is new at
// every start (its id and time) and what a log holds are left out.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	for _, v := range w.vms() {
		fmt.Fprintf(&b, "row %s %s %s, image %s %s, kernel %s, uid %d, error %q, %+v\n",
			v.ID, v.Name, v.State, v.ImageID, v.ImageRef, v.KernelID, v.VMMUID, v.LastError, v.Spec)
	}
	w.must(filepath.WalkDir(w.layout.State, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, w.layout.State+"/")
		if strings.HasPrefix(name, paths.DatabaseFile) || d.IsDir() && path == w.layout.VMs() {
			return nil // SQLite's files come and go; the directory of all VMs stays
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "file %s %s", name, info.Mode())
		if info.Mode().IsRegular() && !slices.Contains(logs, d.Name()) {
			fmt.Fprintf(&b, " %d", info.Size())
		}
		b.WriteByte('\n')
		return nil
	}))
	fmt.Fprintf(&b, "processes %v, disks %v\n", w.processes(), w.disks.list())
	leases, err := w.db.Leases(context.Background())
	w.must(err)
	fmt.Fprintf(&b, "network %v, bridge %v, leases %v\n", w.net.list(), w.bridge.known(), leases)
	for _, c := range w.more {
		fmt.Fprintln(&b, c.state())
	}
	return b.String()
}

// checkLegal verifies what must hold whenever no verb is at work: directories,
// processes and network are those of the rows, and no others.
func (w *world) checkLegal() {
	w.t.Helper()
	var dirs, running []string
	for _, v := range w.vms() {
		switch v.State {
		case model.StateRunning:
			running = append(running, v.ID)
		case model.StateStopped:
		default:
			w.t.Errorf("vm %s is left %s", v.Name, v.State)
		}
		for _, name := range handles {
			_, err := os.Lstat(filepath.Join(w.layout.VM(v.ID), name))
			if exists := err == nil; exists != (v.State == model.StateRunning) {
				w.t.Errorf("vm %s is %s; %s exists: %v", v.Name, v.State, name, exists)
			}
		}
		dirs = append(dirs, v.ID)
		if _, err := w.disks.Used(rootdisk.Disk{VMID: v.ID, Dir: w.layout.VM(v.ID)}); err != nil {
			w.t.Errorf("vm %s has lost its disk: %v", v.Name, err)
		}
	}
	slices.Sort(dirs)
	slices.Sort(running)
	var have []string
	entries, _ := os.ReadDir(w.layout.VMs())
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if !slices.Equal(have, dirs) {
		w.t.Errorf("directories %v, want %v", have, dirs)
	}
	if got := w.processes(); !slices.Equal(got, running) {
		w.t.Errorf("processes %v, want %v", got, running)
	}
	if got := w.disks.list(); !slices.Equal(got, running) {
		w.t.Errorf("active disks %v, want %v", got, running)
	}
	if got := w.disks.inKernel(); w.disks.inner.Name() == "dmsnap" && !slices.Equal(got, running) {
		w.t.Errorf("device-mapper has the disks of %v, want %v", got, running)
	}
	w.checkNetwork(running)
	for _, c := range w.more {
		if err := c.legal(dirs, running); err != nil {
			w.t.Error(err)
		}
	}
}

// checkNetwork verifies that the running VMs, and no others, are on their network
// and known by their names, and that no tap but theirs is open.
func (w *world) checkNetwork(running []string) {
	w.t.Helper()
	known := map[string]string{}
	var leased, attached []string
	for _, v := range w.vms() {
		runs := slices.Contains(running, v.ID)
		switch v.Spec.Net {
		case model.NetBridge:
			leased = append(leased, v.ID)
			if runs {
				known[v.ID] = v.Name
			}
		case model.NetUser:
			if runs {
				attached = append(attached, v.ID)
			}
		}
	}
	slices.Sort(attached)
	if got := w.net.list(); !slices.Equal(got, attached) {
		w.t.Errorf("network %v, want %v", got, attached)
	}
	if got := w.bridge.known(); !maps.Equal(got, known) {
		w.t.Errorf("on the bridge are %v, want %v", got, known)
	}
	all, err := w.db.Leases(context.Background())
	w.must(err)
	var have []string
	for _, l := range all {
		have = append(have, l.VMID)
	}
	slices.Sort(leased)
	if !slices.Equal(have, leased) {
		w.t.Errorf("addresses are leased to %v, want %v", have, leased)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
