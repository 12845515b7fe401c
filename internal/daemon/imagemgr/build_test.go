package imagemgr

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

// agent is a VM's agent as far as it copies: serve has the stream after the request.
func (w *world) agent(serve func(req guest.Request, from *guest.FrameReader, to *guest.FrameWriter)) {
	w.s.OpenAgent = func(_ context.Context, ref string, req guest.Request) (net.Conn, error) {
		if ref != "box" {
			return nil, errdefs.NotFound("no vm %q", ref)
		}
		ours, theirs := net.Pipe()
		go func() {
			serve(req, guest.NewFrameReader(theirs), guest.NewFrameWriter(theirs))
			_ = theirs.Close()
		}()
		return ours, nil
	}
}

// gives makes the VM one that sends a stream.
func (w *world) gives(stream []byte, end guest.Control) {
	w.agent(func(_ guest.Request, _ *guest.FrameReader, to *guest.FrameWriter) {
		for part := range slices.Chunk(stream, 100_000) {
			if to.Write(guest.ChanStdout, part) != nil {
				return
			}
		}
		if end.Type != "" {
			_ = to.Control(end)
		}
	})
}

var done = guest.Control{Type: guest.ControlDone}

// entry is one of a tar stream.
type tarEntry struct {
	tar.Header
	content string
}

func tarStream(t *testing.T, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Size == 0 {
			e.Size = int64(len(e.content))
		}
		if err := out.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, e.content); err != nil {
			t.Fatal(err)
		}
	}
	_ = out.Close() // an entry may be shorter than it says
	return b.Bytes()
}

// built is the stream of a VM that has built an image.
func built(t *testing.T, m ocitest.Made) []byte {
	t.Helper()
	data, err := os.ReadFile(archived(t, map[string]ocitest.Made{"localhost/banger/result:latest": m}))
	if err != nil {
		t.Fatal(err)
	}
	return tarStream(t, tarEntry{tar.Header{Name: "image.tar", Typeflag: tar.TypeReg, Mode: 0o644}, string(data)})
}

func (w *world) finish(o Built) ([]string, error) {
	if o.VM == "" {
		o.VM = "box"
	}
	if o.Path == "" {
		o.Path = "/build/image.tar"
	}
	return w.s.FinishBuild(w.t.Context(), o, nobody{})
}

