package imagemgr

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/daemon/steps/stepstest"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
)

// sweptOrder is what a process is told that is disturbed while it does something.
type sweptOrder struct {
	State   string // directory
	Stuff   string // directory of what is pulled, loaded, promoted
	Out     string // directory to save to
	Catalog catalog.Source
	Verb    string
	Kill    bool // at the point, instead of an error there
	At      int  // which point of those it passes
	remote       // if there is no verb: to be pulled from
}

// TestMain lets the test binary be the processes that are killed.
func TestMain(m *testing.M) {
	if order := os.Getenv("BANGER_TEST_SWEPT"); order != "" {
		os.Exit(victim(order))
	}
	os.Exit(m.Run())
}

var errInjected = errors.New("injected fault")

// victim does one thing and is disturbed. It says which points it passes.
func victim(order string) int {
	var o sweptOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return 2
	}
	var armed atomic.Bool
	passed := 0
	s, end, err := o.open(slog.New(slog.DiscardHandler), func(step string, done bool) error {
		if !armed.Load() {
			return nil // it settles what was before
		}
		fmt.Println(map[bool]string{false: "before", true: "after"}[done], step)
		passed++
		if passed-1 != o.At {
			return nil
		}
		if o.Kill {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return errInjected
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	armed.Store(true)
	if o.Ref != "" {
		err = o.pull(s)
	} else {
		err = sweptVerbs[o.Verb].do(s, o)
	}
	armed.Store(false)
	if cerr := end(); cerr != nil {
		fmt.Fprintln(os.Stderr, cerr)
		return 4
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// open begins a life of the service on the order's state.
func (o sweptOrder) open(log *slog.Logger, faults func(string, bool) error) (s *Service, end func() error, err error) {
	layout, err := paths.At(o.State)
	if err != nil {
		return nil, nil, err
	}
	db, _, err := store.Open(context.Background(), layout.Database())
	if err != nil {
		return nil, nil, err
	}
	src := testSources()
	if o.Catalog.URL != "" {
		src.Catalogs = []catalog.Source{o.Catalog}
	}
	if o.Ref != "" {
		if src, err = o.sources(src); err != nil {
			return nil, nil, err
		}
	}
	s = New(Deps{
		Store: db, Layout: layout, AgentPath: filepath.Join(o.Stuff, "agent"), DiskBytes: 8 << 20, Sources: src,
		Log: log, Ops: inline{}, Faults: faults, UseDisk: o.useDisk(db),
	})
	end = func() error { return errors.Join(s.Close(), db.Close()) }
	if err := s.Restore(context.Background()); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return s, end, nil
}

// useDisk is one VM, whose disk is a file.
func (o sweptOrder) useDisk(db *store.Store) UseDisk {
	return func(ctx context.Context, ref, _ string, use func(context.Context, model.VM, model.Image, func(context.Context, *os.File) error) error) error {
		i, err := db.ImageByName(ctx, "mine")
		if err != nil {
			return err
		}
		return use(ctx, model.VM{Name: ref}, i, of(filepath.Join(o.Stuff, "new.ext4")))
	}
}

// sweptVerb is what is disturbed. It finds the images "mine" (registered) and "it"
// (managed, preferring the kernel "small").
type sweptVerb struct {
	do func(s *Service, o sweptOrder) error
	// points is how many it passes at least: less, and the sweep would prove little.
	points int
}

var sweptVerbs = func() map[string]sweptVerb {
	ctx := context.Background()
	pull := func(from string) func(*Service, sweptOrder) error {
		return func(s *Service, o sweptOrder) error {
			_, err := s.PullImage(ctx, Pull{From: strings.ReplaceAll(from, "STUFF", o.Stuff), As: "it"}, nobody{})
			return err
		}
	}
	save := func(to string) func(*Service, sweptOrder) error {
		return func(s *Service, o sweptOrder) error {
			_, err := s.Save(ctx, SaveImage{Name: "it", To: strings.ReplaceAll(to, "OUT", o.Out), Force: !strings.HasPrefix(to, "oci:")}, nobody{})
			return err
		}
	}
	return map[string]sweptVerb{
		"pull a layout":   {pull("oci:STUFF/layout:new"), 14},
		"pull an archive": {pull("oci-archive:STUFF/layout.tar:new"), 14},
		"pull a bundle":   {pull("catalog:golden"), 28},
		"share a disk": {func(s *Service, o sweptOrder) error {
			_, err := s.PullImage(ctx, Pull{From: "oci:" + o.Stuff + "/layout:old", As: "other"}, nobody{})
			return err
		}, 14},
		"load": {func(s *Service, o sweptOrder) error {
			_, err := s.Load(ctx, Load{File: filepath.Join(o.Stuff, "named.tar")}, nobody{})
			return err
		}, 28},
		"import a kernel": {func(s *Service, o sweptOrder) error {
			_, err := s.ImportKernel(ctx, "small", KernelFrom{Dir: filepath.Join(o.Stuff, "kernel")}, nobody{})
			return err
		}, 14},
		"promote": {func(s *Service, o sweptOrder) error {
			_, err := s.Promote(ctx, Promotion{VM: "box", Name: "it", Force: true}, nobody{})
			return err
		}, 14},
		"promote a file": {func(s *Service, o sweptOrder) error {
			_, err := s.Promote(ctx, Promotion{Image: "mine", Name: "it", Force: true}, nobody{})
			return err
		}, 14},
		"tag": {func(s *Service, o sweptOrder) error {
			_, err := s.Tag(ctx, "it", "other", true)
			return err
		}, 14},
		"tag a file": {func(s *Service, o sweptOrder) error {
			_, err := s.Tag(ctx, "mine", "it", true)
			return err
		}, 4},
		"save a layout":   {save("oci:OUT/layout:1"), 10},
		"save a file":     {save("oci-archive:OUT/image.tar"), 10},
		"save for docker": {save("docker-archive:OUT/image.tar"), 10},
		"save a bundle":   {save("bundle:OUT/image.tar"), 10},
		"remove": {func(s *Service, o sweptOrder) error {
			return s.RemoveImage(ctx, "it")
		}, 6},
	}
}()

// swept is where that happens.
type swept struct {
	t    *testing.T
	o    sweptOrder
	back string // a copy of state and target as they were before
}

func newSwept(t *testing.T, verb string) *swept {
	t.Helper()
	dir := t.TempDir()
	h := &swept{t: t, o: sweptOrder{State: filepath.Join(dir, "s"), Stuff: filepath.Join(dir, "stuff"), Out: filepath.Join(dir, "s", "out"), Verb: verb, At: -1}, back: filepath.Join(dir, "back")}
	w := &world{t: t}
	for _, d := range []string{h.o.State, h.o.Stuff, h.o.Out} {
		h.must(os.MkdirAll(d, 0o700))
	}
	w.write(filepath.Join(h.o.Stuff, "agent"), "agent")
	ocitest.WriteLayout(t, filepath.Join(h.o.Stuff, "layout"), map[string]ocitest.Made{"old": small(t, "old"), "new": small(t, "new")})
	ocitest.WriteLayout(t, filepath.Join(h.o.Stuff, "named"), map[string]ocitest.Made{"me/first:1": small(t, "first"), "me/second:1": small(t, "second")})
	for _, name := range []string{"layout", "named"} {
		tool(t, "tar", "-cf", filepath.Join(h.o.Stuff, name+".tar"), "-C", filepath.Join(h.o.Stuff, name), ".")
	}
	h.must(os.Rename(ext4Tree(t, "old"), filepath.Join(h.o.Stuff, "old.ext4")))
	h.must(os.Rename(ext4Tree(t, "new"), filepath.Join(h.o.Stuff, "new.ext4")))
	h.must(os.Mkdir(filepath.Join(h.o.Stuff, "kernel"), 0o700))
	w.write(filepath.Join(h.o.Stuff, "kernel", bundle.Vmlinux), string(elfRelease("6.2.0-new")))
	w.write(filepath.Join(h.o.Out, "image.tar"), "what is replaced")
	h.publish()

	s, end, err := h.o.open(slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
	h.must(err)
	ctx := t.Context()
	_, err = s.ImportKernel(ctx, "small", KernelFrom{Dir: h.kernelDir("6.1.0-old")}, nobody{})
	h.must(err)
	_, err = s.Register(ctx, Registration{Name: "mine", Rootfs: filepath.Join(h.o.Stuff, "old.ext4"), Kernel: "small", User: "me"})
	h.must(err)
	switch verb {
	case "tag", "remove", "save a file":
		_, err = s.Promote(ctx, Promotion{Image: "mine", Name: "it"}, nobody{})
	default:
		_, err = s.PullImage(ctx, Pull{From: "oci:" + h.o.Stuff + "/layout:old", As: "it"}, nobody{})
	}
	h.must(err)
	h.must(end())
	tool(t, "cp", "-a", "--sparse=always", h.o.State, h.back)
	return h
}

func (h *swept) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *swept) kernelDir(release string) string {
	dir := h.t.TempDir()
	(&world{t: h.t}).write(filepath.Join(dir, bundle.Vmlinux), string(elfRelease(release)))
	return dir
}

// publish makes a catalog of an image and the kernel that it prefers, as files.
func (h *swept) publish() {
	h.t.Helper()
	by := newSigner(h.t)
	kernel, km := by.pack("tiny", "6.3.0-tiny", map[string][]byte{bundle.Vmlinux: elfRelease("6.3.0-tiny")})
	dir := h.t.TempDir()
	h.must(os.Rename(ext4Tree(h.t, "golden"), filepath.Join(dir, bundle.Rootfs)))
	var image bytes.Buffer
	im, err := bundle.Pack(h.t.Context(), &image, bundle.Manifest{Kind: bundle.Image, Name: "golden", Version: "1", Config: &model.ImageConfig{User: "me"}}, dir)
	h.must(err)
	entry := func(m bundle.Manifest, data []byte, kernel string) catalog.Entry {
		return catalog.Entry{Kind: m.Kind, Name: m.Name, Arch: m.Arch, Digest: blobs.Of(data), Size: int64(len(data)), Unpacked: m.Unpacked(), URL: m.Name, Kernel: kernel}
	}
	list, err := json.Marshal(map[string]any{"format": 1, "entries": []catalog.Entry{entry(km, kernel, ""), entry(im, image.Bytes(), "tiny")}})
	h.must(err)
	w := &world{t: h.t}
	w.write(filepath.Join(h.o.Stuff, "tiny"), string(kernel))
	w.write(filepath.Join(h.o.Stuff, "golden"), image.String())
	w.write(filepath.Join(h.o.Stuff, "list.json"), string(list))
	w.write(filepath.Join(h.o.Stuff, "list.json.minisig"), string(minisign.Sign(by.private, list)))
	h.o.Catalog = catalog.Source{URL: filepath.Join(h.o.Stuff, "list.json"), Key: by.public.String()}
}

// again makes everything what it was before.
func (h *swept) again() {
	h.t.Helper()
	h.must(os.RemoveAll(h.o.State))
	tool(h.t, "cp", "-a", "--sparse=always", h.back, h.o.State)
}

// run has a process do it, and returns the points that it passed.
func (h *swept) run(kill bool, at int) (passed []string, err error) {
	h.t.Helper()
	o := h.o
	o.Kill, o.At = kill, at
	order, err := json.Marshal(o)
	h.must(err)
	self, err := os.Executable()
	h.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "BANGER_TEST_SWEPT="+string(order), "GORACE=atexit_sleep_ms=0")
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%w: %s", err, says.String())
	}
	if text := strings.TrimSpace(out.String()); text != "" {
		passed = strings.Split(text, "\n")
	}
	return passed, err
}

// found is what there is: images, kernels and what was saved, by name, each with all that
// matters of it; and what is none of that.
type foundState struct {
	things map[string]string
	debris []string
	parts  []string // of downloads that can be gone on with
}

// look opens the state as the next daemon does, has it settle what was, and looks around.
func (h *swept) look() foundState {
	h.t.Helper()
	s, end, err := h.o.open(slog.New(slog.NewTextHandler(h.t.Output(), nil)), nil)
	h.must(err)
	defer func() { h.must(end()) }()
	at := foundState{things: map[string]string{}}
	owned := map[string]bool{}
	kernels, err := s.ListKernels(h.t.Context())
	h.must(err)
	kernelNames := map[string]string{"": "none"}
	for _, k := range kernels {
		h.must(checkKernel(k))
		kernelNames[k.ID], owned[s.Layout.Kernel(k.ID)] = k.Name, true
		at.things["kernel "+k.Name] = fmt.Sprintf("%s %s %s", k.Release, sumOf(h.t, k.VmlinuxPath), k.Source)
	}
	all, err := s.Store.ListImages(h.t.Context())
	h.must(err)
	for _, i := range all {
		h.must(checkImage(i))
		kernel, ok := kernelNames[i.KernelID]
		if !ok || i.Name == "" {
			at.debris = append(at.debris, fmt.Sprintf("row of image %q with kernel %q", i.Name, i.KernelID))
		}
		if i.Managed {
			owned[s.Layout.Image(i.ID)] = true
		}
		config, err := json.Marshal(i.Config)
		h.must(err)
		at.things["image "+i.Name] = fmt.Sprintf("%t %d %s %s %s %s %s", i.Managed, i.SizeBytes, kernel, i.Digest, i.Source, config, diskSum(h.t, i.Path))
	}
	for _, dir := range []string{s.Layout.Images(), s.Layout.Kernels()} {
		for _, name := range listed(h.t, dir) {
			if !owned[filepath.Join(dir, name)] {
				at.debris = append(at.debris, filepath.Join(filepath.Base(dir), name))
			}
		}
	}
	for _, name := range listed(h.t, s.Layout.Catalogs()) {
		if filepath.Ext(name) != "" {
			at.debris = append(at.debris, "catalogs/"+name)
		}
	}
	at.parts = listed(h.t, filepath.Join(s.Layout.Cache(), "parts"))
	at.debris = append(at.debris, badCache(h.t, s.Layout.Cache())...)
	for _, name := range listed(h.t, h.o.Out) {
		at.things["out "+name] = treeSum(h.t, filepath.Join(h.o.Out, name))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	h.must(err)
	if strings.Contains(string(mounts), h.o.State) {
		at.debris = append(at.debris, "a mount")
	}
	return at
}

// badCache names what in a cache is not the content of its name, but for parts, or was
// left there in the making.
func badCache(t *testing.T, dir string) (bad []string) {
	t.Helper()
	for _, sub := range []string{"blobs/sha256", "parts", "refs"} {
		for _, name := range listed(t, filepath.Join(dir, sub)) {
			switch {
			case sub == "blobs/sha256" && sumOf(t, filepath.Join(dir, sub, name)) == name:
			case sub == "refs" && strings.HasSuffix(name, ".json"), sub == "parts" && len(name) == 64:
			default:
				bad = append(bad, filepath.Join(sub, name))
			}
		}
	}
	return bad
}

func listed(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// diskSum is a hash of all that is on a disk, wherever it lies: where that is, and the
// numbers that tell file systems apart, differ each time.
func diskSum(t *testing.T, path string) string {
	t.Helper()
	f, fsys, err := openRootfs(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	err = fsys.Walk(t.Context(), func(e *ext4.Entry) error {
		if e.Path == "" || e.Path == "lost+found" {
			e.MTime = ext4.Time{} // when it was made, as no layer says it
		}
		fmt.Fprintf(h, "%q %q %o %d %d %v %d %v %q %q\n", e.Path, e.Link, e.Mode, e.UID, e.GID, e.Rdev, e.Size, e.MTime, e.Target, e.Xattrs)
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		return e.WriteContent(t.Context(), h)
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// treeSum is that of a file, or of all files in a directory.
func treeSum(t *testing.T, path string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all = append(all, strings.TrimPrefix(p, path)+" "+sumOf(t, p))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, ", ")
}

// whole checks that all is as it is to be, and nothing half done.
func (at foundState) whole(t *testing.T, after foundState) {
	t.Helper()
	if len(at.parts) > 0 {
		t.Errorf("left the downloads of %q", at.parts)
	}
	at.legal(t, after, after)
}

// legal checks that each thing is what it was or what it is to be, and nothing else is
// there.
func (at foundState) legal(t *testing.T, before, after foundState) {
	t.Helper()
	if len(at.debris) > 0 {
		t.Errorf("left %q", at.debris)
	}
	for _, things := range []map[string]string{at.things, before.things, after.things} {
		for name := range things {
			if got := at.things[name]; got != before.things[name] && got != after.things[name] {
				t.Fatalf("%s is\n%q, was\n%q, to be\n%q", name, got, before.things[name], after.things[name])
			}
		}
	}
}

// Each step of each verb that publishes something fails, before and after it is done, and
// the process is killed there. What the next daemon finds is the old or the new of each
// image and file, and nothing else; and the verb can be done again.
func TestSweepImages(t *testing.T) {
	names := make([]string, 0, len(sweptVerbs))
	for name := range sweptVerbs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) { sweptVerbs[name].sweep(t, name) })
	}
}

func (v sweptVerb) sweep(t *testing.T, name string) {
	h := newSwept(t, name)
	before := h.look()
	if len(before.debris) > 0 {
		t.Fatalf("there is %q at the beginning", before.debris)
	}
	h.again()
	points, err := h.run(false, -1)
	if err != nil {
		t.Fatal(err)
	}
	if len(points) < v.points {
		t.Fatalf("it passes only %q", points)
	}
	after := h.look()
	after.whole(t, after)
	if fmt.Sprint(after.things) == fmt.Sprint(before.things) {
		t.Fatalf("it changes nothing: %q", before.things)
	}
	for at, point := range points {
		for _, kill := range []bool{false, true} {
			if !stepstest.Sampled() {
				continue
			}
			how := map[bool]string{false: "fails", true: "dies"}[kill]
			t.Run(fmt.Sprintf("%02d %s %s", at, how, point), func(t *testing.T) {
				h := &swept{t: t, o: h.o, back: h.back}
				h.again()
				passed, err := h.run(kill, at)
				if len(passed) <= at || passed[at] != point {
					t.Fatalf("it passed %q, undisturbed %q", passed, points)
				}
				if kill && err == nil {
					t.Fatal("it was not killed")
				}
				now := h.look()
				now.legal(t, before, after)
				if t.Failed() {
					return
				}
				s, end, err := h.o.open(slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
				h.must(err)
				if name == "save a layout" || name == "remove" { // which do not do what is done
					err = nil
					if fmt.Sprint(now.things) == fmt.Sprint(before.things) {
						err = v.do(s, h.o)
					}
				} else {
					err = v.do(s, h.o)
				}
				if err != nil {
					t.Errorf("once more: %v", err)
				}
				h.must(end())
				h.look().whole(t, after)
			})
		}
	}
}
