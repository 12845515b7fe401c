package deb_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"banger/internal/daemon/imagemgr/deb"
	"banger/internal/errdefs"
)

// member is an entry of an ar archive; size overrides what is said of the data.
func member(name string, data []byte, size ...string) []byte {
	said := fmt.Sprint(len(data))
	if len(size) > 0 {
		said = size[0]
	}
	out := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10s`\n", name, 0, 0, 0, "100644", said)
	out = append(out, data...)
	if len(data)%2 == 1 {
		out = append(out, '\n')
	}
	return out
}

func ar(members ...[]byte) []byte {
	return append([]byte("!<arch>\n"), bytes.Join(members, nil)...)
}

func gz(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data)
	_ = w.Close()
	return out.Bytes()
}

func archive(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, text := range map[string]string{"./boot/vmlinuz-6.1": "kernel"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(data []byte) ([]byte, error) {
	r, err := deb.Data(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 1<<20))
}

var version = member("debian-binary", []byte("2.0\n"))

func TestData(t *testing.T) {
	tree := archive(t)
	packed := map[string][]byte{"data.tar": tree, "data.tar.gz": gz(tree), "data.tar.gz/": gz(tree)}
	for ext, argv := range map[string][]string{"xz": {"xz", "-c"}, "zst": {"zstd", "-q", "-c"}} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Log(err)
			continue
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = bytes.NewReader(tree)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		packed["data.tar."+ext] = out
	}
	for name, data := range packed {
		got, err := read(ar(version, member("control.tar.gz", gz([]byte("x"))), member("_extra", []byte("odd")), member(name, data), member("_after", []byte("y"))))
		if err != nil || !bytes.Equal(got, tree) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(tree), err)
		}
	}
}

func TestDataOfDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip(err)
	}
	root := t.TempDir()
	out := filepath.Join(t.TempDir(), "x.deb")
	script := `mkdir -p "$1/DEBIAN" "$1/boot"; echo kernel > "$1/boot/vmlinuz-6.1"
printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n' > "$1/DEBIAN/control"; dpkg-deb -Z"$3" -b "$1" "$2"`
	for _, kind := range []string{"xz", "gzip", "none", "zstd"} {
		if text, err := exec.Command("sh", "-c", script, "sh", root, out, kind).CombinedOutput(); err != nil {
			t.Logf("%s: %s", kind, text) // an older dpkg has no zstd
			continue
		}
		raw, err := exec.Command("cat", out).Output()
		if err != nil {
			t.Fatal(err)
		}
		want, err := exec.Command("dpkg-deb", "--fsys-tarfile", out).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(raw); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", kind, len(got), len(want), err)
		}
	}
}

func hostile(t testing.TB) map[string][]byte {
	tree := archive(t)
	control := member("control.tar.gz", gz([]byte("x")))
	data := member("data.tar.gz", gz(tree))
	whole := ar(version, control, data)
	return map[string][]byte{
		"nothing":            nil,
		"magic alone":        ar(),
		"other archive":      append([]byte("!<thin>\n"), version...),
		"tar":                tree,
		"no version":         ar(control, data),
		"version 3":          ar(member("debian-binary", []byte("3.0\n")), control, data),
		"long version":       ar(member("debian-binary", []byte("2.0\n"+strings.Repeat("x", 100))), control, data),
		"version twice":      ar(version, version, control, data),
		"no control":         ar(version, data),
		"control twice":      ar(version, control, control, data),
		"no data":            ar(version, control),
		"unknown entry":      ar(version, control, member("evil", []byte("x")), data),
		"path":               ar(version, control, member("../../x", []byte("x")), data),
		"too many":           ar(append([][]byte{version, control}, slices.Repeat([][]byte{member("_x", []byte("x"))}, 20)...)...),
		"bzip2":              ar(version, control, member("data.tar.bz2", []byte("BZh91AY&SY"))),
		"lzma":               ar(version, control, member("data.tar.lzma", []byte{0x5d, 0, 0, 0x80, 0, 0, 0})),
		"no size":            ar(version, control, member("data.tar", tree, "")),
		"negative size":      ar(version, control, member("data.tar", tree, "-5")),
		"size of letters":    ar(version, control, member("data.tar", tree, "0x10")),
		"huge size":          ar(version, control, member("data.tar", tree, "9999999999")),
		"huge control":       ar(version, member("control.tar.gz", nil, "999999999"), data),
		"longer than it is":  ar(version, control, member("data.tar", tree, "90000")),
		"damaged header":     ar(version, control, bytes.Replace(data, []byte("`\n"), []byte("xx"), 1)),
		"cut in a header":    whole[:8+60+4+30],
		"cut in the control": whole[:8+60+4+60+5],
		"cut in the data":    whole[:len(whole)-20],
		"cut gzip":           ar(version, control, member("data.tar.gz", gz(tree)[:30])),
		"gzip in name alone": ar(version, control, member("data.tar.gz", tree)),
		"damaged gzip":       ar(version, control, member("data.tar.gz", []byte{0x1f, 0x8b, 8, 0xff, 0, 0, 0, 0, 0, 0})),
	}
}

func TestHostilePackages(t *testing.T) {
	for name, data := range hostile(t) {
		_, err := read(data)
		class := errdefs.ClassOf(err)
		// What fails while it is read has no class yet.
		known := slices.Contains([]errdefs.Class{errdefs.ClassInvalidArgument, errdefs.ClassUnsupported, errdefs.ClassExhausted}, class)
		if err == nil || !known && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: class %q: %v", name, class, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, syscall.EIO }

func TestTroubleOfTheHost(t *testing.T) {
	for _, begin := range [][]byte{nil, ar(), ar(version)} {
		if _, err := deb.Data(io.MultiReader(bytes.NewReader(begin), failing{})); !errors.Is(err, syscall.EIO) {
			t.Errorf("after %d bytes: %v", len(begin), err)
		}
	}
}

func FuzzData(f *testing.F) {
	for _, data := range hostile(f) {
		f.Add(data)
	}
	f.Add(ar(version, member("control.tar.gz", nil), member("data.tar", archive(f))))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = read(data) })
}

// A short run of that, the same each time.
func TestMutatedPackages(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	good := ar(version, member("control.tar.gz", gz([]byte("x"))), member("data.tar.gz", gz(archive(t))))
	refused := 0
	for range 20_000 {
		data := bytes.Clone(good)
		for range 1 + rng.IntN(3) {
			data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
		}
		if _, err := read(data); err != nil {
			refused++
		}
	}
	if refused < 10_000 {
		t.Errorf("only %d were refused", refused)
	}
}
