package imagemgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/store/storetest"
)

// world is a service on a state directory and a real store, whose images and
// kernels are made in no time.
type world struct {
	t      *testing.T
	s      *Service
	db     *store.Store
	layout paths.Layout
	pulls  atomic.Int32
	// during, when set, runs in the middle of a pull, with half of it on the disk.
	during func(ctx context.Context) error
}

func newWorld(t *testing.T) *world { return worldAt(t, t.TempDir()) }

func worldAt(t *testing.T, state string) *world {
	t.Helper()
	layout, err := paths.At(state)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, layout: layout, db: storetest.Open(t, layout.Database())}
	w.start(w.db)
	return w
}

// start begins a new life of the service on the same state.
func (w *world) start(db Store) {
	agent := filepath.Join(w.layout.State, "agent")
	w.write(agent, "agent")
	w.s = New(Deps{
		Store: db, Layout: w.layout, AgentPath: agent, DiskBytes: 32 << 20, Sources: testSources(),
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Ops: inline{},
	})
	w.s.makeImage = func(ctx context.Context, r recipe, dir string, p model.Progress) (madeImage, error) {
		p.Stage("install")
		path := filepath.Join(dir, "half")
		w.write(path, strings.Join(append([]string{"root of " + r.suite}, r.include...), " "))
		if err := w.work(ctx, p); err != nil {
			return madeImage{}, err
		}
		return madeImage{path: path, config: model.ImageConfig{User: "dev"}, digest: fmt.Sprint(w.pulls.Load())}, nil
	}
	w.s.makeKernel = func(ctx context.Context, suite, dir string, p model.Progress) (madeKernel, error) {
		p.Stage("download")
		made := madeKernel{release: "6.1-" + suite, vmlinux: filepath.Join(dir, "v"), bzImage: filepath.Join(dir, "b"), source: "here"}
		w.write(made.vmlinux, fmt.Sprint("vmlinux with virtio_blk and virtio_pci ", w.pulls.Load()))
		w.write(made.bzImage, "bzImage")
		return made, w.work(ctx, p)
	}
	w.t.Cleanup(func() { _ = w.s.Close() })
	if err := w.s.Restore(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) work(ctx context.Context, p model.Progress) error {
	w.pulls.Add(1)
	p.Count(1, 2, "packages")
	if w.during != nil {
		return w.during(ctx)
	}
	return nil
}

func (w *world) write(path, content string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// files lists what lies in the directories of images and kernels.
func (w *world) files() string {
	w.t.Helper()
	var all []string
	for _, dir := range []string{w.layout.Images(), w.layout.Kernels()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, filepath.Base(dir)+"/"+e.Name())
		}
	}
	return strings.Join(all, " ")
}

