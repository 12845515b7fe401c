package decompress_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/decompress"
)

// samples: machine code (this program), for the branch filter; the same bytes
// over and over; noise; and sizes around the filters' buffers.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	code = code[:min(len(code), 400_000)]
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_001)
	calls := make([]byte, 300_003) // dense with opcodes and sign bytes: the filter's hard cases
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for i := range calls {
		calls[i] = []byte{0xe8, 0xe9, 0x00, 0xff, byte(rng.Uint32())}[rng.IntN(5)]
	}
	return map[string][]byte{
		"code": code, "zeros": make([]byte, 9<<20), "noise": noise, "calls": calls,
		"text": []byte(strings.Repeat("a kernel, ", 100)), "five": []byte("12345"), "one": {7},
	}
}

func compress(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

var tools = map[string][]string{
	"gzip":       {"gzip", "-1c"},
	"zstd":       {"zstd", "-q", "-3", "-c"},
	"lz4":        {"lz4", "-l", "-c", "-q"},
	"xz":         {"xz", "-1", "-c"},
	"xz kernel":  {"xz", "--check=crc32", "--x86", "--lzma2=preset=1,dict=32MiB", "-c"},
	"xz modules": {"xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"},
	"xz blocks":  {"xz", "-1", "--x86", "--lzma2=preset=0", "--block-size=65536", "--check=none", "-c"},
}

func TestReadsWhatTheToolsWrite(t *testing.T) {
	for tool, argv := range tools {
		t.Run(tool, func(t *testing.T) {
			for name, data := range samples(t) {
				if name == "zeros" && tool != "lz4" { // only its blocks are that large
					data = data[:1<<20]
				}
				packed := compress(t, data, argv[0], argv[1:]...)
				if got := decompress.Detect(packed); !strings.HasPrefix(tool, got) || got == "" {
					t.Fatalf("detected as %q", got)
				}
				r, err := decompress.NewReader(bytes.NewReader(packed))
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %v; got %d bytes, want %d, equal %v", name, err, len(got), len(data), bytes.Equal(got, data))
				}
				_ = r.Close()
			}
		})
	}
}

func TestDamageIsAnError(t *testing.T) {
	data := samples(t)["code"]
	for _, tool := range []string{"xz kernel", "xz", "gzip", "zstd"} {
		t.Run(tool, func(t *testing.T) {
			packed := compress(t, data, tools[tool][0], tools[tool][1:]...)
			for _, damaged := range [][]byte{
				packed[:len(packed)/2],
				append(append(bytes.Clone(packed[:len(packed)/3]), packed[len(packed)/3]^0x55), packed[len(packed)/3+1:]...),
			} {
				if got, err := readAll(damaged); err == nil && bytes.Equal(got, data) {
					t.Error("the damage went unnoticed")
				} else if err == nil && tool != "zstd" { // the zstd tool adds a checksum only on request
					t.Error("no error")
				}
			}
		})
	}
	if _, err := decompress.NewReader(strings.NewReader("plain text")); !errors.Is(err, decompress.ErrFormat) {
		t.Errorf("plain text: %v", err)
	}
	if _, err := decompress.NewReader(strings.NewReader("")); !errors.Is(err, decompress.ErrFormat) {
		t.Errorf("nothing: %v", err)
	}
}

func readAll(packed []byte) ([]byte, error) {
	r, err := decompress.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 16<<20))
}

// FuzzNewReader looks for input that makes a decoder panic or never end.
func FuzzNewReader(f *testing.F) {
	for _, argv := range tools {
		if _, err := exec.LookPath(argv[0]); err == nil {
			f.Add(compress(f, []byte("some data, some data, some data"), argv[0], argv[1:]...))
		}
	}
	f.Add([]byte{0x02, 0x21, 0x4c, 0x18, 5, 0, 0, 0, 0x1f, 'a', 1, 0, 0xff})
	f.Fuzz(func(_ *testing.T, packed []byte) { _, _ = readAll(packed) })
}
