//go:build e2e

package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/ocitest"
)

// needFull skips what takes minutes, or tens of gigabytes.
func needFull(t *testing.T) {
	t.Helper()
	if os.Getenv("E2E_FULL") == "" {
		t.Skip("runs in make test-images-full")
	}
}

// debianImage makes an image of Debian's packages, in a layout, as umoci makes it.
func debianImage(t *testing.T, packages string, more ...tar.Header) (ref string) {
	t.Helper()
	ocitest.Need(t, "mmdebstrap", "umoci")
	if os.Getuid() != 0 {
		t.Skip("mmdebstrap makes all owners only as root")
	}
	src, err := debian.HostSources("/", "")
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	sources, root, image := filepath.Join(work, "debian.sources"), filepath.Join(work, "root.tar"), filepath.Join(work, "layout")
	write(t, sources, string(src.Deb822(false)))
	args := []string{"--mode=root", "--variant=apt", "--architectures=amd64", "--components=main", "--include=" + packages}
	if len(src.Archives) == 0 {
		args = append(args, "--keyring="+src.Keyring, src.Suite, root)
	} else {
		args = append(args, src.Suite, root, sources)
	}
	ocitest.Run(t, "mmdebstrap", args...)
	ocitest.Run(t, "umoci", "init", "--layout", image)
	ocitest.Run(t, "umoci", "new", "--image", image+":v1")
	ocitest.Run(t, "umoci", "raw", "add-layer", "--image", image+":v1", root)
	if err := os.Remove(root); err != nil {
		t.Fatal(err)
	}
	write(t, root, string(tarOf(t, more...)))
	ocitest.Run(t, "umoci", "raw", "add-layer", "--image", image+":v1", root)
	return "oci:" + image + ":v1"
}

// Images with an init boot with it, run commands meanwhile, and end by it.
func TestImagesWithInit(t *testing.T) {
	needFull(t)
	w := s.main
	started := file("etc/rc.local", "#!/bin/sh\necho started > /root/started\n")
	started.Mode = 0o755
	for _, c := range []struct {
		name, packages string
		settled        string // waits in the guest until the boot is over
		want           string // what process 1 is, and what it says of itself
		says           string // what tells it and what it says
		ends           string // on the console
	}{
		{"openrc", "openrc,sysvinit-core", "until rc-status default | grep -q 'rc.local.*started'; do sleep 1; done", "init\ndefault",
			"cat /proc/1/comm /run/openrc/softlevel", "Will now halt"},
		{"systemd", "systemd-sysv,dbus", "until test -S /run/systemd/private; do sleep 1; done; systemctl is-system-running --wait", "systemd\nrunning", "cat /proc/1/comm; systemctl is-system-running", "reboot: Power down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := debianImage(t, c.packages, started)
			name := "e2e-" + c.name
			t.Cleanup(func() { w.run(t, "image", "rm", name) })
			w.ok(t, "image", "pull", "--name", name, ref)
			v := w.boot(t, name, "--net", "user", "--image", name)
			for range 2 { // boots
				w.execRoot(t, v, "sh", "-c", "echo kept > /tmp/early; rm -f /root/started")
				w.execRoot(t, v, "sh", "-c", c.settled)
				want := "kept\nstarted\n" + name + "\n" + c.want
				if got := w.execRoot(t, v, "sh", "-c", "cat /tmp/early /root/started; hostname; "+c.says); got != want {
					t.Errorf("the guest says %q, want %q", got, want)
				}
				if got := w.execRoot(t, v, "sh", "-c", "cat /sys/class/net/e*/operstate; cat /etc/resolv.conf"); !strings.HasPrefix(got, "up\n") || !strings.Contains(got, "nameserver") {
					t.Errorf("its network is %q", got)
				}
				w.ok(t, "vm", "stop", v.ID)
				if log := w.ok(t, "vm", "logs", v.ID); !strings.Contains(log, c.ends) {
					t.Errorf("it did not end as it should:\n%s", log)
				}
				w.ok(t, "vm", "start", v.ID)
			}
		})
	}
}