func (w *world) image(name string) model.Image {
	w.t.Helper()
	i, err := w.s.EnsureImage(w.t.Context(), name, nobody{})
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

func (w *world) kernel(name string) model.Kernel {
	w.t.Helper()
	k, err := w.s.EnsureKernel(w.t.Context(), name, nobody{})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// vm makes a row that uses an image and a kernel.
func (w *world) vm(name string, i model.Image, k model.Kernel) model.VM {
	w.t.Helper()
	return storetest.VM(w.t, w.db, model.VM{Name: name, ImageID: i.ID, ImageRef: i.Name, KernelID: k.ID})
}

// inline runs operations at once.
type inline struct{}

func (inline) Begin(kind, subject string, work func(context.Context, model.Progress) (string, error)) *bangerv1.Operation {
	result, err := work(context.Background(), nobody{})
	return &bangerv1.Operation{Kind: kind, Subject: subject, Result: result, Error: api.Detail(err)}
}

type stages struct {
	joined chan struct{} // closed with the first stage: who joins is told where the work stands
	once   sync.Once
	mu     sync.Mutex
	all    []string
}

func (s *stages) add(text string) { s.mu.Lock(); s.all = append(s.all, text); s.mu.Unlock() }
func (s *stages) Stage(name string) {
	s.add(name)
	s.once.Do(func() { close(s.joined) })
}
func (s *stages) Detail(string) {}
func (s *stages) Count(d, t int64, u string) {
	s.add(fmt.Sprint(d, "/", t, " ", u))
}
func (s *stages) String() string { s.mu.Lock(); defer s.mu.Unlock(); return strings.Join(s.all, ",") }

func TestPullPublishes(t *testing.T) {
	w := newWorld(t)
	i := w.image("debian:trixie")
	if data, err := os.ReadFile(i.Path); err != nil || string(data) != "root of trixie" || i.Config.User != "dev" || !i.Managed {
		t.Errorf("%q, %v: %+v", data, err, i)
	}
	if again := w.image("debian:trixie"); again.ID != i.ID || w.pulls.Load() != 1 {
		t.Error("it was pulled twice")
	}
	k := w.kernel("debian")
	if _, err := os.Stat(k.VmlinuxPath); err != nil || k.Release != "6.1-" || k.EarlyDir != "" {
		t.Errorf("%v: %+v", err, k)
	}
	if got, want := w.files(), "images/"+i.ID+" kernels/"+k.ID; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
	boot, err := w.s.BootFiles(t.Context(), k)
	if err != nil || boot.Vmlinux != k.VmlinuxPath || boot.Modules != "" {
		t.Errorf("boot files %+v, %v", boot, err)
	}
	if _, err := os.Stat(boot.Initramfs); err != nil {
		t.Error(err)
	}
}

func TestConcurrentPullsShareOne(t *testing.T) {
	w := newWorld(t)
	started, release := make(chan struct{}), make(chan struct{})
	w.during = func(context.Context) error { close(started); <-release; return nil }
	var wg sync.WaitGroup
	ids := make([]string, 8)
	seen := make([]*stages, len(ids))
	pull := func(n int) {
		seen[n] = &stages{joined: make(chan struct{})}
		wg.Go(func() {
			i, err := w.s.PullImage(t.Context(), Pull{From: "debian", Force: n%2 == 1}, seen[n])
			if err != nil {
				t.Error(err)
			}
			ids[n] = i.ID
		})
	}
	pull(0)
	<-started
	for n := 1; n < len(ids); n++ {
		pull(n)
	}
	for _, s := range seen {
		<-s.joined
	}
	// One waiter goes; the others get what they waited for.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.s.PullImage(ctx, Pull{From: "debian", Force: true}, nobody{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter that gave up: %v", err)
	}
	close(release)
	wg.Wait()
	for n := range ids {
		if ids[n] != ids[0] || ids[n] == "" {
			t.Errorf("waiter %d got %q, the first %q", n, ids[n], ids[0])
		}
		if got := seen[n].String(); !strings.HasPrefix(got, "install,1/2 packages") {
			t.Errorf("waiter %d saw %q", n, got)
		}
	}
	if w.pulls.Load() != 1 {
		t.Errorf("%d pulls", w.pulls.Load())
	}
}

func TestCancelOfTheLastWaiterUndoesEverything(t *testing.T) {
	w := newWorld(t)
	before := w.files()
	started := make(chan struct{}, 2)
	w.during = func(ctx context.Context) error { started <- struct{}{}; <-ctx.Done(); return context.Cause(ctx) }
	why := errors.New("the user went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { _, err := w.s.EnsureImage(ctx, "debian", nobody{}); done <- err }()
	<-started
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("it ended with %v", err)
	}
	if got := w.files(); got != before { // already now, not some time later
		t.Errorf("left %s", got)
	}
	// And the name is free: the next one starts anew.
	w.during = nil
	w.image("debian")

	// Close does the same to what still runs.
	w.during = func(ctx context.Context) error { started <- struct{}{}; <-ctx.Done(); return context.Cause(ctx) }
	go func() { _, err := w.s.PullKernel(t.Context(), "debian", true, nobody{}); done <- err }()
	<-started
	before = strings.Split(w.files(), " ")[0]
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, errClosing) {
		t.Errorf("it ended with %v", err)
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, want %s", got, before)
	}
}

func TestFailedPullLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.during = func(context.Context) error { return errdefs.Exhausted("no space").WithHint("free some") }
	for _, pull := range []func() error{
		func() error { _, err := w.s.EnsureImage(t.Context(), "debian", nobody{}); return err },
		func() error { _, err := w.s.EnsureKernel(t.Context(), "debian", nobody{}); return err },
	} {
		err := pull()
		if !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) != "free some" || !strings.Contains(err.Error(), `"debian"`) {
			t.Errorf("got %v", err)
		}
	}
	if got := w.files(); got != "" {
		t.Errorf("left %s", got)
	}
}

// refusing is a store that cannot publish.
type refusing struct{ *store.Store }

var errRefused = errors.New("the disk is full")

func (refusing) PutImage(context.Context, model.Image) error   { return errRefused }
func (refusing) PutKernel(context.Context, model.Kernel) error { return errRefused }

func TestUnpublishedPullLeavesTheOldOne(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	before := w.files()
	w.start(refusing{w.db})
	if _, err := w.s.PullImage(t.Context(), Pull{From: "debian", Force: true}, nobody{}); !errors.Is(err, errRefused) {
		t.Errorf("image: %v", err)
	}
	if _, err := w.s.PullKernel(t.Context(), "debian", true, nobody{}); !errors.Is(err, errRefused) {
		t.Errorf("kernel: %v", err)
	}
	if got := w.files(); got != before {
		t.Errorf("files %s, want %s", got, before)
	}
	if w.image("debian").ID != i.ID || w.kernel("debian").ID != k.ID {
		t.Error("the old ones are gone")
	}
}

