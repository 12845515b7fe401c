package imagemgr

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"aead.dev/minisign"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/errdefs"
)

// elfRelease is what passes for a vmlinux with everything built in.
func elfRelease(release string) []byte {
	elf := make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01\x01")
	copy(elf[16:], []byte{2, 0, 62, 0, 1, 0, 0, 0})
	copy(elf[52:], []byte{64, 0, 56, 0, 0, 0, 64})
	return append(elf, "Linux version "+release+" (me@here) virtio_blk virtio_mmio"...)
}

// signer packs bundles and signs.
type signer struct {
	t       *testing.T
	public  minisign.PublicKey
	private minisign.PrivateKey
}

func newSigner(t *testing.T) signer {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{t, public, private}
}

func (s signer) pack(name, release string, files map[string][]byte) (data []byte, m bundle.Manifest) {
	s.t.Helper()
	dir := s.t.TempDir()
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	var out bytes.Buffer
	m, err := bundle.Pack(s.t.Context(), &out, bundle.Manifest{Kind: bundle.Kernel, Name: name, Version: release}, dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return out.Bytes(), m
}

// put writes a bundle and its signature.
func (s signer) put(data []byte) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "k.tar.zst")
	r := minisign.NewReader(bytes.NewReader(data))
	if _, err := new(bytes.Buffer).ReadFrom(r); err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, data, 0o600), os.WriteFile(path+".minisig", r.Sign(s.private), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func treeOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImportBundle(t *testing.T) {
	w, by := newWorld(t), newSigner(t)
	data, _ := by.pack("small", "6.1.9-banger", map[string][]byte{bundle.Vmlinux: elfRelease("6.1.9-banger"), bundle.Config: []byte("CONFIG_X=y\n")})
	path := by.put(data)
	k, err := w.s.ImportKernel(t.Context(), "mine", KernelFrom{Bundle: path, Key: by.public.String()}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if k.Name != "mine" || k.Release != "6.1.9-banger" || k.ModulesPath != "" || !strings.Contains(k.Source, fmt.Sprintf("signed by %016X", by.public.ID())) {
		t.Errorf("%+v", k)
	}
	if got, err := os.ReadFile(k.VmlinuxPath); err != nil || !bytes.Equal(got, elfRelease("6.1.9-banger")) {
		t.Error(err)
	}

	other := newSigner(t)
	foreign, _ := by.pack("small", "6.1", map[string][]byte{bundle.Vmlinux: elfRelease("6.1"), bundle.Modules: treeOf(t, map[string]string{"lib/modules/6.2/a.ko": "x"})})
	evil, _ := by.pack("small", "6.1", map[string][]byte{bundle.Vmlinux: elfRelease("6.1"), bundle.Modules: treeOf(t, map[string]string{"boot/vmlinuz-6.1": "x", "lib/modules/6.1/a.ko": "x"})})
	noELF, _ := by.pack("small", "6.1", map[string][]byte{bundle.Vmlinux: []byte("no kernel")})
	unsigned := by.put(data)
	changed := by.put(data)
	if err := errors.Join(os.Remove(unsigned+".minisig"), os.WriteFile(changed, append(bytes.Clone(data), 0), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		from KernelFrom
		want error
	}{
		"other key":        {KernelFrom{Bundle: path, Key: other.public.String()}, errdefs.ErrPermission},
		"no key":           {KernelFrom{Bundle: path}, errdefs.ErrInvalidArgument},
		"unsigned":         {KernelFrom{Bundle: unsigned, Key: by.public.String()}, errdefs.ErrNotFound},
		"changed":          {KernelFrom{Bundle: changed, Key: by.public.String()}, errdefs.ErrPermission},
		"others' modules":  {KernelFrom{Bundle: by.put(foreign), Key: by.public.String()}, errdefs.ErrInvalidArgument},
		"more in modules":  {KernelFrom{Bundle: by.put(evil), Key: by.public.String()}, errdefs.ErrInvalidArgument},
		"no kernel in it":  {KernelFrom{Bundle: by.put(noELF), Key: by.public.String()}, errdefs.ErrUnsupported},
		"no bundle":        {KernelFrom{Bundle: by.put([]byte("x")), Key: by.public.String()}, errdefs.ErrInvalidArgument},
		"a directory":      {KernelFrom{Bundle: t.TempDir(), Key: by.public.String()}, errdefs.ErrInvalidArgument},
		"not there":        {KernelFrom{Bundle: "/nowhere", Key: by.public.String()}, errdefs.ErrNotFound},
		"relative":         {KernelFrom{Bundle: "k.tar.zst", Key: by.public.String()}, errdefs.ErrInvalidArgument},
		"nothing":          {KernelFrom{}, errdefs.ErrInvalidArgument},
		"two things":       {KernelFrom{Bundle: path, Key: by.public.String(), Dir: "/x"}, errdefs.ErrInvalidArgument},
		"deb is no deb":    {KernelFrom{Deb: path}, errdefs.ErrInvalidArgument},
		"deb is not there": {KernelFrom{Deb: "/nowhere"}, errdefs.ErrNotFound},
	} {
		before := w.files()
		if _, err := w.s.ImportKernel(t.Context(), "other", c.from, nobody{}); !errors.Is(err, c.want) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", name, err, errdefs.HintOf(err))
		}
		if after := w.files(); after != before {
			t.Errorf("%s: left %s, there was %s", name, after, before)
		}
	}
}

// A whole way: a catalog that somebody signs and serves, to a kernel.
func TestPullFromCatalog(t *testing.T) {
	w, by := newWorld(t), newSigner(t)
	data, m := by.pack("small", "6.1.9-banger", map[string][]byte{bundle.Vmlinux: elfRelease("6.1.9-banger")})
	list, err := json.Marshal(map[string]any{"format": 1, "entries": []any{map[string]any{
		"kind": "kernel", "name": "small", "arch": "amd64", "digest": string(blobs.Of(data)), "size": len(data), "unpacked": m.Unpacked(),
		"url": "small.tar.zst", "description": "everything built in",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	sig := minisign.Sign(by.private, list)
	var down atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		files := map[string][]byte{"/list": list, "/list.minisig": sig, "/small.tar.zst": data}
		if down.Load() || files[r.URL.Path] == nil {
			http.NotFound(rw, r)
			return
		}
		_, _ = rw.Write(files[r.URL.Path])
	}))
	t.Cleanup(server.Close)
	w.s.Sources.Catalogs = []catalog.Source{{URL: server.URL + "/list", Key: by.public.String()}}
	if err := w.s.openCatalogs(); err != nil {
		t.Fatal(err)
	}

	k, err := w.s.PullKernel(t.Context(), "small", false, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "6.1.9-banger" || !strings.Contains(k.Source, fmt.Sprintf("signed by %016X", by.public.ID())) || !strings.Contains(k.Source, server.URL) {
		t.Errorf("%+v", k)
	}
	down.Store(true)
	if again, err := w.s.PullKernel(t.Context(), "small", false, nobody{}); err != nil || again.ID != k.ID {
		t.Errorf("again: %v", err)
	}
	// Offline: the list and the bundle are kept, so even a kernel whose files are gone comes back.
	if err := os.Remove(k.VmlinuxPath); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.GetKernel(t.Context(), "small"); !strings.Contains(errdefs.HintOf(err), "pull --force small") {
		t.Errorf("%v (%s)", err, errdefs.HintOf(err))
	}
	if _, err := w.s.EnsureKernel(t.Context(), "small", nobody{}); err != nil {
		t.Error(err)
	}
	if _, err := w.s.GetKernel(t.Context(), "small"); err != nil {
		t.Error(err)
	}
	if _, err := w.s.PullKernel(t.Context(), "smal", false, nobody{}); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(errdefs.HintOf(err), "small") {
		t.Errorf("%v (%s)", err, errdefs.HintOf(err))
	}
	if _, err := w.s.PullKernel(t.Context(), "debian", false, nobody{}); err != nil {
		t.Errorf("debian asks no catalog: %v", err)
	}
}

// A real package of Debian's, as TestUnpackRealDeb of package debian finds one.
func TestImportRealDeb(t *testing.T) {
	path := os.Getenv("BANGER_TEST_KERNEL_DEB")
	if found, _ := filepath.Glob("/var/cache/apt/archives/linux-image-[0-9]*-cloud-amd64_*.deb"); path == "" && len(found) > 0 {
		path = found[0]
	}
	if path == "" {
		t.Skip("no package of Debian's cloud kernel is here: apt-get -d install linux-image-cloud-amd64, or BANGER_TEST_KERNEL_DEB")
	}
	w := newWorld(t)
	k, err := w.s.ImportKernel(t.Context(), "cloud", KernelFrom{Deb: path}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(k.Release, "-cloud-amd64") || k.ModulesPath == "" || k.EarlyDir == "" || k.BzImagePath == "" || k.Source != "imported from "+path {
		t.Errorf("%+v", k)
	}
}