func TestFinishBuild(t *testing.T) {
	w := newWorld(t)
	w.gives(built(t, small(t, "one")), done)
	got, err := w.finish(Built{Names: []string{"mine:latest", "mine:1", "mine"}})
	if err != nil || !reflect.DeepEqual(got, []string{"mine", "mine:1"}) {
		t.Fatalf("%q, %v", got, err)
	}
	first := w.image("mine")
	w.sound(first, small(t, "one"), "one")
	if !first.Managed || first.Source != fromBuild || !shared(t, first, w.image("mine:1")) {
		t.Errorf("%+v", first)
	}
	// The next build has its name; the other one stays with the older.
	w.gives(built(t, small(t, "two")), done)
	if _, err := w.finish(Built{Names: []string{"mine"}}); err != nil {
		t.Fatal(err)
	}
	w.sound(w.image("mine"), small(t, "two"), "two")
	w.sound(w.image("mine:1"), small(t, "one"), "one")
	// The reference it was taken by means nothing to anybody.
	if i, err := w.s.PullImage(t.Context(), Pull{From: "mine"}, nobody{}); err != nil || i.ID != w.image("mine").ID {
		t.Errorf("pulled %+v, %v", i, err)
	}
	// Others keep their names.
	w.registered("own", "there")
	for _, names := range [][]string{{"own"}, {"new", "own"}} {
		before := w.files()
		if _, err := w.finish(Built{Names: names}); !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(errdefs.HintOf(err), "--force") {
			t.Errorf("%q: %v", names, err)
		}
		if got := w.files(); got != before {
			t.Errorf("left %s, before %s", got, before)
		}
	}
	if _, err := w.finish(Built{Names: []string{"new", "own"}, Force: true}); err != nil {
		t.Fatal(err)
	}
	w.sound(w.image("own"), small(t, "two"), "two")
	if err := os.Remove(w.image("own").Path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.GetImage(t.Context(), "own"); !strings.Contains(errdefs.HintOf(err), "banger image build -t own …") {
		t.Errorf("its file is gone: %v (%s)", err, errdefs.HintOf(err))
	}
}

// Whatever a VM sends in place of an image, there is none and nothing is left.
func TestFinishBuildRefuses(t *testing.T) {
	w := newWorld(t)
	w.registered("mine", "there")
	before := w.files()
	w.s.Sources.Layers.Bytes = 4 << 20
	good := built(t, small(t, "good"))
	regular := func(name, content string) tarEntry {
		return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
	}
	lying := ocitest.Make(t, ocitest.Image{Layers: [][]byte{ocitest.Layer(t, ocitest.Files{"a": "a"})}}, func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	})
	for what, c := range map[string]struct {
		stream []byte
		end    guest.Control
		class  errdefs.Class
		says   string
	}{
		"nothing":           {nil, done, errdefs.ClassInvalidArgument, "EOF"},
		"silence":           {nil, guest.Control{}, errdefs.ClassUnavailable, ""},
		"half of it":        {good[:len(good)/2], done, errdefs.ClassInvalidArgument, "EOF"},
		"half, and an end":  {good[:len(good)/2], guest.Control{}, errdefs.ClassUnavailable, ""},
		"all but the end":   {good, guest.Control{}, errdefs.ClassUnavailable, ""},
		"no such file":      {nil, guest.Control{Type: guest.ControlError, Class: "not_found", Message: "it does not exist"}, errdefs.ClassNotFound, "it does not exist"},
		"noise":             {bytes.Repeat([]byte("noise"), 1000), done, errdefs.ClassInvalidArgument, "tar"},
		"noise in a file":   {tarStream(t, regular("image.tar", strings.Repeat("noise", 1000))), done, errdefs.ClassInvalidArgument, "take image"},
		"an empty file":     {tarStream(t, regular("image.tar", "")), done, errdefs.ClassNotFound, "take image"},
		"two files":         {tarStream(t, regular("a", "a"), regular("b", "b")), done, errdefs.ClassInvalidArgument, `more than one file: "b"`},
		"a link":            {tarStream(t, tarEntry{tar.Header{Name: "image.tar", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}, ""}), done, errdefs.ClassInvalidArgument, "no regular file"},
		"a directory":       {tarStream(t, tarEntry{tar.Header{Name: "image.tar/", Typeflag: tar.TypeDir}, ""}), done, errdefs.ClassInvalidArgument, "no regular file"},
		"more than allowed": {tarStream(t, tarEntry{tar.Header{Name: "image.tar", Typeflag: tar.TypeReg, Size: 4<<20 + 1}, "x"}), done, errdefs.ClassExhausted, "4194305 bytes"},
		"another layer":     {built(t, lying), done, errdefs.ClassInvalidArgument, "take image"},
	} {
		w.gives(c.stream, c.end)
		got, err := w.finish(Built{Names: []string{"new"}})
		if errdefs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %q, %v (%s; %s)", what, got, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
		if got := w.files(); got != before {
			t.Errorf("%s: left %s, before %s", what, got, before)
		}
	}
	if _, err := w.finish(Built{VM: "other", Names: []string{"new"}}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("another vm: %v", err)
	}
	// A guest that sends nothing for ever is not waited for by who has gone.
	ctx, cancel := context.WithCancelCause(t.Context())
	w.agent(func(_ guest.Request, from *guest.FrameReader, to *guest.FrameWriter) {
		_ = to.Write(guest.ChanStdout, good[:100])
		cancel(errRefused)
		_, _, _ = from.Next()
	})
	if _, err := w.s.FinishBuild(ctx, Built{VM: "box", Path: "/x", Names: []string{"new"}}, nobody{}); !errors.Is(err, errRefused) {
		t.Errorf("cancelled: %v", err)
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
	// The name is taken while it is built.
	w.gives(good, done)
	open := w.s.OpenAgent
	w.s.OpenAgent = func(ctx context.Context, ref string, req guest.Request) (net.Conn, error) {
		w.registered("new", "meanwhile")
		return open(ctx, ref, req)
	}
	if _, err := w.finish(Built{Names: []string{"new"}}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("taken meanwhile: %v", err)
	}
	w.says(w.image("new"), "meanwhile")
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
}

func TestSendImage(t *testing.T) {
	ocitest.Need(t, "skopeo")
	w := newWorld(t)
	w.registered("mine", "there")
	before := w.files()
	file := filepath.Join(t.TempDir(), "arrived.tar")
	var asked guest.Request
	w.agent(func(req guest.Request, from *guest.FrameReader, to *guest.FrameWriter) {
		asked = req
		var b bytes.Buffer
		for {
			channel, payload, err := from.Next()
			if err != nil || channel != guest.ChanStdin {
				return
			}
			if len(payload) == 0 {
				break
			}
			b.Write(payload)
		}
		in := tar.NewReader(&b)
		if _, err := in.Next(); err == nil {
			data, _ := io.ReadAll(in)
			w.write(file, string(data))
			_ = to.Control(done)
		}
	})
	const as = "localhost/banger/context-0:latest"
	if err := w.s.Send(t.Context(), SendImage{Name: "mine", VM: "box", Path: "/build/images/0.tar", As: as}, nobody{}); err != nil {
		t.Fatal(err)
	}
	if in := asked.CopyIn; in == nil || in.Dest != "/build/images/0.tar" || !in.File {
		t.Errorf("asked for %+v", asked)
	}
	var judged struct{ Config struct{ User string } }
	if err := json.Unmarshal(ocitest.Run(t, "skopeo", "inspect", "--config", "oci-archive:"+file+":"+as), &judged); err != nil || judged.Config.User == "" {
		t.Errorf("skopeo says %+v, %v", judged, err)
	}
	for what, c := range map[string]struct {
		o     SendImage
		class errdefs.Class
	}{
		"no image":        {SendImage{Name: "nobody", VM: "box", Path: "/x", As: as}, errdefs.ClassNotFound},
		"no vm":           {SendImage{Name: "mine", VM: "other", Path: "/x", As: as}, errdefs.ClassNotFound},
		"a relative path": {SendImage{Name: "mine", VM: "box", Path: "x", As: as}, errdefs.ClassInvalidArgument},
		"no name":         {SendImage{Name: "mine", VM: "box", Path: "/x"}, errdefs.ClassInvalidArgument},
		"a file's name":   {SendImage{Name: "mine", VM: "box", Path: "/x", As: "oci:/etc"}, errdefs.ClassInvalidArgument},
	} {
		if err := w.s.Send(t.Context(), c.o, nobody{}); errdefs.ClassOf(err) != c.class {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.agent(func(_ guest.Request, _ *guest.FrameReader, to *guest.FrameWriter) {
		_ = to.Control(guest.Control{Type: guest.ControlError, Class: "exhausted", Message: "no space left"})
	})
	if err := w.s.Send(t.Context(), SendImage{Name: "mine", VM: "box", Path: "/x", As: as}, nobody{}); !errors.Is(err, errdefs.ErrExhausted) {
		t.Errorf("no space: %v", err)
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
}

func TestPrepareBuild(t *testing.T) {
	w := newWorld(t)
	w.registered("mine", "there")
	before := w.files()
	plan, err := w.s.PrepareBuild(t.Context(), Build{Names: []string{"new", "new:1"}, Images: []string{"mine"}})
	if err != nil || plan.Image != builderImage() || plan.DiskBytes != w.s.DiskBytes || !strings.Contains(plan.Registries, "docker.io") {
		t.Errorf("%+v, %v", plan, err)
	}
	for what, c := range map[string]struct {
		b     Build
		class errdefs.Class
	}{
		"no name":         {Build{}, errdefs.ClassInvalidArgument},
		"too many":        {Build{Names: make([]string, 101)}, errdefs.ClassInvalidArgument},
		"a bad name":      {Build{Names: []string{"new", "No Name"}}, errdefs.ClassInvalidArgument},
		"a digest":        {Build{Names: []string{"new@sha256:" + strings.Repeat("0", 64)}}, errdefs.ClassInvalidArgument},
		"debian":          {Build{Names: []string{"debian:bookworm"}}, errdefs.ClassInvalidArgument},
		"the builder":     {Build{Names: []string{builderImage()}}, errdefs.ClassInvalidArgument},
		"a taken name":    {Build{Names: []string{"new", "mine"}}, errdefs.ClassAlreadyExists},
		"no such context": {Build{Names: []string{"new"}, Images: []string{"mine", "nobody"}}, errdefs.ClassNotFound},
	} {
		if _, err := w.s.PrepareBuild(t.Context(), c.b); errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", what, err, errdefs.HintOf(err))
		}
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
}

func TestBuildHandlers(t *testing.T) {
	w := newWorld(t)
	h, ctx := w.s.ImageHandlers(), t.Context()
	plan, err := h.PrepareBuild(ctx, connect.NewRequest(&bangerv1.PrepareBuildRequest{Names: []string{"new"}}))
	if err != nil || plan.Msg.Image != builderImage() || plan.Msg.Registries == "" || plan.Msg.DiskBytes == 0 {
		t.Errorf("%v, %v", plan, err)
	}
	w.gives(built(t, small(t, "one")), done)
	op, err := h.FinishBuild(ctx, connect.NewRequest(&bangerv1.FinishBuildRequest{Vm: "box", Path: "/x", Names: []string{"a", "b"}}))
	if err != nil || op.Msg.Kind != "image.build" || op.Msg.Subject != "a" || op.Msg.Result != "a\nb" || op.Msg.Error != nil {
		t.Errorf("%v, %v", op, err)
	}
	w.agent(func(_ guest.Request, from *guest.FrameReader, to *guest.FrameWriter) {
		for {
			if _, payload, err := from.Next(); err != nil || len(payload) == 0 {
				_ = to.Control(done)
				return
			}
		}
	})
	w.registered("mine", "there")
	op, err = h.SendImage(ctx, connect.NewRequest(&bangerv1.SendImageRequest{Name: "mine", Vm: "box", Path: "/x", As: "localhost/x:1"}))
	if err != nil || op.Msg.Kind != "image.send" || op.Msg.Subject != "mine" || op.Msg.Error != nil {
		t.Errorf("%v, %v", op, err)
	}
	bad := map[string]error{}
	_, bad["prepare"] = h.PrepareBuild(ctx, connect.NewRequest(&bangerv1.PrepareBuildRequest{}))
	_, bad["send"] = h.SendImage(ctx, connect.NewRequest(&bangerv1.SendImageRequest{Name: "mine", Path: "relative"}))
	_, bad["finish"] = h.FinishBuild(ctx, connect.NewRequest(&bangerv1.FinishBuildRequest{Path: "/x"}))
	for what, err := range bad {
		if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The name of the builder means what is made here, whatever else there is.
func TestBuilderImage(t *testing.T) {
	w := newWorld(t)
	var made recipe
	make := w.s.makeImage
	w.s.makeImage = func(ctx context.Context, r recipe, dir string, p model.Progress) (madeImage, error) {
		made = r
		return make(ctx, r, dir, p)
	}
	i := w.image(builderImage())
	if i.Name != builderImage() || !reflect.DeepEqual(made, recipe{"", builderPackages}) {
		t.Errorf("%+v of %+v", i, made)
	}
	if again := w.image(builderImage()); again.ID != i.ID {
		t.Error("it was made again")
	}
	older := builderName + ":0123456789ab"
	if _, err := w.s.EnsureImage(t.Context(), older, nobody{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("another version: %v", err)
	}
	// One that is here is as good as any image.
	old := i
	old.ID, old.Name = model.NewID(), older
	if err := w.db.PutImage(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := w.image(older); got.ID != old.ID {
		t.Errorf("%+v", got)
	}
	if _, err := w.s.Tag(t.Context(), builderImage(), builderName, true); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("tag: %v", err)
	}
	if _, err := w.s.PullImage(t.Context(), Pull{From: builderImage(), Platform: "linux/arm64"}, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("another platform: %v", err)
	}
	pl, err := w.s.plan(Pull{From: "docker.io/library/" + builderImage()})
	if err != nil || pl.ref == nil || pl.name == builderImage() {
		t.Errorf("Docker Hub's of that name would be %q, %v", pl.name, err)
	}
	if err := os.Remove(i.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.GetImage(t.Context(), builderImage()); !strings.Contains(errdefs.HintOf(err), "banger image pull --force "+builderImage()) {
		t.Errorf("its file is gone: %v (%s)", err, errdefs.HintOf(err))
	}
}

// What others make of it: skopeo reads the file as buildah does.
func TestRegistriesConf(t *testing.T) {
	ocitest.Need(t, "skopeo")
	mirror, plain := ocitest.Serve(t), ocitest.Serve(t)
	mirror.Put("hub/library/mini:1", small(t, "mirrored"))
	plain.Put("own/mini:1", small(t, "plain"))
	conf := registriesConf(map[string][]string{
		"docker.io": {"http://" + mirror.Host + "/hub/", "https://mirror.invalid/x"}, "other.invalid": {mirror.Host},
	}, []string{plain.Host, "other.invalid"})
	file := filepath.Join(t.TempDir(), "registries.conf")
	w := &world{t: t}
	w.write(file, conf)
	for _, ref := range []string{"docker://docker.io/library/mini:1", "docker://" + plain.Host + "/own/mini:1"} {
		ocitest.Run(t, "skopeo", "--registries-conf", file, "inspect", "--config", ref)
	}
	if seen := mirror.Seen(); len(seen) == 0 {
		t.Error("the mirror was not asked")
	}
	// Without it skopeo takes neither.
	w.write(file, registriesConf(nil, nil))
	if out, err := os.ReadFile(file); err != nil || strings.Contains(string(out), "[[") {
		t.Errorf("%s, %v", out, err)
	}
}