// Images of any size boot, and it takes the daemon no more memory.
func TestImagesLarge(t *testing.T) {
	needFull(t)
	w := s.main
	d := ocitest.StartRegistry(t)
	login(t, w, d.Host)
	for _, c := range []struct {
		name     string
		size     int64
		pack     func(io.Writer) (io.WriteCloser, error)
		media    types.MediaType
		registry bool // it comes from there; else from its layout, for the disk's sake
	}{
		{"3G", 3 << 30, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }, types.OCILayer, true},
		{"20G", 20 << 30, func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
		}, types.OCILayerZStd, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			began := time.Now()
			lap := func() time.Duration {
				took := time.Since(began)
				began = time.Now()
				return took.Round(time.Second / 10)
			}
			l := largeLayer(t, dir, c.size, c.pack)
			made := ocitest.Make(t, ocitest.Image{}, func(config *v1.ConfigFile, m *v1.Manifest) {
				m.Layers = append(m.Layers, v1.Descriptor{MediaType: c.media, Size: l.size, Digest: l.digest})
				config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
			})
			ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"v1": made})
			ref := "oci:" + dir + ":v1"
			if c.registry {
				d.Push(t, ref, "large:1")
				ref = d.Host + "/large:1"
			}
			t.Logf("%d files of together %d MiB, as %d MiB, made in %v", len(l.sums), c.size>>20, l.size>>20, lap())
			name := "e2e-large"
			t.Cleanup(func() { w.run(t, "image", "rm", name); w.run(t, "image", "cache", "prune", "--all") })
			daemon := w.mustDaemon(t)
			status := fmt.Sprintf("/proc/%d/", daemon.pid)
			if err := os.WriteFile(status+"clear_refs", []byte("5"), 0); err != nil { // its peak begins anew
				t.Fatal(err)
			}
			w.ok(t, "image", "pull", "--insecure", "--name", name, ref)
			peak := peakMiB(t, status+"status")
			t.Logf("pulled in %v; the daemon took %d MiB at most", lap(), peak)
			if most := 150 + len(l.sums)*3/10_000; peak > most {
				t.Errorf("the daemon took %d MiB, more than %d", peak, most)
			}
			if err := os.RemoveAll(filepath.Join(dir, "blobs")); err != nil {
				t.Fatal(err)
			}
			w.ok(t, "image", "cache", "prune", "--all")
			v := w.boot(t, "e2e-large", "--net", "none", "--image", name)
			t.Logf("booted in %v", lap())
			for _, n := range []int{3, 9, len(l.sums) - 2, len(l.sums) - 1} {
				want := l.sums[n]
				if got := w.execRoot(t, v, "/busybox", "sha256sum", "/data/"+strconv.Itoa(n)); !strings.HasPrefix(got, want+" ") {
					t.Errorf("file %d is %s, want %s", n, got, want)
				}
			}
			if got := w.execRoot(t, v, "/busybox", "sh", "-c", "ls /data | wc -l; du -sm /data | cut -f 1"); !strings.HasPrefix(got, strconv.Itoa(len(l.sums))+"\n") {
				t.Errorf("the guest sees %q, want %d files", got, len(l.sums))
			} else if mib, err := strconv.ParseInt(strings.Fields(got)[1], 10, 64); err != nil || mib < c.size>>20 || mib > c.size>>20+c.size>>25 {
				t.Errorf("the guest sees %s MiB of files", got)
			}
		})
	}
}

func peakMiB(t *testing.T, status string) int {
	t.Helper()
	text, err := os.ReadFile(status)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// large is a layer of so many files in /data, called 0, 1 and so on, and busybox.
type large struct {
	size           int64 // as it is stored
	digest, diffID v1.Hash
	sums           []string // of the files
}

// largeLayer writes a layer whose files have size bytes together below a layout.
func largeLayer(t *testing.T, layout string, size int64, pack func(io.Writer) (io.WriteCloser, error)) large {
	t.Helper()
	stored := filepath.Join(layout, "layer")
	f := create(t, stored)
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	z, err := pack(io.MultiWriter(f, packed))
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(io.MultiWriter(z, plain))
	busybox := hostFile(t, "busybox", tool(t, "busybox"))
	content := busybox.Linkname
	busybox.Linkname, busybox.Size = "", int64(len(content))
	err = tw.WriteHeader(&busybox)
	_, werr := io.WriteString(tw, content)
	if err := errors.Join(err, werr); err != nil {
		t.Fatal(err)
	}
	var l large
	random := rand.NewChaCha8([32]byte{7})
	sizes := []int64{0, 999, 4096, 5_000, 70_000, 300_001, 1 << 20, 3_000_000, 9_999_999, 64 << 20, 700 << 20}
	for size > 0 {
		n := sizes[len(l.sums)%len(sizes)]
		if n > size/2 {
			n = min(size, 64<<20) // the last ones are no burden to a guest that reads them
		}
		sum := sha256.New()
		h := tar.Header{Typeflag: tar.TypeReg, Name: "data/" + strconv.Itoa(len(l.sums)), Mode: 0o644, Size: n, ModTime: time.Unix(1_700_000_000, 0), Format: tar.FormatPAX}
		err := errors.Join(tw.WriteHeader(&h), mixed(io.MultiWriter(tw, sum), n, random))
		if err != nil {
			t.Fatal(err)
		}
		l.sums = append(l.sums, hex.EncodeToString(sum.Sum(nil)))
		size -= n
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l.size = info.Size()
	l.digest, l.diffID = sha(packed), sha(plain)
	at := filepath.Join(layout, "blobs/sha256")
	if err := errors.Join(os.MkdirAll(at, 0o755), os.Rename(stored, filepath.Join(at, l.digest.Hex))); err != nil {
		t.Fatal(err)
	}
	return l
}

func sha(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// mixed writes n bytes: an eighth cannot be compressed, none is part of a hole, and no
// block is like another.
func mixed(w io.Writer, n int64, random *rand.ChaCha8) error {
	const unit, block = 64 << 10, 4096
	text := bytes.Repeat([]byte("what programs hold is mostly like what came before\n"), unit/50)[:unit]
	noise := make([]byte, unit)
	for i := 0; n > 0; i++ {
		part := text[:min(n, unit)]
		if i%8 == 0 {
			part = noise[:len(part)]
			_, _ = random.Read(part) // which never fails
		}
		for at := 0; at < len(part); at += block {
			_, _ = random.Read(part[at:min(at+16, len(part))])
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		n -= int64(len(part))
	}
	return nil
}
