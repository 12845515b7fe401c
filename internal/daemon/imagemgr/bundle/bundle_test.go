package bundle_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/errdefs"
	"banger/internal/model"
)

var fixed = time.Unix(1_000_000_000, 0)

type nobody struct{}

func (nobody) Stage(string)               {}
func (nobody) Detail(string)              {}
func (nobody) Count(int64, int64, string) {}

// write makes the files of a directory.
func write(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pack(t testing.TB, m bundle.Manifest, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := bundle.Pack(context.Background(), &out, m, dir); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// want is what is to be believed of data.
func want(data []byte) bundle.Want {
	return bundle.Want{Digest: blobs.Of(data), Size: int64(len(data))}
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(4, 2))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// disk is what a file system looks like: something, a lot of nothing, something.
func disk() []byte {
	data := make([]byte, 40<<20+1000)
	copy(data[5000:], noise(9000))
	copy(data[20<<20-3:], "across a border of what is read at once")
	copy(data[len(data)-100:], "the end is not aligned")
	return data
}

func TestRoundTrip(t *testing.T) {
	root := disk()
	for name, c := range map[string]struct {
		m     bundle.Manifest
		files map[string][]byte
	}{
		"image": {
			bundle.Manifest{Kind: bundle.Image, Name: "debian:trixie-slim", Version: "13.1", Config: &model.ImageConfig{
				User: "dev", Env: []string{"A=b"}, Labels: map[string]string{"x": "1", "X": "2"}}},
			map[string][]byte{bundle.Rootfs: root},
		},
		"whole kernel": {
			bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "6.12.1-banger"},
			map[string][]byte{bundle.Vmlinux: noise(3 << 20), bundle.BzImage: noise(70_000), bundle.Config: []byte("CONFIG_X=y\n"), bundle.Modules: noise(10240)},
		},
		"packed kernel alone": {
			bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "6.12.1"},
			map[string][]byte{bundle.BzImage: noise(5)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := write(t, c.files)
			data := pack(t, c.m, src)
			if again := pack(t, c.m, src); !bytes.Equal(data, again) {
				t.Error("packed twice, it differs")
			}
			// Times and modes of the files make no difference.
			for f := range c.files {
				if err := errors.Join(os.Chmod(filepath.Join(src, f), 0o600), os.Chtimes(filepath.Join(src, f), fixed, fixed)); err != nil {
					t.Fatal(err)
				}
			}
			if again := pack(t, c.m, src); !bytes.Equal(data, again) {
				t.Error("packed with other times and modes, it differs")
			}
			dst := t.TempDir()
			w := want(data)
			w.Kind, w.Name = c.m.Kind, c.m.Name
			m, err := bundle.Unpack(t.Context(), bytes.NewReader(data), dst, w, nobody{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Name != c.m.Name || m.Version != c.m.Version || c.m.Config != nil && m.Config.Labels["X"] != "2" {
				t.Errorf("manifest %+v", m)
			}
			if got := names(t, dst); len(got) != len(c.files) {
				t.Errorf("files %q", got)
			}
			for f, content := range c.files {
				got, err := os.ReadFile(filepath.Join(dst, f))
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: %v, %d bytes of %d", f, err, len(got), len(content))
				}
			}
			if c.files[bundle.Rootfs] == nil {
				return
			}
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(dst, bundle.Rootfs), &st); err != nil {
				t.Fatal(err)
			}
			if st.Blocks*512 > 1<<20 {
				t.Errorf("a disk with three small files takes %d bytes", st.Blocks*512)
			}
		})
	}
}

func TestPackRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		m     bundle.Manifest
		files map[string][]byte
	}{
		"no kernel":    {bundle.Manifest{Kind: bundle.Kernel, Name: "x", Version: "1"}, map[string][]byte{bundle.Config: []byte("x")}},
		"no disk":      {bundle.Manifest{Kind: bundle.Image, Name: "x", Version: "1"}, map[string][]byte{bundle.Vmlinux: []byte("x")}},
		"empty kernel": {bundle.Manifest{Kind: bundle.Kernel, Name: "x", Version: "1"}, map[string][]byte{bundle.Vmlinux: {}}},
		"name":         {bundle.Manifest{Kind: bundle.Kernel, Name: "../x", Version: "1"}, map[string][]byte{bundle.Vmlinux: []byte("x")}},
		"version":      {bundle.Manifest{Kind: bundle.Kernel, Name: "x", Version: "a b"}, map[string][]byte{bundle.Vmlinux: []byte("x")}},
		"kind":         {bundle.Manifest{Kind: "disk", Name: "x", Version: "1"}, map[string][]byte{bundle.Vmlinux: []byte("x")}},
	} {
		if _, err := bundle.Pack(t.Context(), &bytes.Buffer{}, c.m, write(t, c.files)); err == nil || errdefs.ClassOf(err) == errdefs.ClassInternal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// entry is one of an archive that somebody has made by hand.
type entry struct {
	h    tar.Header
	data []byte
}

// file is an ordinary entry.
func file(name string, data []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644, Format: tar.FormatGNU}, data}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compress(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// good is a manifest for one small kernel with a configuration.
func good(change func(m map[string]any)) []byte {
	m := map[string]any{
		"format": 1, "kind": "kernel", "name": "small", "arch": "amd64", "version": "6.1",
		"files": []any{
			map[string]any{"name": "vmlinux", "size": 6, "sha256": sum([]byte("kernel"))},
			map[string]any{"name": "config", "size": 3, "sha256": sum([]byte("y=n"))},
		},
	}
	if change != nil {
		change(m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

func first(m map[string]any) map[string]any { return m["files"].([]any)[0].(map[string]any) }

// hostile is a corpus of bundles that are not what they should be, each with a piece of
// what is said of it.
func hostile(t testing.TB) map[string]struct {
	data []byte
	says string
} {
	type bad = struct {
		data []byte
		says string
	}
	kernel, config := file("vmlinux", []byte("kernel")), file("config", []byte("y=n"))
	manifest := file("manifest.json", good(nil))
	plain := archive(t, manifest, kernel, config)
	packed := compress(t, plain)
	all := map[string]bad{
		"nothing at all":       {nil, "damaged"},
		"not zstd":             {plain, "not packed with zstd"},
		"gzip":                 {append([]byte{0x1f, 0x8b, 8, 0}, packed...), "not packed with zstd"},
		"xz":                   {append([]byte("\xfd7zXZ\x00"), packed...), "not packed with zstd"},
		"no archive":           {compress(t, []byte(strings.Repeat("not a tar archive ", 100))), "damaged"},
		"nothing in it":        {compress(t, nil), "empty"},
		"an empty archive":     {compress(t, archive(t)), "empty"},
		"cut in zstd":          {packed[:len(packed)-5], "damaged"},
		"cut in half":          {packed[:len(packed)/2], "damaged"},
		"cut in the archive":   {compress(t, plain[:len(plain)-1024-512-100]), "damaged"},
		"bits flipped":         {func() []byte { d := bytes.Clone(packed); d[len(d)/2] ^= 0x55; return d }(), ""},
		"garbage after zstd":   {append(bytes.Clone(packed), "and more"...), "not zstd"},
		"a second archive":     {append(bytes.Clone(packed), packed...), "follows the end"},
		"garbage after tar":    {compress(t, append(bytes.Clone(plain), "hidden"...)), "follows the end"},
		"zeros without end":    {compress(t, append(bytes.Clone(plain), make([]byte, 5<<20)...)), "follows the end"},
		"a wide window":        {wideWindow(t), "memory"},
		"no manifest":          {compress(t, archive(t, kernel, config)), `begins with "vmlinux"`},
		"manifest last":        {compress(t, archive(t, kernel, manifest)), `begins with "vmlinux"`},
		"manifest twice":       {compress(t, archive(t, manifest, manifest, kernel, config)), "twice"},
		"manifest too long":    {compress(t, archive(t, file("manifest.json", append(good(nil), make([]byte, 300<<10)...)))), "manifest"},
		"entry twice":          {compress(t, archive(t, manifest, kernel, kernel)), "twice"},
		"entry at end twice":   {compress(t, archive(t, manifest, kernel, config, config)), "twice"},
		"other order":          {compress(t, archive(t, manifest, config, kernel)), "comes before"},
		"one missing":          {compress(t, archive(t, manifest, kernel)), `ends before "config"`},
		"one more":             {compress(t, archive(t, manifest, kernel, config, file("bzImage", []byte("x")))), `"bzImage"`},
		"unlisted instead":     {compress(t, archive(t, manifest, file("evil", []byte("kernel")), config)), `"evil" is not in`},
		"absolute name":        {compress(t, archive(t, manifest, file("/etc/passwd", []byte("kernel")))), "no plain name"},
		"escaping name":        {compress(t, archive(t, manifest, file("../vmlinux", []byte("kernel")))), "no plain name"},
		"name with a dot":      {compress(t, archive(t, manifest, file("./vmlinux", []byte("kernel")))), "no plain name"},
		"long name":            {compress(t, archive(t, manifest, file(strings.Repeat("n", 5000), []byte("kernel")))), "not in the manifest"},
		"another size":         {compress(t, archive(t, manifest, file("vmlinux", []byte("kernels")))), "has 7 bytes"},
		"another content":      {compress(t, archive(t, manifest, file("vmlinux", []byte("Kernel")))), "damaged: its SHA-256"},
		"extended header":      {compress(t, archive(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Format: tar.FormatPAX, PAXRecords: map[string]string{"BANGER.x": "y"}}, nil})), "extended header"},
		"a global header":      {compress(t, archive(t, entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "vmlinux"}}, nil}, manifest)), "no regular file"},
		"unknown compression":  {append([]byte{0x5d, 0, 0, 0x80}, packed...), "not packed with zstd"},
		"skipped frame first":  {append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, packed...), "not packed with zstd"},
		"legacy skipped frame": {[]byte{0x28, 0xb5, 0x2f, 0xfd}, "damaged"},
	}
	for kind, flag := range map[string]byte{"symlink": tar.TypeSymlink, "hard link": tar.TypeLink, "directory": tar.TypeDir, "device": tar.TypeBlock, "fifo": tar.TypeFifo} {
		h := tar.Header{Typeflag: flag, Name: "vmlinux", Linkname: "/etc/passwd", Format: tar.FormatGNU}
		if kind == "directory" || kind == "device" || kind == "fifo" {
			h.Linkname = ""
		}
		all[kind] = bad{compress(t, archive(t, manifest, entry{h, nil})), "no regular file"}
	}
	for name, m := range map[string]struct {
		raw  []byte
		says string
	}{
		"no JSON":           {[]byte("{"), "manifest"},
		"more than JSON":    {append(good(nil), "{}"...), "follows the JSON"},
		"unknown field":     {good(func(m map[string]any) { m["run"] = "rm -rf" }), "unknown field"},
		"field twice":       {bytes.Replace(good(nil), []byte(`{"arch"`), []byte(`{"arch":"amd64","arch"`), 1), "twice"},
		"deep":              {[]byte(strings.Repeat("[", 100)), "nested"},
		"not UTF-8":         {bytes.Replace(good(nil), []byte("small"), []byte("sm\xffll"), 1), "UTF-8"},
		"other format":      {good(func(m map[string]any) { m["format"] = 2 }), "format 2"},
		"other kind":        {good(func(m map[string]any) { m["kind"] = "rom" }), "neither image nor kernel"},
		"other arch":        {good(func(m map[string]any) { m["arch"] = "arm64" }), "arm64"},
		"bad name":          {good(func(m map[string]any) { m["name"] = "../../x" }), "not allowed"},
		"bad version":       {good(func(m map[string]any) { m["version"] = "-Cx" }), "not allowed"},
		"config of kernel":  {good(func(m map[string]any) { m["config"] = map[string]any{"user": "x"} }), "config"},
		"no files":          {good(func(m map[string]any) { m["files"] = nil }), "missing"},
		"only its config":   {good(func(m map[string]any) { m["files"] = m["files"].([]any)[1:] }), "missing"},
		"disk in kernel":    {good(func(m map[string]any) { first(m)["name"] = "rootfs.ext4" }), "no place"},
		"path in manifest":  {good(func(m map[string]any) { first(m)["name"] = "../vmlinux" }), "no place"},
		"file listed twice": {good(func(m map[string]any) { first(m)["name"] = "config" }), "twice"},
		"negative size":     {good(func(m map[string]any) { first(m)["size"] = -1 }), "bytes"},
		"no size":           {good(func(m map[string]any) { first(m)["size"] = 0 }), "bytes"},
		"huge size":         {good(func(m map[string]any) { first(m)["size"] = int64(1) << 62 }), "bytes"},
		"kernel of 100 GB":  {good(func(m map[string]any) { first(m)["size"] = int64(100) << 30 }), "bytes"},
		"size of no number": {good(func(m map[string]any) { first(m)["size"] = 1e300 }), "manifest"},
		"digest in capital": {good(func(m map[string]any) { first(m)["sha256"] = strings.ToUpper(sum([]byte("kernel"))) }), "SHA-256"},
		"no digest":         {good(func(m map[string]any) { first(m)["sha256"] = "" }), "SHA-256"},
	} {
		all["manifest: "+name] = bad{compress(t, archive(t, file("manifest.json", m.raw), kernel, config)), m.says}
	}
	return all
}

