package dmsnap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A request is laid out as the kernel reads it: each target says where the next one
// is, and begins where a 64-bit number may.
func TestEncode(t *testing.T) {
	b, err := (&request{name: "n", targets: []target{
		{length: 8, kind: "linear", params: "7:0 0"}, {start: 8, length: 16, kind: "zero"},
	}, room: 100}).encode()
	if err != nil {
		t.Fatal(err)
	}
	if size := binary.NativeEndian.Uint32(b[12:]); int(size) != len(b) {
		t.Errorf("the size is given as %d, and is %d", size, len(b))
	}
	first := b[unix.SizeofDmIoctl:]
	next := binary.NativeEndian.Uint32(first[20:])
	if next%8 != 0 || text(first[unix.SizeofDmTargetSpec:]) != "7:0 0" || text(first[24:]) != "linear" {
		t.Errorf("the first target is %q, the next one at %d", first[:next], next)
	}
	second := first[next:]
	if binary.NativeEndian.Uint64(second) != 8 || text(second[24:]) != "zero" || text(second[unix.SizeofDmTargetSpec:]) != "" {
		t.Errorf("the second target is %q", second)
	}
	for _, r := range []*request{
		{name: strings.Repeat("n", unix.DM_NAME_LEN)}, {uuid: strings.Repeat("u", unix.DM_UUID_LEN)},
		{targets: []target{{kind: strings.Repeat("k", unix.DM_MAX_TYPE_NAME)}}},
	} {
		if _, err := r.encode(); !errors.Is(err, errTooLong) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// A list of devices is read to its end, and not past it.
func TestParseNames(t *testing.T) {
	entry := func(next uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint64(nil, 0xfd00)
		b = append(binary.NativeEndian.AppendUint32(b, next), name...)
		return append(b, make([]byte, 8-len(b)%8)...)
	}
	two := append(entry(16, "one"), entry(0, "two")...)
	for _, c := range []struct {
		b    []byte
		want []string
	}{
		{two, []string{"one", "two"}},
		{append(two, make([]byte, 100)...), []string{"one", "two"}},
		{make([]byte, 100), nil},
		{nil, nil},
		{entry(1<<31, "one"), []string{"one"}},
		{two[:20], []string{"one"}},
	} {
		if got := parseNames(c.b); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %q, want %q", c.b, got, c.want)
		}
	}
}

// The store of a layer has room for every chunk of the volume.
func TestLayerSize(t *testing.T) {
	const bytes = chunk * sector
	for _, size := range []int64{sector, bytes, bytes + 1, 64 << 20, 1<<40 + 512} {
		chunks := (size + bytes - 1) / bytes
		// The kernel's arithmetic: a header, then an area and the chunks it lists, again
		// and again, and an area ahead of what comes next.
		need := 1 + chunks + (chunks/(bytes/16) + 1)
		if got := LayerSize(size) / bytes; got < need || got > need+2 {
			t.Errorf("for %d bytes a layer has %d chunks; %d are needed", size, got, need)
		}
	}
}

// A new layer begins as the kernel's dm-snap-persistent.c would have made it, and holds
// nothing else.
func TestMakeLayer(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := MakeLayer(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	want := make([]byte, LayerSize(1<<20))
	copy(want, "SnAp\x01\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00")
	if err != nil || !bytes.Equal(b, want) {
		t.Errorf("a new layer has %d bytes, %q, %v", len(b), b[:min(32, len(b))], err)
	}
}
