//go:build e2e

package e2e_test

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/imagemgr/ocitest"
)

const (
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
	smallFiles = 10_000
)

// acl is one that gives user 33 what the group has: of a file with mode 0640.
func acl() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{0x01, 6, math.MaxUint32}, {0x02, 4, 33}, {0x04, 4, math.MaxUint32}, {0x10, 4, math.MaxUint32}, {0x20, 0, math.MaxUint32}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// Entries of layers. Each has a time of its own.
func entry(kind byte, name string, mode int64) tar.Header {
	h := tar.Header{Typeflag: kind, Name: name, Mode: mode}
	sum := uint32(len(name))
	for _, b := range []byte(name) {
		sum = sum*31 + uint32(b)
	}
	h.ModTime = time.Unix(1_500_000_000+int64(sum%100_000_000), int64(sum%999_999_999)+1)
	return h
}

func dir(name string) tar.Header { return entry(tar.TypeDir, name+"/", 0o755) }

func file(name, content string) tar.Header {
	h := entry(tar.TypeReg, name, 0o644)
	h.Linkname = content // as tarOf has it
	return h
}

func link(kind byte, name, target string) tar.Header {
	h := entry(kind, name, 0o777)
	h.Linkname = target
	return h
}

// twin is a hard link to an entry, with the same attributes, as tools write it.
func twin(name string, of tar.Header) tar.Header {
	h := of
	h.Typeflag, h.Linkname, h.Name = tar.TypeLink, of.Name, name
	return h
}

func with(h tar.Header, change func(*tar.Header)) tar.Header {
	change(&h)
	return h
}

func at(h tar.Header, sec, nsec int64) tar.Header {
	return with(h, func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) })
}

func attrs(h tar.Header, kv ...string) tar.Header {
	return with(h, func(h *tar.Header) {
		h.PAXRecords = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			h.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
	})
}

