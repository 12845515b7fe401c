package flatten_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
)

// fuzzLimits keep what a fuzzer makes small.
var fuzzLimits = flatten.Limits{Entries: 1000, Bytes: 1 << 20, FileBytes: 256 << 10, MetaBytes: 256 << 10}

// FuzzLayers takes two layers as they come: whatever is in them, they make a tree that
// can be, or are refused as a bad image, and nothing leaks.
func FuzzLayers(f *testing.F) {
	for _, r := range rules {
		two := [2][]byte{}
		for i, l := range r.layers {
			if i < 2 {
				two[i] = tarOf(f, l...)
			}
		}
		f.Add(two[0], two[1])
	}
	for _, h := range hostile(f) {
		if len(h.blob) < 16<<10 {
			f.Add(h.blob, tarOf(f, file("a/f", "x"), file("b/.wh..wh..opq", "")))
		}
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		lower, upper = bytes.Clone(lower), bytes.Clone(upper)
		repair(lower)
		repair(upper)
		s := newSink(t)
		root, stats, err := flatten.Flatten(t.Context(), layersOf(lower, upper), s, fuzzLimits, nil)
		s.check(t, root)
		if err != nil {
			if !errors.Is(err, invalid) && !errors.Is(err, exhausted) {
				t.Errorf("of no class: %v", err)
			}
			if len(err.Error()) > 2000 || !strings.Contains(err.Error(), "layer L") {
				t.Errorf("not a good error: %v", err)
			}
			return
		}
		sound(t, root, stats)
	})
}

// repair gives what may be headers a checksum that is right, without which a fuzzer does
// not get far.
func repair(b []byte) {
	for ; len(b) >= 512; b = b[512:] {
		if !bytes.HasPrefix(b[257:], []byte("ustar")) {
			continue
		}
		copy(b[148:], "        ")
		sum := 0
		for _, c := range b[:512] {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
}

// FuzzCompressed takes a layer in any form.
func FuzzCompressed(f *testing.F) {
	plain := tarOf(f, file("a", "x"), dir("d"), file("d/b", strings.Repeat("y", 300)))
	for _, b := range forms(f, plain) {
		f.Add(b)
	}
	for _, h := range hostile(f) {
		if h.media != "" && len(h.blob) < 16<<10 {
			f.Add(h.blob)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSink(t)
		root, stats, err := flatten.Flatten(t.Context(), []flatten.Layer{{Name: "L1", Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b)), nil
		}}}, s, fuzzLimits, nil)
		s.check(t, root)
		switch {
		case err == nil:
			sound(t, root, stats)
		case !errors.Is(err, invalid) && !errors.Is(err, exhausted):
			t.Errorf("of no class: %v", err)
		}
	})
}

// sound checks that a filesystem can have the tree.
func sound(t *testing.T, root *ext4.Inode, stats flatten.Stats) {
	t.Helper()
	if root.Mode != unix.S_IFDIR|0o755 || root.UID != 0 || root.GID != 0 || len(root.Xattrs) > 0 {
		t.Errorf("the root is %o %d:%d", root.Mode, root.UID, root.GID)
	}
	seen := map[*ext4.Inode]int{}
	var total int64
	walk(root, "", func(p string, in *ext4.Inode) {
		seen[in]++
		typ := in.Mode & unix.S_IFMT
		switch {
		case typ == unix.S_IFDIR && seen[in] > 1:
			t.Fatalf("%q is a directory with two names", p)
		case len(p) > 4094:
			t.Errorf("a path of %d bytes", len(p))
		case (in.Target != "") != (typ == unix.S_IFLNK), len(in.Target) > 4095, strings.Contains(in.Target, "\x00"):
			t.Errorf("%q, of mode %o, has the target %q", p, in.Mode, in.Target)
		case in.Data.Size() > 0 && typ != unix.S_IFREG, in.Children != nil && typ != unix.S_IFDIR:
			t.Errorf("%q, of mode %o, has what it cannot", p, in.Mode)
		case in.Rdev != ext4.Device{} && typ != unix.S_IFCHR && typ != unix.S_IFBLK, in.Rdev.Major > 4095, in.Rdev.Minor > 1<<20-1:
			t.Errorf("%q, of mode %o, is device %v", p, in.Mode, in.Rdev)
		case in.MTime.Sec < -1<<31 || in.MTime.Sec > 15032385535 || in.MTime.Nsec > 999_999_999:
			t.Errorf("%q is of %v", p, in.MTime)
		}
		switch typ {
		case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
		default:
			t.Errorf("%q has mode %o", p, in.Mode)
		}
		if seen[in] == 1 {
			total += in.Data.Size()
		}
		names := map[string]bool{}
		for _, c := range in.Children {
			n := c.Name
			if names[n] || n == "" || n == "." || n == ".." || len(n) > 255 || strings.ContainsAny(n, "/\x00") || strings.HasPrefix(n, ".wh..wh.") {
				t.Errorf("%q has a child %q", p, n)
			}
			names[n] = true
		}
		attrs := map[string]bool{}
		for _, x := range in.Xattrs {
			if attrs[x.Name] || len(x.Name) > 255 || len(x.Value) > 64<<10 || strings.HasPrefix(x.Name, "trusted.") {
				t.Errorf("%q has the attribute %q", p, x.Name)
			}
			attrs[x.Name] = true
		}
	})
	if int64(len(seen)) != stats.Inodes || stats.Entries > fuzzLimits.Entries || total > fuzzLimits.Bytes || stats.Bytes > fuzzLimits.Bytes {
		t.Errorf("%d inodes with %d bytes: %+v", len(seen), total, stats)
	}
}