func TestForcedPullKeepsWhatIsUsed(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	v := w.vm("box", i, k)
	i2, err := w.s.PullImage(t.Context(), Pull{From: "debian", Force: true}, nobody{})
	if err != nil || i2.ID == i.ID {
		t.Fatalf("%+v, %v", i2, err)
	}
	k2, err := w.s.PullKernel(t.Context(), "debian", true, nobody{})
	if err != nil || k2.ID == k.ID {
		t.Fatalf("%+v, %v", k2, err)
	}
	for _, path := range []string{i.Path, k.VmlinuxPath, i2.Path, k2.VmlinuxPath} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if l, err := w.s.ListImages(t.Context()); err != nil || len(l) != 1 || l[0].ID != i2.ID {
		t.Errorf("list %v, %v", l, err)
	}
	// When the last user has gone, so do they, at the latest with the next start.
	if err := w.db.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if got, want := w.files(), "images/"+i2.ID+" kernels/"+k2.ID; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
}

func TestSameKernelAgainKeepsItsFiles(t *testing.T) {
	w := newWorld(t)
	w.pulls.Store(0)
	k := w.kernel("debian")
	before, err := os.Stat(k.VmlinuxPath)
	if err != nil {
		t.Fatal(err)
	}
	w.pulls.Store(0) // what it makes depends on this number
	k2, err := w.s.PullKernel(t.Context(), "debian", true, nobody{})
	if err != nil || k2.ID != k.ID {
		t.Fatalf("%+v, %v", k2, err)
	}
	if after, err := os.Stat(k.VmlinuxPath); err != nil || !os.SameFile(before, after) {
		t.Errorf("the files of running VMs were replaced: %v", err)
	}
	// The same content under another name is another kernel.
	w.pulls.Store(0)
	if other := w.kernel("debian:trixie"); other.ID == k.ID {
		t.Error("two names share one row")
	}
}