// writtenImage is of layers that no tool writes, put together by umoci, in its layout.
func writtenImage(t *testing.T, _ *ocitest.Registry) (ref, layout string) {
	t.Helper()
	linked, fifo, sym := file("links/a", "linked"), entry(tar.TypeFifo, "links/fifo", 0o600), link(tar.TypeSymlink, "links/sym", "a")
	replaced := file("twice", "first")
	first := []tar.Header{
		// What a VM needs is there, and stays what it is.
		with(dir("dev"), func(h *tar.Header) { h.Uid = 7 }), with(dir("proc"), func(h *tar.Header) { h.Mode = 0o511 }), dir("sys"),
		with(dir("run"), func(h *tar.Header) { h.Mode = 0o1700 }), with(dir("tmp"), func(h *tar.Header) { h.Mode = 0o1777 }), dir("etc"),
		dir("plain"), file("plain/empty", ""), file("plain/block", strings.Repeat("b", 4096)), file("plain/more", strings.Repeat("more", 50_000)),
		with(file("plain/setuid", "s"), func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 33, 44 }),
		with(dir("plain/sticky"), func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o3770, 4_000_000_000, 70_000 }),
		with(file("plain/none", "n"), func(h *tar.Header) { h.Mode = 0 }),
		dir("times"),
		at(file("times/1901", "t"), math.MinInt32, 0), at(file("times/1969", "t"), -1, 999_999_999), at(file("times/1960", "t"), -315_619_200, 1),
		at(file("times/0", "t"), 0, 0), at(file("times/1970", "t"), 0, 1), at(file("times/2038", "t"), math.MaxInt32, 999_999_999),
		at(file("times/2039", "t"), math.MaxInt32+1, 7), at(file("times/2200", "t"), 7_258_118_400, 123_456_789), at(file("times/2446", "t"), 15_032_385_534, 5),
		at(link(tar.TypeSymlink, "times/link", "0"), -86_400, 250_000_000),
		dir("names"), file("names/"+strings.Repeat("n", 255), "n"), file("names/caf\xe9", "latin"), file("names/\xff\xfe\x01", "bytes"),
		file("names/new\nline", "n"), file(`names/back\slash "quoted" `, "q"), file("names/...", "dots"), file("names/.whnot", "w"), file("names/wh.not", "w"),
		dir("special"), entry(tar.TypeFifo, "special/fifo", 0o620), with(entry(tar.TypeChar, "special/null", 0o666), func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
		with(entry(tar.TypeBlock, "special/loop", 0o660), func(h *tar.Header) { h.Devmajor, h.Devminor, h.Gid = 7, 300, 6 }),
		with(entry(tar.TypeChar, "special/large", 0o600), func(h *tar.Header) { h.Devmajor, h.Devminor = 4095, 1_048_575 }),
		link(tar.TypeSymlink, "special/dangling", "/nowhere/at/all"), link(tar.TypeSymlink, "special/up", "../../../../etc"),
		link(tar.TypeSymlink, "special/fast", strings.Repeat("f", 59)), link(tar.TypeSymlink, "special/slow", strings.Repeat("s", 60)),
		link(tar.TypeSymlink, "special/long", strings.Repeat("long/", 800)),
		dir("attrs"), attrs(with(file("attrs/ping", "p"), func(h *tar.Header) { h.Mode = 0o755 }), "security.capability", capability),
		attrs(with(file("attrs/acl", "a"), func(h *tar.Header) { h.Mode = 0o640 }), "system.posix_acl_access", acl()),
		attrs(dir("attrs/default"), "system.posix_acl_default", acl(), "user.note", "\x00\xff"),
		attrs(file("attrs/many", "m"), "user.a", strings.Repeat("a", 900), "user.b", strings.Repeat("b", 900), "user.c", strings.Repeat("c", 900), "trusted.d", "d"),
		dir("links"), linked, twin("links/b", linked), sym, twin("links/symtoo", sym), fifo, twin("links/fifotoo", fifo),
		dir("gone"), file("gone/a", "1"), dir("gone/b"), file("gone/b/c", "2"),
		dir("opaque"), file("opaque/old", "1"), dir("opaque/sub"), file("opaque/sub/old", "2"),
		dir("turns"), file("turns/in", "directory, link, directory"), dir("other"), file("other/x", "x"),
		dir("becomes"), file("becomes/file", "directory to file"), file("becomes2", "file to directory"),
		replaced, twin("once", replaced), file("twice", "second"), file("twicelink", "file"), link(tar.TypeSymlink, "twicelink", "once"),
		dir("many"),
	}
	deep := "deep"
	for i := range 30 {
		first = append(first, dir(deep))
		deep += "/" + strings.Repeat(string(rune('a'+i%26)), 110)
	}
	first = append(first, file(deep, "at the bottom"))
	for i := range smallFiles {
		if i%1000 == 0 {
			first = append(first, dir(fmt.Sprintf("many/%d", i/1000)))
		}
		first = append(first, file(fmt.Sprintf("many/%d/%05d-%s", i/1000, i, strings.Repeat("x", i%40)), strings.Repeat("s", i%100)))
	}
	second := []tar.Header{
		file(".wh.gone", ""), file("opaque/.wh..wh..opq", ""), file("opaque/new", "3"),
		twin("links/c", linked), twin("elsewhere", linked),
		link(tar.TypeSymlink, "turns", "other"), file("turns/through", "the link"),
		file("becomes", "now a file"), dir("becomes2"), file("becomes2/file", "now a directory"),
		file("many/3/.wh.03003-xxx", ""), file("many/.wh.4", ""), dir("many/4"), file("many/4/again", "of one layer"),
		with(dir("plain/sticky"), func(h *tar.Header) { h.Mode, h.Uid = 0o700, 12 }), entry(tar.TypeFifo, "plain/more", 0o600),
		file("without/a/parent", "p"),
	}
	third := []tar.Header{
		with(linked, func(h *tar.Header) { h.Typeflag, h.Name, h.Linkname = tar.TypeLink, "links/d", "links/c" }),
		file("links/.wh.a", ""), file(".wh.turns", ""), dir("turns"), file("turns/again", "a directory"),
		dir("gone"), file("gone/back", "again"), file("links/b", "cut off"),
		with(twin("links/other", fifo), func(h *tar.Header) { h.Mode, h.Uid = 0o640, 9 }),
	}
	tree := t.TempDir()
	sparse(t, filepath.Join(tree, "sparse/middle"), 24<<20, 0, 9<<20, 13<<20+4097)
	sparse(t, filepath.Join(tree, "sparse/all"), 8<<20)
	sparse(t, filepath.Join(tree, "sparse/end"), 8<<20, 8<<20-3)
	packed := filepath.Join(t.TempDir(), "packed.tar")
	ocitest.Run(t, "tar", "--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "-C", tree, "-cf", packed, "sparse")

	image := filepath.Join(t.TempDir(), "layout")
	tagged := image + ":v1"
	ocitest.Run(t, "umoci", "init", "--layout", image)
	ocitest.Run(t, "umoci", "new", "--image", tagged)
	for i, entries := range [][]tar.Header{first, second, third} {
		name := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.WriteFile(name, tarOf(t, entries...), 0o600); err != nil {
			t.Fatal(err)
		}
		ocitest.Run(t, "umoci", "raw", "add-layer", "--image", tagged, name)
	}
	ocitest.Run(t, "umoci", "raw", "add-layer", "--image", tagged, packed)
	return "oci:" + tagged, tagged
}

// sparse makes a file with some bytes at each place.
func sparse(t *testing.T, name string, size int64, places ...int64) {
	t.Helper()
	f := create(t, name)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, p := range places {
		if _, err := f.WriteAt([]byte("abc"), p); err != nil {
			t.Fatal(err)
		}
	}
}

func create(t *testing.T, name string) *os.File {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	f, err2 := os.Create(name)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return f
}

