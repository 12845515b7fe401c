package flatten_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/errdefs"
)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zst(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, append(opts, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

const (
	ociTar    = "application/vnd.oci.image.layer.v1.tar"
	dockerTar = "application/vnd.docker.image.rootfs.diff.tar"
)

// small are limits that a test can reach.
var small = flatten.Limits{Entries: 50, Bytes: 1 << 20, FileBytes: 64 << 10, MetaBytes: 16 << 10}

var (
	invalid   = errdefs.ErrInvalidArgument
	exhausted = errdefs.ErrExhausted
)

// hostile are images as nobody makes them who means well.
func hostile(t testing.TB) []hostileImage {
	good := tarOf(t, file("a", "x"))
	many := func(n int, f func(i int) ent) []ent {
		var all []ent
		for i := range n {
			all = append(all, f(i))
		}
		return all
	}
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x40
		return b
	}
	entries := func(name string, want outcome, e ...ent) hostileImage {
		return hostileImage{name: name, blob: tarOf(t, e...), want: want, limits: small}
	}
	blob := func(name, media string, b []byte, want outcome) hostileImage {
		return hostileImage{name: name, media: media, blob: b, want: want, limits: small}
	}
	return []hostileImage{
		// Paths that lead out.
		entries("a name with ..", refused(invalid, `entry "../f"`, "leads out"), file("../f", "x")),
		entries("only ..", refused(invalid, `entry ".."`, "leads out"), dir("..").with(func(h *tar.Header) { h.Name = ".." })),
		entries(".. in the middle", refused(invalid, `entry "a/b/../../../etc/passwd"`), file("a/b/../../../etc/passwd", "x")),
		entries("a whiteout beyond the root", refused(invalid, `entry "../.wh.f"`), file("../.wh.f", "")),
		entries("a link that leads out, and a file through it", tree("etc/", "etc/passwd=x", "l->../../../../etc"), sym("l", "../../../../etc"), file("l/passwd", "x")),
		entries("an absolute link, and a file through it", tree("etc/", "etc/passwd=x", "l->/etc"), sym("l", "/etc"), file("l/passwd", "x")),
		entries("a directory over its own link", tree("etc/", "etc/f=y", "l/", "l/f=x"), sym("l", "/etc"), file("l/f", "y"), dir("l"), file("l/f", "x")),
		entries("a hard link out", refused(invalid, `entry "f"`, "leads out"), hard("f", "../../etc/shadow")),
		entries("a hard link through a link out", refused(invalid, `entry "f"`, `hard link to "l/shadow", which is not there`), sym("l", "/etc"), hard("f", "l/shadow")),
		entries("a hard link to a link, then written", tree("f=x", "l->/etc/passwd"), sym("l", "/etc/passwd"), hard("f", "l"), file("f", "x")),
		entries("a whiteout of the parent", refused(invalid, `entry ".wh..."`), file(".wh...", "")),
		entries("a whiteout through a link out", tree("etc/", "l->/etc"), sym("l", "/etc"), file("l/.wh.passwd", "")),
		entries("dots that are names", tree(". =z", ".. /", ".. /f=y", "...=x"), file("...", "x"), file(".. /f", "y"), file(". ", "z")),
		entries("backslashes and drives are names", tree(`C:\x=y`, `a\..\b=x`), file(`a\..\b`, "x"), file(`C:\x`, "y")),

		// Names.
		entries("a NUL in a name", refused(invalid, "a path with a NUL"),
			paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "a\x00b", "GNU.sparse.size", "0", "GNU.sparse.numblocks", "0", "GNU.sparse.map", ""}, raw('0', "x", "", nil, ""))),
		entries("a NUL in a PAX path", refused(invalid, `entry after "before"`, "invalid tar header"), file("before", ""), paxed([]string{"path", "a\x00b"}, raw('0', "x", "", nil, ""))),
		entries("a name of 256 bytes", refused(invalid, "a name of 256 bytes"), file(strings.Repeat("n", 256), "")),
		entries("a directory's name of 256 bytes", refused(invalid, "a name of 256 bytes"), file(strings.Repeat("n", 256)+"/f", "")),
		entries("a path of 4096 bytes", refused(invalid, "a path of 4096 bytes"), file(strings.Repeat("d/", 2047)+"nn", "")),
		entries("a path of 100 kB", refused(invalid, "a path of 100000 bytes"), file(strings.Repeat("d", 100_000), "")),
		entries("a path that is long once a link is followed", refused(invalid, `"l/e`, "once links are followed"), sym("l", strings.Repeat("d/", 1500)), file("l/"+strings.Repeat("e/", 700)+"f", "")).limited(flatten.Limits{}),
		entries("a path that is long where links are followed one by one", refused(invalid, `entry "l/k/f"`, "once links are followed"),
			sym("l", strings.Repeat("d/", 1500)), sym("l/k", strings.Repeat("q/", 1000)), file("l/k/f", "")).limited(flatten.Limits{}),
		entries("a name that is long where a link leads", refused(invalid, `entry "l/f"`, "a name of 300 bytes"), sym("l", strings.Repeat("n", 300)), file("l/f", "")),
		entries("a file without a name", tree(), raw('0', "./", "", nil, "x"), raw('0', "", "", nil, "y")),
		entries("a link to nothing", refused(invalid, `entry "l"`, "symbolic link to nothing"), raw('2', "l", "", nil, "")),
		entries("a target of 4096 bytes", refused(invalid, `entry "l"`, "4096 bytes"), sym("l", strings.Repeat("t", 4096))),
		entries("a hard link to nothing", refused(invalid, `entry "l"`, "the directory"), raw('1', "l", "", nil, "")),

		// Links in circles, and much work.
		entries("a circle", refused(invalid, `entry "a/f"`, "more than 255 symbolic links"), sym("a", "b"), sym("b", "c"), sym("c", "a"), file("a/f", "")),
		entries("a link that grows", refused(invalid, `entry "a/f"`), sym("a", "a/a/a/a"), file("a/f", "")),
		entries("a link that grows much", refused(invalid, `entry "a/f"`), sym("a", strings.Repeat("a/", 2000)), file("a/f", "")),
		{name: "links to links", limits: flatten.Limits{}, blob: tarOf(t, append(many(300, func(i int) ent { return sym(fmt.Sprint("l", i), fmt.Sprint("l", i+1)) }), file("l0/f", "x"))...),
			want: refused(invalid, `entry "l0/f"`, "more than 255 symbolic links")},
		{name: "much to look up", limits: flatten.Limits{}, blob: tarOf(t, append([]ent{sym("a", strings.Repeat("d/", 2000))}, many(4000, func(i int) ent {
			return []ent{sym("s", "x"), file("a/f", "")}[i%2] // each s that goes may have been on the way
		})...)...), want: refused(exhausted, "too much work")},

		// Types, numbers.
		entries("an unknown type", refused(invalid, `entry "f"`, "type 'Z' is unknown"), raw('Z', "f", "", nil, "")),
		entries("a contiguous file", refused(invalid, `entry "f"`, "type '7' is unknown"), raw('7', "f", "", nil, "x")),
		entries("a device that the kernel cannot hold", refused(invalid, `entry "d"`, "4096:0 is out of range"), dev(tar.TypeChar, "d", 4096, 0)),
		entries("a minor that the kernel cannot hold", refused(invalid, `entry "d"`, "1:1048576"), dev(tar.TypeBlock, "d", 1, 1<<20)),
		entries("a negative device", refused(invalid, `entry "d"`, "-1:1 is out of range"), dev(tar.TypeBlock, "d", -1, 1).with(func(h *tar.Header) { h.Format = tar.FormatGNU })),
		entries("the owner -1", refused(invalid, `entry "f"`, "owner -1:0"), file("f", "").own(-1, 0).with(func(h *tar.Header) { h.Format = tar.FormatGNU })),
		entries("the owner 4294967295", refused(invalid, `entry "f"`, "owner 0:4294967295"), file("f", "").own(0, 1<<32-1)),
		entries("an owner of 2^40", refused(invalid, `entry "f"`, "out of range"), file("f", "").own(1<<40, 0)),
		entries("a time of 2^62", tree("f="), paxed([]string{"mtime", "4611686018427387904"}, raw('0', "f", "", nil, ""))),
		entries("a time that is no number", refused(invalid, "first entry"), paxed([]string{"mtime", "soon"}, raw('0', "f", "", nil, ""))),
		entries("a negative size", refused(invalid, `entry after "a"`), file("a", ""), raw('0', "f", "", map[int]string{124: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}, "")),
		entries("a negative size by PAX", refused(invalid, `entry after "a"`), file("a", ""), paxed([]string{"size", "-1"}, raw('0', "f", "", nil, ""))),
		entries("a directory with content", tree("d/", "f=y"), raw('5', "d", "", map[int]string{100: "0000755\x00", 124: "00000001000\x00"}, ""), file("f", "y")),

		// Attributes.
		entries("an attribute's value of 64 KiB and one", refused(invalid, `entry "f"`, "65537 bytes"), file("f", "").xattr("user.a", strings.Repeat("v", 64<<10+1))),
		entries("an attribute's name of 256 bytes", refused(invalid, `entry "f"`, "256 bytes"), file("f", "").xattr("user."+strings.Repeat("a", 251), "")),
		entries("an attribute without a name", refused(invalid, `entry "f"`, `"user." has no name`), file("f", "").xattr("user.", "x")),
		entries("129 attributes", refused(exhausted, `entry "f"`, "129 extended attributes"), many(1, func(int) ent {
			e := file("f", "")
			for i := range 129 {
				e = e.xattr(fmt.Sprint("user.", i), "v")
			}
			return e
		})...),
		entries("129 attributes by hard links", refused(exhausted, `entry "l128"`, "extended attributes"), append([]ent{file("f", "")}, many(129, func(i int) ent {
			return hard(fmt.Sprint("l", i), "f").xattr(fmt.Sprint("user.", i), "v")
		})...)...).limited(flatten.Limits{}),
		entries("attributes of more than 1 MiB", refused(invalid, `entry after "a"`, "more than 1 MiB"), file("a", ""),
			paxed([]string{"SCHILY.xattr.user.a", strings.Repeat("v", 1<<20)}, raw('0', "f", "", nil, ""))).limited(flatten.Limits{}),
		entries("a GNU name of more than 1 MiB", refused(invalid, `entry after "a"`, "more than 1 MiB"), file("a", ""), raw('L', "", "", nil, strings.Repeat("n", 1<<20+1)), file("f", "")).limited(flatten.Limits{}),
		entries("PAX records that lie about their length", refused(invalid, `entry after "a"`, "invalid tar header"), file("a", ""), raw('x', "", "", nil, "9999 path=f\n"), file("f", "")),
		entries("a malformed ACL", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", "\x02\x00\x00\x00\x01")),
		entries("an ACL of another version", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", "\x03\x00\x00\x00")),
		entries("an ACL with an unknown tag", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", "\x02\x00\x00\x00\x40\x00\x07\x00\xff\xff\xff\xff")),
		entries("an ACL out of order", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", acl[:4]+acl[36:]+acl[4:36])),
		entries("an ACL with two owners", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", acl[:12]+acl[4:])),
		entries("an ACL without others", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", acl[:36])),
		entries("an ACL of users without a mask", refused(invalid, `entry "f"`, "malformed"), file("f", "").xattr("system.posix_acl_access", acl[:28]+acl[36:])),
		entries("a default ACL of a file", refused(invalid, `entry "f"`, "no directory"), file("f", "").xattr("system.posix_acl_default", acl)),

		// Too much.
		entries("too many entries", refused(exhausted, `entry "50"`, "more than 50 entries"), many(51, func(i int) ent { return file(fmt.Sprint(i), "") })...),
		entries("too many directories that are only implied", refused(exhausted, `d/f"`, "more than 50 entries"), file(strings.Repeat("d/", 60)+"f", "")),
		entries("too many directories by a link", refused(exhausted, `entry "l/f"`, "more than 50 entries"), sym("l", strings.Repeat("d/", 60)), file("l/f", "")),
		entries("too many of one path", refused(exhausted, "more than 50 entries"), many(60, func(int) ent { return file("f", "") })...),
		entries("too many global headers", refused(exhausted, "more than 50 entries"), many(60, func(int) ent { return mk(tar.TypeXGlobalHeader, "g", 0).pax("a", "b") })...),
		entries("a file that is too large", refused(exhausted, `entry "f"`, "65537 bytes, more than 65536"), file("f", strings.Repeat("x", 64<<10+1))),
		entries("layers that are too large", refused(exhausted, "more than 1048576 bytes"), many(20, func(i int) ent { return file(fmt.Sprint(i), strings.Repeat("x", 60<<10)) })...),
		entries("a size that is not there", refused(exhausted, `entry "f"`, "8589934591 bytes"), raw('0', "f", "", map[int]string{124: "77777777777\x00"}, "")),
		entries("sparse files that are too large together", refused(exhausted, `entry "h16"`, "files are more than 1048576 bytes"), many(20, func(i int) ent { return hole(fmt.Sprint("h", i), 64<<10) })...),
		entries("a sparse file of 8 EiB", refused(exhausted, `entry "h"`, "9223372036854775807 bytes"), hole("h", 1<<63-1)),
		entries("too many bytes of names", refused(exhausted, "names and attributes"), many(49, func(i int) ent { return file(fmt.Sprintf("%0200d/%0200d", i, i), "") })...),
		entries("too many bytes of targets", refused(exhausted, "names and attributes"), many(10, func(i int) ent { return sym(fmt.Sprint(i), fmt.Sprintf("%04000d", i)) })...),
		entries("too many bytes of attributes", refused(exhausted, "names and attributes"), many(10, func(i int) ent { return file(fmt.Sprint(i), "").xattr("user.a", fmt.Sprintf("%04000d", i)) })...),
		blob("a bomb of gzip", ociTar+"+gzip", gz(make([]byte, 4<<20)), refused(exhausted, "L1", "more than 1048576 bytes")),
		blob("a bomb of zstd", ociTar+"+zstd", zst(t, append(good, make([]byte, 8<<20)...)), refused(exhausted, "more than 1048576 bytes")),
		blob("a bomb in one file", ociTar+"+gzip", gz(tarOf(t, file("bomb", strings.Repeat("\x00", 4<<20)))), refused(exhausted, `entry "bomb"`, "files are more than 1048576")).limited(flatten.Limits{Bytes: 1 << 20}),
		{name: "zeros without end after the tar", blob: append(good, make([]byte, 17<<20)...), want: refused(invalid, "L1", "more than 16777216 bytes follow")},

		// Sparse maps.
		entries("a sparse map beyond the file", refused(invalid, "invalid tar header"), sparse("4", "2", "3,5", "xxxxx")),
		entries("a sparse map that overlaps", refused(invalid, "invalid tar header"), sparse("20", "2", "0,5,3,5", "xxxxxxxxxx")),
		entries("a sparse map with too few numbers", refused(invalid, "invalid tar header"), sparse("20", "2", "0,5", "xxxxx")),
		entries("a sparse file with less than its map", refused(invalid, `entry "s"`, "non-existent data"), sparse("20", "1", "0,10", "xxxxx")),
		entries("a sparse file with more than its map", refused(invalid, `entry "s"`, "unreferenced data"), sparse("20", "1", "0,5", "xxxxxxxxxx")),
		entries("a sparse map that is no number", refused(invalid, "invalid tar header"), sparse("20", "1", "0,x", "xxxxx")),
		entries("a sparse directory", refused(invalid, "invalid tar header"), paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", "10", "GNU.sparse.numblocks", "0", "GNU.sparse.map", ""}, raw('5', "d", "", nil, ""))),

		// Broken tars.
		blob("no tar", ociTar, []byte(strings.Repeat("no tar ", 200)), refused(invalid, "L1", "first entry", "invalid tar header")),
		blob("less than a block", ociTar, []byte("short"), refused(invalid, "L1", "unexpected EOF")),
		blob("nothing", ociTar, nil, tree()),
		blob("no end blocks", ociTar, openTar(t, file("a", "x")), tree("a=x")),
		blob("one end block", ociTar, append(openTar(t, file("a", "x")), make([]byte, 512)...), tree("a=x")),
		blob("one end block and more", ociTar, append(append(openTar(t, file("a", "x")), make([]byte, 512)...), openTar(t, file("b", "y"))...), refused(invalid, `after "a"`)),
		blob("a second tar after the end", ociTar, append(tarOf(t, file("a", "x")), tarOf(t, file("b", "y"))...), tree("a=x")),
		blob("garbage after the end", ociTar, append(tarOf(t, file("a", "x")), "garbage"...), tree("a=x")),
		blob("ends within a header", ociTar, openTar(t, file("a", "x"), file("b", "y"))[:1024+100], refused(invalid, `entry after "a"`, "unexpected EOF")),
		blob("ends within a file", ociTar, openTar(t, file("a", strings.Repeat("x", 5000)))[:512+1000], refused(invalid, `entry "a"`, "unexpected EOF")),
		blob("ends within a file that is skipped", ociTar, openTar(t, file(".wh.a", strings.Repeat("x", 5000)))[:512+1000], refused(invalid, `entry after ".wh.a"`, "unexpected EOF")),
		blob("ends within a PAX header", ociTar, paxed([]string{"path", strings.Repeat("p", 600)}, raw('0', "f", "", nil, "")).raw[:700], refused(invalid, "unexpected EOF")),
		blob("a bad checksum", ociTar, flip(tarOf(t, file("a", "x"), file("b", "y")), 1024+3), refused(invalid, `entry after "a"`, "invalid tar header")),

		// Compression.
		blob("gzip that is none", ociTar+"+gzip", good, refused(invalid, "L1", "+gzip", "not compressed")),
		blob("plain that is gzip", ociTar, gz(good), refused(invalid, "the content is gzip")),
		blob("gzip that is zstd", dockerTar+".gzip", zst(t, good), refused(invalid, "the content is zstd")),
		blob("empty gzip", ociTar+"+gzip", nil, refused(invalid, "not compressed")),
		blob("an unknown media type", "application/x-tar", good, refused(invalid, "application/x-tar", "none of a layer's")),
		blob("an encrypted layer", ociTar+"+gzip+encrypted", gz(good), refused(invalid, "+encrypted")),
		blob("gzip that ends early", ociTar+"+gzip", gz(good)[:len(gz(good))-9], refused(invalid, "L1", "decompress")),
		blob("gzip without its checksum", ociTar+"+gzip", gz(good)[:len(gz(good))-8], refused(invalid, "after the end", "decompress")),
		blob("gzip with a bad checksum", ociTar+"+gzip", flip(gz(good), len(gz(good))-7), refused(invalid, "decompress", "checksum")),
		blob("gzip with a broken header", ociTar+"+gzip", []byte("\x1f\x8b\x08\xff\xff"), refused(invalid, "decompress")),
		blob("gzip with garbage after it", ociTar+"+gzip", append(gz(good), "garbage garbage"...), refused(invalid, "decompress")),
		blob("zstd that ends early", ociTar+"+zstd", zst(t, good)[:30], refused(invalid, "decompress")),
		blob("zstd with a bad checksum", ociTar+"+zstd", flip(zst(t, good), len(zst(t, good))-1), refused(invalid, "decompress")),
		blob("zstd with garbage after it", ociTar+"+zstd", append(zst(t, good), "garbage"...), refused(invalid, "decompress")),
		// A frame header that asks for a window of 2 GiB, and an empty raw block.
		blob("zstd with a huge window", ociTar+"+zstd", []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"), refused(invalid, "decompress", "window")),
		{name: "another content than said", blob: good, diffID: "sha256:" + strings.Repeat("0", 64), want: refused(invalid, "L1", digest(good), "sha256:000")},
		{name: "another kind of digest", blob: good, diffID: "md5:" + strings.Repeat("0", 32), want: refused(invalid, "L1", "md5:000")},
		{name: "more behind the end than said", blob: append(good, 0), diffID: digest(good), want: refused(invalid, "L1", digest(good))},
	}
}

type hostileImage struct {
	name   string
	media  string
	blob   []byte
	diffID string
	limits flatten.Limits
	want   outcome
}

func (h hostileImage) limited(l flatten.Limits) hostileImage {
	h.limits = l
	return h
}

// sparse is a sparse file by PAX, version 0.1.
func sparse(size, n, m, body string) ent {
	return paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", size, "GNU.sparse.numblocks", n, "GNU.sparse.map", m}, raw('0', "s", "", nil, body))
}

// hole is a sparse file without data.
func hole(name string, size int64) ent {
	return paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks", "0", "GNU.sparse.map", ""}, raw('0', name, "", nil, ""))
}

func TestHostile(t *testing.T) {
	all := hostile(t)
	if len(all) < 60 {
		t.Errorf("only %d hostile images", len(all))
	}
	for _, h := range all {
		t.Run(h.name, func(t *testing.T) {
			l := flatten.Layer{Name: "L1", MediaType: h.media, DiffID: h.diffID, Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(h.blob)), nil
			}}
			got, _, err := try(t, h.limits, l)
			h.want.check(t, got, err)
			if err != nil && (!strings.Contains(err.Error(), "L1") || len(err.Error()) > 1000) {
				t.Errorf("%v: does not name the layer, or is too long", err)
			}
		})
	}
}

func TestTooManyLayers(t *testing.T) {
	var tars [][]byte
	for range 1001 {
		tars = append(tars, nil)
	}
	_, _, err := try(t, flatten.Limits{}, layersOf(tars...)...)
	refused(exhausted, "1001 layers").check(t, "", err)
}

// TestLimitsAreOfAllLayers: what no layer exceeds, all of them may.
func TestLimitsAreOfAllLayers(t *testing.T) {
	var tars [][]byte
	for i := range 8 {
		var all []ent
		for j := range 10 {
			all = append(all, file(fmt.Sprint(i, j), ""))
		}
		tars = append(tars, tarOf(t, all...))
	}
	_, _, err := try(t, small, layersOf(tars...)...)
	refused(exhausted, "more than 50 entries").check(t, "", err)
}

// TestTooManyNames: an inode can have only so many.
func TestTooManyNames(t *testing.T) {
	var b bytes.Buffer
	b.Write(openTar(t, file("f", "x")))
	for i := range 65000 {
		b.Write(raw('1', fmt.Sprint("l", i), "f", nil, "").raw)
	}
	_, _, err := try(t, flatten.Limits{}, layersOf(b.Bytes())...)
	refused(invalid, `entry "l64999"`, `hard link to "f"`, "65000 names").check(t, "", err)
}
