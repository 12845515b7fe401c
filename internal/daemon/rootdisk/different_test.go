package rootdisk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Where there is no device-mapper, a file stands for the device.
func TestCopyDifferent(t *testing.T) {
	dir := t.TempDir()
	const size = 40*clusterSize + sector
	image := bytes.Repeat([]byte("i"), 20*clusterSize+sector)
	want := append(bytes.Clone(image), make([]byte, size-len(image))...)
	copy(want[3*clusterSize+5:], "changed")
	clear(want[7*clusterSize : 9*clusterSize])
	copy(want[size-sector:], "the end")
	open := func(name string, content []byte) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	f := open("flat", nil)
	if err := copyDifferent(t.Context(), f, open("device", want), open("image", image), size); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes differ from the device's, %v", len(got), err)
	}
	if n, err := used(f.Name()); err != nil || n > 25*clusterSize {
		t.Errorf("it takes %d bytes, %v", n, err)
	}
}