// repackedImage is what umoci makes of two states of a tree, in a registry, as zstd.
func repackedImage(t *testing.T, d *ocitest.Registry) (ref, layout string) {
	t.Helper()
	image, bundle := filepath.Join(t.TempDir(), "layout"), filepath.Join(t.TempDir(), "bundle")
	tagged := image + ":v1"
	ocitest.Run(t, "umoci", "init", "--layout", image)
	ocitest.Run(t, "umoci", "new", "--image", tagged)
	ocitest.Run(t, "umoci", "unpack", "--image", tagged, bundle)
	root := filepath.Join(bundle, "rootfs")
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	write := func(name, content string) string {
		t.Helper()
		name = filepath.Join(root, name)
		f := create(t, name)
		_, err := f.WriteString(content)
		do(name, errors.Join(err, f.Close()))
		return name
	}
	for i := range 300 {
		write(fmt.Sprintf("lib/%02d/%03d", i%7, i), strings.Repeat(fmt.Sprint(i), i))
	}
	ping := write("bin/ping", "ping")
	do("mode", os.Chmod(ping, 0o755))
	do("capability", unix.Setxattr(ping, "security.capability", []byte(capability), 0))
	do("link", os.Link(ping, filepath.Join(root, "bin/ping6")))
	private := write("private", "acl")
	do("mode", os.Chmod(private, 0o640))
	do("acl", unix.Setxattr(private, "system.posix_acl_access", []byte(acl()), 0))
	su := write("bin/su", "su")
	do("owner", os.Chown(su, 0, 44))
	do("mode", unix.Chmod(su, 0o4750))
	do("directory", os.Mkdir(filepath.Join(root, "dev"), 0o755))
	do("device", unix.Mknod(filepath.Join(root, "dev/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	do("device", unix.Mknod(filepath.Join(root, "dev/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))))
	do("fifo", unix.Mkfifo(filepath.Join(root, "pipe"), 0o600))
	do("symlink", os.Symlink("lib", filepath.Join(root, "lib64")))
	write("latin\xe9/"+strings.Repeat("é", 120), "name")
	sparse(t, filepath.Join(root, "var/sparse"), 8<<20, 4<<20)
	old := []unix.Timespec{{Sec: -1_000_000_000, Nsec: 5}, {Sec: -1_000_000_000, Nsec: 5}}
	do("time", unix.UtimesNanoAt(unix.AT_FDCWD, su, old, 0))
	ocitest.Run(t, "umoci", "repack", "--refresh-bundle", "--image", tagged, bundle)

	do("remove", os.RemoveAll(filepath.Join(root, "lib/03")))
	do("remove", os.Remove(filepath.Join(root, "bin/ping")))
	do("rename", os.Rename(filepath.Join(root, "lib/02"), filepath.Join(root, "lib/07")))
	do("remove", os.Remove(filepath.Join(root, "lib64")))
	write("lib64/now", "a directory")
	do("remove", os.Remove(filepath.Join(root, "pipe")))
	do("symlink", os.Symlink("private", filepath.Join(root, "pipe")))
	do("mode", os.Chmod(filepath.Join(root, "lib/01"), 0o700))
	do("link", os.Link(private, filepath.Join(root, "lib/01/private")))
	ocitest.Run(t, "umoci", "repack", "--image", tagged, bundle)
	d.Push(t, "oci:"+tagged, "re/packed:1", "--dest-compress-format=zstd")
	return d.Host + "/re/packed:1", tagged
}

// buildahImage is of a Containerfile, as Docker's kind of manifest, in a registry.
func buildahImage(t *testing.T, d *ocitest.Registry) (ref, layout string) {
	t.Helper()
	context, store := t.TempDir(), t.TempDir()
	place(t, tool(t, "busybox"), filepath.Join(context, "busybox"))
	for name, content := range map[string]string{
		"Containerfile": `FROM scratch
COPY --chown=33:44 --chmod=0750 busybox /bin/busybox
COPY passwd /etc/passwd
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; chown 0:0 /bin/busybox; chmod 755 /bin/busybox; mkdir -p /srv/a/b /srv/gone; echo hi >/srv/a/b/f; ln /srv/a/b/f /srv/g; ln -s a/b /srv/s; mknod /srv/p p; mknod /srv/c c 1 3; echo x >/srv/gone/x; touch -d @1000 /srv/gone"]
RUN rm -r /srv/gone /srv/a/b/f; rm /srv/s; mkdir /srv/s; echo in >/srv/s/in; chmod 6711 /srv/g; chown 5:6 /srv/c; touch -d @4000000000 /srv/s/in
VOLUME /data
`,
		"passwd": "root:x:0:0::/:/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(context, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	buildah := func(args ...string) {
		t.Helper()
		ocitest.Run(t, "buildah", append([]string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	buildah("build", "--isolation", "chroot", "--layers", "--format", "docker", "-t", "localhost/nasty:1", context)
	buildah("push", "--creds", "me:secret", "--cert-dir", d.Certs, "--format", "v2s2", "localhost/nasty:1", "docker://"+d.Host+"/built/by:buildah")
	tagged := filepath.Join(t.TempDir(), "layout") + ":v1"
	d.Skopeo(t, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.Certs, "docker://"+d.Host+"/built/by:buildah", "oci:"+tagged)
	return d.Host + "/built/by:buildah", tagged
}