func TestRestoreSweeps(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	want := w.files()
	_ = w.s.Close()
	w.write(filepath.Join(w.layout.Images(), paths.StagingPrefix+"a/build/root/etc/passwd"), "half")
	w.write(filepath.Join(w.layout.Kernels(), paths.StagingPrefix+"b/tree"), "half")
	w.write(filepath.Join(w.layout.Initramfs(), paths.StagingPrefix+"c"), "half")
	w.write(filepath.Join(w.layout.Initramfs(), strings.Repeat("0", 64)+".cpio"), "of an old agent")
	w.write(filepath.Join(w.layout.Images(), "0123456789ab/rootfs.ext4"), "renamed, but without a row")
	half := []string{filepath.Join(w.layout.Catalogs(), "0a.new"), filepath.Join(w.layout.Cache(), "refs", ".scratch-1"), filepath.Join(w.layout.State, "out", ".x.tar.0123456789abcdef", "out")}
	for _, path := range half {
		w.write(path, "half")
	}
	theirs := filepath.Join(w.layout.State, "out", ".mine")
	w.write(theirs, "whole")
	w.write(filepath.Join(w.layout.Images(), paths.StagingPrefix+"d", paths.ElsewhereFile), filepath.Dir(half[2]))
	w.write(filepath.Join(w.layout.Images(), paths.StagingPrefix+"e", paths.ElsewhereFile), theirs)
	boot, err := w.s.BootFiles(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if got := w.files(); got != want {
		t.Errorf("files %s, want %s", got, want)
	}
	for _, path := range half {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("what is not of ours is gone: %v", err)
	}
	left, err := os.ReadDir(w.layout.Initramfs())
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(boot.Initramfs) {
		t.Errorf("initramfs %v, %v", left, err)
	}
	_ = i
}

// Disks of the VMs that a lost database knows are views of images no row knows.
func TestRestoreKeepsWhatALostDatabaseKnew(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	for _, err := range []error{w.db.DeleteImage(t.Context(), i.ID), w.db.DeleteKernel(t.Context(), k.ID)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	aside := w.layout.Database() + paths.CorruptSuffix + "20260101T000000"
	w.write(aside, "lost")
	w.start(w.db)
	if _, err := os.Stat(i.Path); err != nil {
		t.Errorf("the image is gone: %v", err)
	}
	if _, err := os.Stat(k.VmlinuxPath); err != nil {
		t.Errorf("the kernel is gone: %v", err)
	}
	if err := os.Remove(aside); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if _, err := os.Stat(i.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a lost database the image stays: %v", err)
	}
}

func TestBrokenIsReportedAndPulledAgain(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	if err := errors.Join(os.Remove(i.Path), os.Remove(k.VmlinuxPath)); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	if _, err := w.s.GetImage(t.Context(), "debian"); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "pull --force debian") {
		t.Errorf("image: %v, %s", err, errdefs.HintOf(err))
	}
	if _, err := w.s.BootFiles(t.Context(), k); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("boot files: %v", err)
	}
	if _, err := os.Stat(w.image("debian").Path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(w.kernel("debian").VmlinuxPath); err != nil {
		t.Error(err)
	}
	if n := len(strings.Fields(w.files())); n != 2 {
		t.Errorf("files %s", w.files())
	}
}

func TestUnknownNames(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]struct {
		class errdefs.Class // of a kernel; an image may be on Docker Hub, which nobody reaches here
		hint  string        // for images
	}{
		"debain":           {errdefs.ClassNotFound, "did you mean debian"},
		"something-else":   {errdefs.ClassNotFound, "check the network"},
		"Debian":           {errdefs.ClassInvalidArgument, ""},
		"debian:":          {errdefs.ClassInvalidArgument, ""},
		"debian:8":         {errdefs.ClassInvalidArgument, "code name"},
		"debian:a:b":       {errdefs.ClassInvalidArgument, ""},
		"../../etc/passwd": {errdefs.ClassInvalidArgument, ""},
	} {
		_, err := w.s.EnsureImage(t.Context(), name, nobody{})
		class := want.class
		if class == errdefs.ClassNotFound {
			class = errdefs.ClassUnavailable
		}
		if errdefs.ClassOf(err) != class || !strings.Contains(errdefs.HintOf(err), want.hint) {
			t.Errorf("image %q: %v (%s)", name, err, errdefs.HintOf(err))
		}
		if _, err := w.s.EnsureKernel(t.Context(), name, nobody{}); errdefs.ClassOf(err) != want.class {
			t.Errorf("kernel %q: %v", name, err)
		}
	}
	if w.pulls.Load() != 0 {
		t.Error("something was pulled")
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	i, k := w.image("debian"), w.kernel("debian")
	v := w.vm("box", i, k)
	for _, err := range []error{w.s.RemoveImage(t.Context(), "debian"), w.s.RemoveKernel(t.Context(), "debian")} {
		if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "box") {
			t.Errorf("in use: %v", err)
		}
	}
	if err := w.db.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.BootFiles(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.s.RemoveImage(t.Context(), "debian"), w.s.RemoveKernel(t.Context(), "debian")} {
		if err != nil {
			t.Error(err)
		}
	}
	if got := w.files(); got != "" {
		t.Errorf("left %s", got)
	}
	if left, _ := os.ReadDir(w.layout.Initramfs()); len(left) != 0 {
		t.Errorf("left initramfs %v", left)
	}
	if err := w.s.RemoveImage(t.Context(), "debian"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
}

func TestHandlers(t *testing.T) {
	w := newWorld(t)
	images, kernels := w.s.ImageHandlers(), w.s.KernelHandlers()
	op, err := images.Pull(t.Context(), connect.NewRequest(&bangerv1.PullRequest{Name: "debian"}))
	if err != nil || op.Msg.Result == "" || op.Msg.Kind != "image.pull" || op.Msg.Error != nil {
		t.Fatalf("%v, %v", op, err)
	}
	if op, err := kernels.Pull(t.Context(), connect.NewRequest(&bangerv1.PullRequest{Name: "debian"})); err != nil || op.Msg.Result == "" {
		t.Fatalf("%v, %v", op, err)
	}
	i, err := images.Get(t.Context(), connect.NewRequest(&bangerv1.ImageRef{Name: "debian"}))
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernels.Get(t.Context(), connect.NewRequest(&bangerv1.KernelRef{Name: "debian"}))
	if err != nil || k.Msg.UsedBytes == 0 {
		t.Fatalf("%v, %v", k, err)
	}
	w.vm("box", model.Image{ID: i.Msg.Id, Name: "debian"}, model.Kernel{ID: k.Msg.Id})
	il, err := images.List(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(il.Msg.Images) != 1 || len(il.Msg.Images[0].UsedBy) != 1 || il.Msg.Images[0].UsedBytes == 0 {
		t.Errorf("%v, %v", il, err)
	}
	kl, err := kernels.List(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(kl.Msg.Kernels) != 1 || kl.Msg.Kernels[0].UsedBy[0] != "box" {
		t.Errorf("%v, %v", kl, err)
	}
	_, err = images.Remove(t.Context(), connect.NewRequest(&bangerv1.ImageRef{Name: "debian"}))
	if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" {
		t.Errorf("remove: %v", err)
	}
	_, err = kernels.Import(t.Context(), connect.NewRequest(&bangerv1.ImportKernelRequest{Name: "mine", Dir: "relative"}))
	if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("import: %v", err)
	}
	_, err = images.Register(t.Context(), connect.NewRequest(&bangerv1.RegisterImageRequest{Name: "x", Rootfs: "/nowhere"}))
	if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("register: %v", err)
	}
}
