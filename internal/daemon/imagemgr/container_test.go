package imagemgr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/sysexec"
)

// offline reaches nothing but this host.
func offline() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if host, _, _ := net.SplitHostPort(addr); !net.ParseIP(host).IsLoopback() {
			return nil, fmt.Errorf("dial %s: %w", addr, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true})
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
}

// author is what the images of these tests ask for.
var author = v1.Config{
	User: "me:you", WorkingDir: "/srv", Env: []string{"PATH=/bin", "A=b"}, Entrypoint: []string{"/bin/entry"}, Cmd: []string{"x", "y"},
	StopSignal: "SIGINT", ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}},
	Labels: map[string]string{"who": "me"},
}

var asked = model.ImageConfig{
	User: "me:you", Workdir: "/srv", Env: []string{"PATH=/bin", "A=b"}, Entrypoint: []string{"/bin/entry"}, Cmd: []string{"x", "y"},
	StopSignal: "SIGINT", ExposedPorts: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"}, Labels: map[string]string{"who": "me"},
}

// small is an image of two layers; hello is what /etc/hello says in it.
func small(t testing.TB, hello string) ocitest.Made {
	t.Helper()
	return ocitest.Make(t, ocitest.Image{Config: author, Layers: [][]byte{
		ocitest.Layer(t, ocitest.Files{"etc/": "", "etc/hello": "old", "bin/": "", "bin/entry": strings.Repeat("entry", 5000)}),
		ocitest.Layer(t, ocitest.Files{"etc/hello": hello}),
	}}, nil)
}

// tool runs a program of e2fsprogs and returns what it says.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := sysexec.Look(name)
	if err != nil {
		t.Skip(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sound checks an image that was made of m: its file, and its row.
func (w *world) sound(i model.Image, m ocitest.Made, hello string) {
	w.t.Helper()
	tool(w.t, "e2fsck", "-fn", i.Path)
	if got := tool(w.t, "debugfs", "-R", "cat /etc/hello", i.Path); !strings.HasSuffix(got, hello) {
		w.t.Errorf("/etc/hello is %q, want %q", got, hello)
	}
	row, err := w.db.ImageByName(w.t.Context(), i.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	if !reflect.DeepEqual(row.Config, asked) || row.Digest != string(m.Digest()) || !row.Managed || row.ID != i.ID {
		w.t.Errorf("%+v", row)
	}
	if len(row.Layers) != len(m.Layers) || row.Layers[0].Digest != string(m.Layers[0]) || row.Layers[0].SizeBytes != int64(len(m.Blobs[m.Layers[0]])) {
		w.t.Errorf("layers %+v", row.Layers)
	}
	st, err := os.Stat(i.Path)
	if err != nil || st.Size() != row.SizeBytes || row.SizeBytes != w.s.DiskBytes {
		w.t.Errorf("%v, %v; the row says %d, planned are %d", st, err, row.SizeBytes, w.s.DiskBytes)
	}
	if used := allocated(i.Path); used == 0 || used > st.Size()/4 {
		w.t.Errorf("%d bytes of %d are allocated", used, st.Size())
	}
}

func TestPullLayout(t *testing.T) {
	w := newWorld(t)
	m := small(t, "there")
	dir := t.TempDir()
	ref := "oci:" + dir + ":1"
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": m})
	i, err := w.s.PullImage(t.Context(), Pull{From: ref}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if i.Name != ref || i.Source != ref {
		t.Errorf("%+v", i)
	}
	w.sound(i, m, "there")
	if got := w.image(ref); got.ID != i.ID {
		t.Error("it was made again")
	}
	if got, want := w.files(), "images/"+i.ID; got != want {
		t.Errorf("files %s, want %s", got, want)
	}

	// Under another name it is another image with the same disk.
	other, err := w.s.PullImage(t.Context(), Pull{From: ref, As: "mine"}, nobody{})
	if err != nil || other.Name != "mine" || other.ID == i.ID {
		t.Fatalf("%+v, %v", other, err)
	}
	w.sound(other, m, "there")
	a, aerr := os.Stat(i.Path)
	b, berr := os.Stat(other.Path)
	if err := errors.Join(aerr, berr); err != nil || !os.SameFile(a, b) {
		t.Errorf("the disk is there twice: %v", err)
	}
	if err := w.s.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	w.sound(w.image("mine"), m, "there")

	// What it leads to has changed.
	changed := small(t, "elsewhere")
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": changed})
	again, err := w.s.PullImage(t.Context(), Pull{From: ref, As: "mine"}, nobody{})
	if err != nil || again.ID == other.ID {
		t.Fatalf("%+v, %v", again, err)
	}
	w.sound(again, changed, "elsewhere")
	forced, err := w.s.PullImage(t.Context(), Pull{From: ref, As: "mine", Force: true}, nobody{})
	if err != nil || forced.ID == again.ID {
		t.Fatalf("%+v, %v", forced, err)
	}
	w.sound(forced, changed, "elsewhere")
	if got, want := w.files(), "images/"+forced.ID; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
	if _, err := w.s.PullImage(t.Context(), Pull{From: "mine", Force: true}, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) != "say it again: banger image pull --force --name mine "+ref {
		t.Errorf("by its name: %v (%s)", err, errdefs.HintOf(err))
	}
}

// testSources is how images come from elsewhere in tests: from this host.
func testSources() Sources {
	return Sources{Transport: offline(), Retry: oci.Retry{Attempts: 1}, Sockets: []string{"/nonexistent"}}
}

func TestConfigThatSaysNothing(t *testing.T) {
	if got := configOf(&oci.Image{}, oci.HostPlatform()); got.Workdir != "/" || got.User != "" || got.Command(nil, nil) != nil {
		t.Errorf("%+v", got)
	}
}

// An image that is packed better than most gets a disk that it fits on.
func TestPullLargerThanPlanned(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	r.Put("a:1", ocitest.Make(t, ocitest.Image{Layers: [][]byte{ocitest.Layer(t, ocitest.Files{"x": strings.Repeat("x", 60<<20)})}}, nil))
	i := w.pull(r.Host + "/a:1")
	if want := w.s.DiskBytes * unpacks; i.SizeBytes != want {
		t.Errorf("its disk has %d bytes, want %d", i.SizeBytes, want)
	}
	w.s.Sources.Tree.Bytes = 50 << 20
	if _, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/a:1", Force: true}, nobody{}); !errors.Is(err, errdefs.ErrExhausted) || errors.Is(err, ext4.ErrFull) {
		t.Errorf("with a limit: %v", err)
	}
}
