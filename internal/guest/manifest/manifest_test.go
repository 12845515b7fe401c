package manifest_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
)

var sample = []manifest.Entry{
	{Name: "a", Mode: 0o100644, Size: 5, Mtime: 1e18, Ctime: 1e18 + 7, Ino: 12, Hash: 1},
	{Name: "a/b", Mode: 0o40755, Mtime: -5, Ctime: math.MaxInt32, Ino: math.MaxUint64},
	{Name: "a/b\nc", Mode: 0o120777, Size: 1, Hash: math.MaxUint64, Next: 9, Flags: manifest.Dirty | manifest.Racy},
	{Name: "zz", Flags: manifest.Gone},
	{Name: "a", Flags: manifest.Added, Next: 3},
}

func encode(t *testing.T, sections ...[]manifest.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := manifest.NewWriter(&b)
	for _, s := range sections {
		for i := range s {
			if err := w.Add(&s[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func decode(r *bufio.Reader, limit int) (all []manifest.Entry, err error) {
	err = manifest.All(r, limit, func(e manifest.Entry) error {
		all = append(all, e)
		return nil
	})
	return all, err
}

func TestRoundTrip(t *testing.T) {
	r := bufio.NewReader(bytes.NewReader(append(encode(t, sample, nil, sample[2:]), "rest"...)))
	for i, want := range [][]manifest.Entry{sample, nil, sample[2:]} {
		got, err := decode(r, 10)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("section %d: %+v, %v", i, got, err)
		}
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "rest" {
		t.Errorf("what follows: %q, %v", rest, err)
	}
}

func TestCutOff(t *testing.T) {
	whole := encode(t, sample)
	for n := range whole {
		got, err := decode(bufio.NewReader(bytes.NewReader(whole[:n])), 10)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
		if len(got) > 0 && !reflect.DeepEqual(got, sample[:len(got)]) {
			t.Fatalf("%d of %d bytes: %+v", n, len(whole), got)
		}
	}
	if _, err := decode(bufio.NewReader(bytes.NewReader(whole)), len(sample)-1); !errors.Is(err, errdefs.ErrExhausted) {
		t.Errorf("more than allowed: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{8, 0, 0, 1, 'a', 0})
	f.Add([]byte{8, 0, 200, 1, 'a', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decode(bufio.NewReader(bytes.NewReader(b)), 1000)
		for _, e := range all {
			if e.Name == "" || len(e.Name) > 4096 {
				t.Errorf("a name of %d bytes", len(e.Name))
			}
		}
		if err != nil {
			return
		}
		again, err := decode(bufio.NewReader(bytes.NewReader(encode(t, all))), 1000)
		if err != nil || !reflect.DeepEqual(again, all) {
			t.Errorf("written and read again: %+v, %v", again, err)
		}
	})
}
