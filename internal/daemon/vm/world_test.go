package vm_test

import (
	"context"
	"fmt"
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
	"banger/internal/daemon/vm"
	"banger/internal/daemon/vmlock"
	"banger/internal/hypervisor"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"

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

	// The parts below are replaced by restart.
	db    *store.Store
	ops   *opstate.Service
	svc   *vm.Service
	fake  *watchedDriver
	locks *vmlock.Set
	fault atomic.Pointer[func(step string) error]
	rows  rowFaults
	lease time.Duration
	uids  int
}

// watchedDriver remembers the machine it started last.
type watchedDriver struct {
	hypervisor.Driver
	last atomic.Pointer[hypervisor.Machine]
}

func (d *watchedDriver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	m, err := d.Driver.Start(ctx, spec)
	if err == nil {
		d.last.Store(&m)
	}
	return m, err
}

// rowFaults are writes to the database that are to fail, by kind.
type rowFaults struct{ updates, deletes atomic.Int32 }

// faultyStore is the database of a world, with a disk that is full now and then.
type faultyStore struct {
	*store.Store
	faults *rowFaults
}

func (s faultyStore) UpdateVM(ctx context.Context, v *model.VM) error {
	if s.faults.updates.Add(-1) >= 0 {
		return errInjected
	}
	return s.Store.UpdateVM(ctx, v)
}

func (s faultyStore) DeleteVM(ctx context.Context, id string) error {
	if s.faults.deletes.Add(-1) >= 0 {
		return errInjected
	}
	return s.Store.DeleteVM(ctx, id)
}

func newWorld(t *testing.T) *world { return newWorldWith(t, func(*world) {}) }

// newWorldWith makes a world whose service is set up as option says.
func newWorldWith(t *testing.T, option func(*world)) *world {
	t.Helper()
	layout, err := paths.At(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, layout: layout, net: &network{attached: map[string]bool{}}}
	option(w)
	w.open()
	ctx := context.Background()
	rootfs := filepath.Join(layout.State, "rootfs.ext4")
	if err := os.WriteFile(rootfs, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.db.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian"}); err != nil {
		t.Fatal(err)
	}
	if err := w.db.PutImage(ctx, model.Image{ID: "i1", Name: "debian", Path: rootfs, SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.inject(nil)
		for _, v := range w.vms() {
			w.must(w.delete(v.Name, true))
		}
		w.close()
		if left := w.processes(); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
	})
	return w
}

func (w *world) open() {
	db, _, err := store.Open(context.Background(), w.layout.Database())
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testLog{w.t}, nil))
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	w.db, w.ops = db, opstate.New(log)
	w.fake = &watchedDriver{Driver: fakevm.New(fakevm.Deps{Command: []string{self, "fakevm"}, Log: log})}
	w.locks = &vmlock.Set{Noun: "vm"}
	w.svc = vm.New(vm.Deps{
		Store: faultyStore{db, &w.rows}, Layout: w.layout, Log: log, Ops: w.ops, Network: w.net,
		Drivers:   map[string]hypervisor.Driver{w.fake.Name(): w.fake},
		Pick:      func(context.Context) (hypervisor.Driver, error) { return w.fake, nil },
		Artifacts: artifacts{db}, Disks: disks{},
		Defaults: vm.Defaults{
			CPUs: 1, MemoryMiB: 128, DiskBytes: 64 << 20, Image: "debian", Kernel: "debian",
			Net: model.NetUser, StopTimeout: 20 * time.Second, BootTimeout: 30 * time.Second,
		},
		MaxVMs: 100, MaxBoots: 4, Locks: w.locks, Lease: w.lease, UIDBase: w.uids,
		Faults: func(step string) error {
			if fault := w.fault.Load(); fault != nil {
				return (*fault)(step)
			}
			return nil
		},
	})
}

func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w.must(w.ops.Close(ctx))
	w.must(w.svc.Close())
	w.must(w.db.Close())
	w.rows.updates.Store(0)
	w.rows.deletes.Store(0)
}

// restart is a daemon that ends and another that begins on the same host.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.inject(nil)
	w.open()
	w.must(w.svc.Restore(context.Background()))
}

// inject makes the service call fault after every step; nil: nothing.
func (w *world) inject(fault func(step string) error) {
	if fault == nil {
		w.fault.Store(nil)
		return
	}
	w.fault.Store(&fault)
}

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

// snapshot describes the world: rows, directories, processes, network.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	running := w.processes()
	for _, v := range w.vms() {
		fmt.Fprintf(&b, "row %s %s\n", v.Name, v.State)
	}
	entries, _ := os.ReadDir(w.layout.VMs())
	for _, e := range entries {
		fmt.Fprintf(&b, "dir %s\n", e.Name())
	}
	fmt.Fprintf(&b, "processes %v\n", running)
	fmt.Fprintf(&b, "network %v\n", w.net.list())
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
		dirs = append(dirs, v.ID)
		if _, err := os.Stat(filepath.Join(w.layout.VM(v.ID), paths.RootDiskFile)); err != nil {
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
	if got := w.net.list(); !slices.Equal(got, running) {
		w.t.Errorf("network %v, want %v", got, running)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// artifacts stands for the image service: what is asked for is there.
type artifacts struct{ db *store.Store }

func (a artifacts) EnsureImage(ctx context.Context, name string, _ model.Progress) (model.Image, error) {
	return a.db.ImageByName(ctx, name)
}

func (a artifacts) EnsureKernel(ctx context.Context, name string, _ model.Progress) (model.Kernel, error) {
	return a.db.KernelByName(ctx, name)
}

func (artifacts) BootFiles(context.Context, model.Kernel) (model.BootFiles, error) {
	return model.BootFiles{Vmlinux: "/vmlinux", Initramfs: "/initramfs"}, nil
}

type disks struct{}

func (disks) Create(_ context.Context, image model.Image, dest string, _ int64, _ bool) (hypervisor.DiskFormat, error) {
	b, err := os.ReadFile(image.Path)
	if err != nil {
		return "", err
	}
	return hypervisor.FormatRaw, os.WriteFile(dest, b, 0o600)
}

// network remembers who is attached.
type network struct {
	mu       sync.Mutex
	attached map[string]bool
}

func (n *network) Attach(_ context.Context, id, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached[id] = true
	return nil
}

func (n *network) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	return nil
}

func (n *network) Restore(_ context.Context, sockets map[string]string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached = map[string]bool{}
	for id := range sockets {
		n.attached[id] = true
	}
	return nil
}

func (n *network) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}