// wideWindow is a bundle for which a decoder would have to keep 512 MiB.
func wideWindow(t testing.TB) []byte {
	// Magic, a frame with a window descriptor of 2^29 and no content size, an empty last block.
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 19 << 3, 0x01, 0x00, 0x00}
}

func TestHostileBundles(t *testing.T) {
	corpus := hostile(t)
	if len(corpus) < 50 {
		t.Fatalf("only %d bundles", len(corpus))
	}
	for name, bad := range corpus {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m, err := bundle.Unpack(t.Context(), bytes.NewReader(bad.data), dir, want(bad.data), nobody{})
			class := errdefs.ClassOf(err)
			if err == nil || !slices.Contains([]errdefs.Class{errdefs.ClassInvalidArgument, errdefs.ClassUnsupported, errdefs.ClassExhausted}, class) {
				t.Errorf("class %q: %v", class, err)
			} else if !strings.Contains(err.Error(), bad.says) {
				t.Errorf("%v; want something of %q", err, bad.says)
			}
			if m.Name != "" || len(names(t, dir)) > 0 {
				t.Errorf("left behind: %+v %q", m, names(t, dir))
			}
		})
	}
}

// What is said of a bundle counts, whatever the bundle says of itself.
func TestUnpackComparesWithWhatIsSaid(t *testing.T) {
	src := write(t, map[string][]byte{bundle.Vmlinux: noise(100_000)})
	data := pack(t, bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "1"}, src)
	other := want(data)
	for name, change := range map[string]func(w *bundle.Want){
		"digest":   func(w *bundle.Want) { w.Digest = blobs.Of([]byte("other")) },
		"longer":   func(w *bundle.Want) { w.Size++ },
		"shorter":  func(w *bundle.Want) { w.Size-- },
		"empty":    func(w *bundle.Want) { w.Size = 0 },
		"kind":     func(w *bundle.Want) { w.Kind = bundle.Image },
		"name":     func(w *bundle.Want) { w.Name = "smaller" },
		"unpacked": func(w *bundle.Want) { w.Unpacked = 99_999 },
	} {
		w := other
		change(&w)
		dir := t.TempDir()
		_, err := bundle.Unpack(t.Context(), bytes.NewReader(data), dir, w, nobody{})
		if !errors.Is(err, errdefs.ErrInvalidArgument) || len(names(t, dir)) > 0 {
			t.Errorf("%s: %v, left %q", name, err, names(t, dir))
		}
	}
	if _, err := bundle.Unpack(t.Context(), bytes.NewReader(data), t.TempDir(), bundle.Want{
		Digest: other.Digest, Size: other.Size, Kind: bundle.Kernel, Name: "small", Unpacked: 100_000,
	}, nobody{}); err != nil {
		t.Error(err)
	}
}

