package rootdisk_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/rootdisk"
	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/sysexec"
)

const mib = 1 << 20

// image makes a sparse file with something in two places.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "an image: with, odd \"name\".ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at, text := range map[int64]string{0: "first", size - 5: "last!"} {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := sysexec.Look("qemu-img"); err != nil {
		t.Skip("needs qemu-img (package qemu-utils)")
	}
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{Path: "qemu-img", Args: args})
	if err != nil {
		t.Fatalf("qemu-img %v: %v", args, err)
	}
	return out
}

// Every kind of disk holds the image's content, is as large as asked, takes next
// to nothing, and leaves the image alone when it is written.
func TestConformance(t *testing.T) {
	const imageSize = 8*mib + 512
	for _, format := range []hypervisor.DiskFormat{hypervisor.FormatQcow2, hypervisor.FormatRaw} {
		for _, size := range []int64{imageSize, imageSize + 1, 100 * mib, 3 << 30, 5 << 40} {
			t.Run(fmt.Sprintf("%s/%d", format, size), func(t *testing.T) {
				img := image(t, imageSize)
				before, err := os.ReadFile(img)
				if err != nil {
					t.Fatal(err)
				}
				dest := filepath.Join(t.TempDir(), "root disk")
				d, err := rootdisk.Create(t.Context(), rootdisk.Request{ImagePath: img, Dest: dest, SizeBytes: size, Format: format})
				if err != nil {
					t.Fatal(err)
				}
				if d != (hypervisor.Disk{Serial: hypervisor.SerialRoot, Path: dest, Format: format}) {
					t.Errorf("got %+v", d)
				}
				if used, err := rootdisk.Used(dest); err != nil || used > mib {
					t.Errorf("an unused disk takes %d bytes, %v", used, err)
				}
				rounded := (size + 511) / 512 * 512
				checkInfo(t, d, img, rounded)
				if rounded > 200*mib {
					return // content is the same, converting takes long
				}
				plain := filepath.Join(t.TempDir(), "plain")
				qemuImg(t, "convert", "-f", string(format), "-O", "raw", dest, plain)
				got, err := os.ReadFile(plain)
				if err != nil {
					t.Fatal(err)
				}
				if int64(len(got)) != rounded || !bytes.Equal(got[:imageSize], before) || len(bytes.Trim(got[imageSize:], "\x00")) > 0 {
					t.Errorf("content differs from the image (%d bytes)", len(got))
				}
				if after, _ := os.ReadFile(img); !bytes.Equal(before, after) {
					t.Error("the image changed")
				}
				if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dest), ".*")); len(left) > 0 {
					t.Errorf("left %v", left)
				}
			})
		}
	}
}