// What is there is not written over, nor removed.
func TestUnpackLeavesOthersFiles(t *testing.T) {
	data := pack(t, bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "1"}, write(t, map[string][]byte{bundle.Vmlinux: []byte("new")}))
	dir := write(t, map[string][]byte{bundle.Vmlinux: []byte("old")})
	if _, err := bundle.Unpack(t.Context(), bytes.NewReader(data), dir, want(data), nobody{}); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, bundle.Vmlinux)); string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestUnpackTellsTroubleOfTheHost(t *testing.T) {
	if _, err := bundle.Unpack(t.Context(), failing{syscall.EIO}, t.TempDir(), bundle.Want{Size: 100}, nobody{}); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data := pack(t, bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "1"}, write(t, map[string][]byte{bundle.Vmlinux: []byte("new")}))
	if _, err := bundle.Unpack(ctx, bytes.NewReader(data), t.TempDir(), want(data), nobody{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, bad := range hostile(f) {
		if len(bad.data) < 4<<10 {
			f.Add(bad.data)
		}
	}
	f.Add(pack(f, bundle.Manifest{Kind: bundle.Kernel, Name: "small", Version: "1"}, write(f, map[string][]byte{bundle.Vmlinux: []byte("k"), bundle.Config: []byte("c")})))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		// Half of what comes is packed: a fuzzer does not find zstd's checksums.
		for _, d := range [][]byte{data, compress(t, data, zstd.WithEncoderLevel(zstd.SpeedFastest))} {
			dir := t.TempDir()
			m, err := bundle.Unpack(t.Context(), bytes.NewReader(d), dir, want(d), nobody{})
			left := names(t, dir)
			if err != nil && (len(left) > 0 || errdefs.ClassOf(err) == errdefs.ClassInternal) {
				t.Fatalf("%v, left %q", err, left)
			}
			if err == nil && len(left) != len(m.Files) {
				t.Fatalf("%+v, but %q", m, left)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add(good(nil))
	f.Add([]byte(`{"files":[{"name":"a","name":"b"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := bundle.DecodeManifest(data)
		if err != nil {
			if errdefs.ClassOf(err) == errdefs.ClassInternal {
				t.Fatal(err)
			}
			return
		}
		if n := m.Unpacked(); n <= 0 || n > bundle.MaxUnpacked {
			t.Fatalf("unpacks to %d", n)
		}
	})
}

// A short run of what the fuzz test does at length, the same each time.
func TestMutatedBundles(t *testing.T) {
	plain := archive(t, file("manifest.json", good(nil)), file("vmlinux", []byte("kernel")), file("config", []byte("y=n")))
	rng := rand.New(rand.NewPCG(1, 4))
	dir := t.TempDir()
	taken := 0
	for range 1500 {
		data := bytes.Clone(plain)
		for range 1 + rng.IntN(4) {
			data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		}
		packed := compress(t, data, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if rng.IntN(4) == 0 {
			packed[rng.IntN(len(packed))] ^= 1 << rng.IntN(8)
		}
		m, err := bundle.Unpack(t.Context(), bytes.NewReader(packed), dir, want(packed), nobody{})
		left := names(t, dir)
		if err != nil {
			if len(left) > 0 || errdefs.ClassOf(err) == errdefs.ClassInternal {
				t.Fatalf("%v, left %q", err, left)
			}
			continue
		}
		taken++
		for _, f := range m.Files {
			got, err := os.ReadFile(filepath.Join(dir, f.Name))
			if err != nil || sum(got) != f.SHA256 {
				t.Fatalf("%s: %q, %v", f.Name, got, err)
			}
			if err := os.Remove(filepath.Join(dir, f.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if taken == 1500 {
		t.Error("all were taken")
	}
}