func checkInfo(t *testing.T, d hypervisor.Disk, img string, size int64) {
	t.Helper()
	if d.Format == hypervisor.FormatRaw {
		if st, err := os.Stat(d.Path); err != nil || st.Size() != size {
			t.Errorf("size %v, %v; want %d", st.Size(), err, size)
		}
		return
	}
	var info struct {
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"backing-filename"`
		BackingFmt  string `json:"backing-filename-format"`
		Cluster     int    `json:"cluster-size"`
		Specific    struct {
			Data struct {
				Compat string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(qemuImg(t, "info", "--output=json", d.Path), &info); err != nil {
		t.Fatal(err)
	}
	if info.VirtualSize != size || info.Backing != img || info.BackingFmt != "raw" || info.Cluster != 64<<10 || info.Specific.Data.Compat != "1.1" {
		t.Errorf("info %+v", info)
	}
	var check struct {
		Errors      int `json:"check-errors"`
		Leaks       int `json:"leaks"`
		Corruptions int `json:"corruptions"`
	}
	if err := json.Unmarshal(qemuImg(t, "check", "--output=json", d.Path), &check); err != nil {
		t.Fatal(err)
	}
	if check.Errors+check.Leaks+check.Corruptions > 0 {
		t.Errorf("check %+v", check)
	}
}

// An overlay that was written to is still sound, and may itself be a backing file.
func TestOverlayInUse(t *testing.T) {
	img := image(t, 8*mib)
	dir := t.TempDir()
	first := filepath.Join(dir, "first.qcow2")
	if _, err := rootdisk.Create(t.Context(), rootdisk.Request{ImagePath: img, Dest: first, SizeBytes: 2 << 30, Format: hypervisor.FormatQcow2}); err != nil {
		t.Fatal(err)
	}
	if _, err := sysexec.Look("qemu-io"); err != nil {
		t.Skip("needs qemu-io (package qemu-utils)")
	}
	for _, cmd := range []string{"write -P 7 0 200k", "write -P 8 1900M 70M", "discard 1900M 10M", "read -P 7 100k 100k", "read -P 8 1920M 1M"} {
		out, err := sysexec.Output(t.Context(), sysexec.Cmd{Path: "qemu-io", Args: []string{"-f", "qcow2", "-c", cmd, first}})
		if err != nil || strings.Contains(string(out), "fail") {
			t.Fatalf("%s: %v: %s", cmd, err, out)
		}
	}
	qemuImg(t, "check", first)
	if used, err := rootdisk.Used(first); err != nil || used < 50*mib {
		t.Errorf("used %d, %v", used, err)
	}
	second := filepath.Join(dir, "second.qcow2")
	req := rootdisk.Request{ImagePath: first, ImageFormat: hypervisor.FormatQcow2, Dest: second, SizeBytes: 2 << 30, Format: hypervisor.FormatQcow2}
	if _, err := rootdisk.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", second)
	if out := qemuImg(t, "info", second); !strings.Contains(string(out), "backing file format: qcow2") {
		t.Errorf("info: %s", out)
	}
	req.SizeBytes, req.Dest = 1<<30, filepath.Join(dir, "third.qcow2")
	if _, err := rootdisk.Create(t.Context(), req); errdefs.ClassOf(err) != errdefs.ClassInvalidArgument {
		t.Errorf("disk smaller than a qcow2 image: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	img := image(t, 8*mib)
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := rootdisk.Request{ImagePath: img, Dest: filepath.Join(dir, "disk"), SizeBytes: 8 * mib}
	for _, format := range []hypervisor.DiskFormat{hypervisor.FormatQcow2, hypervisor.FormatRaw} {
		for _, c := range []struct {
			name  string
			bend  func(*rootdisk.Request)
			class errdefs.Class
			hint  string
		}{
			{"too small", func(r *rootdisk.Request) { r.SizeBytes-- }, errdefs.ClassInvalidArgument, "--disk 8M"},
			{"zero", func(r *rootdisk.Request) { r.SizeBytes = 0 }, errdefs.ClassInvalidArgument, ""},
			{"negative", func(r *rootdisk.Request) { r.SizeBytes = -1 }, errdefs.ClassInvalidArgument, ""},
			{"absurd", func(r *rootdisk.Request) { r.SizeBytes = 1 << 62 }, errdefs.ClassInvalidArgument, ""},
			{"relative image", func(r *rootdisk.Request) { r.ImagePath = "rootdisk_test.go" }, errdefs.ClassInvalidArgument, ""},
			{"no image", func(r *rootdisk.Request) { r.ImagePath += "x" }, errdefs.ClassNotFound, "pull"},
			{"a directory", func(r *rootdisk.Request) { r.ImagePath = dir }, errdefs.ClassInvalidArgument, ""},
			{"taken", func(r *rootdisk.Request) { r.Dest = taken }, errdefs.ClassAlreadyExists, ""},
			{"format", func(r *rootdisk.Request) { r.Format = "vmdk" }, errdefs.ClassInvalidArgument, ""},
			{"not qcow2", func(r *rootdisk.Request) { r.ImageFormat = hypervisor.FormatQcow2; r.Format = hypervisor.FormatQcow2 }, errdefs.ClassInvalidArgument, ""},
		} {
			t.Run(string(format)+"/"+c.name, func(t *testing.T) {
				r := good
				r.Format = format
				c.bend(&r)
				_, err := rootdisk.Create(t.Context(), r)
				if err == nil || errdefs.ClassOf(err) != c.class || !strings.Contains(errdefs.HintOf(err), c.hint) {
					t.Errorf("got %v (class %s, hint %q)", err, errdefs.ClassOf(err), errdefs.HintOf(err))
				}
			})
		}
	}
	if b, _ := os.ReadFile(taken); string(b) != "precious" {
		t.Error("an existing file was replaced")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left %v", entries)
	}
}

func TestCancel(t *testing.T) {
	img := image(t, 8*mib)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := rootdisk.Create(ctx, rootdisk.Request{ImagePath: img, Dest: filepath.Join(dir, "d"), SizeBytes: 8 * mib, Format: hypervisor.FormatRaw})
	if err == nil {
		t.Skip("this file system makes reflinks, which take no time to cancel")
	}
	if errdefs.ClassOf(err) != errdefs.ClassCanceled {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left %v", entries)
	}
}

// What is said of the method is what Create does.
func TestMethod(t *testing.T) {
	dir := t.TempDir()
	if got := rootdisk.Method(hypervisor.FormatQcow2, dir); !strings.HasPrefix(got, "qcow2 views") {
		t.Errorf("qcow2: %s", got)
	}
	if got := rootdisk.Method(hypervisor.FormatRaw, filepath.Join(dir, "later")); !strings.Contains(got, "where the file system shares blocks") {
		t.Errorf("before there is a directory: %s", got)
	}
	got := rootdisk.Method(hypervisor.FormatRaw, dir)
	if !strings.HasPrefix(got, "sparse copies") && !strings.HasPrefix(got, "reflinks") {
		t.Errorf("raw: %s", got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("trying left %v, %v", entries, err)
	}
	// Memory shares no blocks.
	small, _ := disktest.Small(t, 1*mib)
	if got := rootdisk.Method(hypervisor.FormatRaw, small); !strings.HasPrefix(got, "sparse copies") || !strings.Contains(got, "not supported") {
		t.Errorf("in memory: %s", got)
	}
}

// With any amount of space too little a disk is an error with a remedy, and leaves
// nothing; with enough it is made.
func TestNoSpace(t *testing.T) {
	dir, leave := disktest.Small(t, 32*mib)
	img := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(img, bytes.Repeat([]byte("full"), mib), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []hypervisor.DiskFormat{hypervisor.FormatQcow2, hypervisor.FormatRaw} {
		failures := 0
		for _, free := range []int64{0, 4 << 10, 8 << 10, 12 << 10, 16 << 10, 64 << 10, 256 << 10, mib, 3 * mib, 4*mib - 4096, 4 * mib, 16 * mib} {
			leave(free)
			dest := filepath.Join(dir, "d")
			_, err := rootdisk.Create(t.Context(), rootdisk.Request{ImagePath: img, Dest: dest, SizeBytes: 8 * mib, Format: format})
			if err == nil {
				if err := os.Remove(dest); err != nil {
					t.Fatal(err)
				}
				continue
			}
			failures++
			if errdefs.ClassOf(err) != errdefs.ClassExhausted || errdefs.HintOf(err) == "" {
				t.Errorf("%s with %d free: %v", format, free, err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("%s with %d free: left %v", format, free, entries)
			}
			if format == hypervisor.FormatRaw && free >= 4*mib || free >= mib && format == hypervisor.FormatQcow2 {
				t.Errorf("%s: %d free is enough: %v", format, free, err)
			}
		}
		if failures < 2 {
			t.Errorf("%s: only %d failures", format, failures)
		}
	}
}
