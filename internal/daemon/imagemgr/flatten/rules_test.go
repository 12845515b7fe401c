package flatten_test

import (
	"archive/tar"
	"strings"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/errdefs"
)

// layers is what an image is made of, and with it the rules are shown.
type layers [][]ent

type rule struct {
	name   string
	layers layers
	want   outcome
}

var rules = []rule{
	{"no layers", nil, tree()},
	{"an empty layer", layers{{}}, tree()},
	{"one layer", layers{{dir("a"), file("a/f", "x"), sym("s", "a"), dev(tar.TypeFifo, "p", 0, 0)}},
		tree("a/", "a/f=x", "p p", "s->a")},

	// Paths.
	{"leading ./ and / and doubled slashes", layers{{dir("./a"), file("/a/f", "x"), file(".//a///g", "y"), file("///h", "z")}},
		tree("a/", "a/f=x", "a/g=y", "h=z")},
	{"the root's entry is skipped", layers{{dir(".").mode(0o700).own(1, 2).at(time.Unix(9, 0)).xattr("user.a", "b"), dir("/"), file("f", "x")}},
		tree("f=x")},
	{"the root is no file", layers{{file("a/..", "root"), sym("/", "x"), file("f", "x")}}, tree("f=x")},
	{".. within the image is cleaned", layers{{dir("a"), file("a/b/../f", "x"), file("/../g", "y")}},
		tree("a/", "a/f=x", "g=y")},
	{".. beyond it is refused", layers{{file("a/../../f", "x")}},
		refused(errdefs.ErrInvalidArgument, "layer L1", `"a/../../f"`, "leads out of the image")},
	{"missing parents", layers{{file("a/b/f", "x").own(5, 5).mode(0o600)}},
		tree("a/", "a/b/", "a/b/f=x mode=600 own=5:5")},
	{"a parent's entry comes later", layers{{file("a/f", "x"), dir("a").mode(0o711).own(1, 1)}},
		tree("a/ mode=711 own=1:1", "a/f=x")},
	{"a parent of a lower layer keeps its attributes", layers{{dir("a").mode(0o700).own(3, 4).at(time.Unix(5, 6)).xattr("user.a", "b")}, {file("a/f", "x")}},
		tree(`a/ mode=700 own=3:4 time=5.000000006 user.a="b"`, "a/f=x")},
	{"a parent that is a file", layers{{file("a", "x")}, {file("a/f", "y")}},
		refused(errdefs.ErrInvalidArgument, "layer L2", `"a/f"`, `"a" is no directory`)},
	{"names are bytes", layers{{file("\xff\xfe", "x"), file("a\nb", "y"), file("ä", "z"), file("aͤ", "zz")}},
		tree("a\nb=y", "aͤ=zz", "ä=z", "\xff\xfe=x")},
	{"long names", layers{{file(strings.Repeat("d/", 200)+strings.Repeat("n", 255), "x"),
		sym("s", strings.Repeat("t", 4095)), sym("g", strings.Repeat("u", 300)).with(func(h *tar.Header) { h.Format = tar.FormatGNU })}},
		tree(append(deep("d", 200), strings.Repeat("d/", 200)+strings.Repeat("n", 255)+"=x", "g->"+strings.Repeat("u", 300), "s->"+strings.Repeat("t", 4095))...)},

	// What takes whose place.
	{"the upper file counts", layers{{file("f", "old").mode(0o4755)}, {file("f", "new")}}, tree("f=new")},
	{"the later file counts", layers{{file("f", "old"), file("f", "new")}}, tree("f=new")},
	{"directories merge, with the attributes of the upper", layers{
		{dir("a").mode(0o700).xattr("user.low", "1"), file("a/f", "x")},
		{dir("a").own(1, 1).xattr("user.up", "2"), file("a/g", "y")}},
		tree(`a/ own=1:1 user.up="2"`, "a/f=x", "a/g=y")},
	{"two entries of one directory add up", layers{{dir("a").mode(0o700).xattr("user.a", "1").xattr("user.b", "2"), file("a/f", "x"), dir("a").xattr("user.b", "3")}},
		tree(`a/ user.a="1" user.b="3"`, "a/f=x")},
	{"a file over a directory", layers{{dir("a"), file("a/f", "x"), file("a/b/g", "y")}, {file("a", "z")}}, tree("a=z")},
	{"a directory over a file", layers{{file("a", "x")}, {dir("a"), file("a/f", "y")}}, tree("a/", "a/f=y")},
	{"a link over a directory", layers{{dir("a"), file("a/f", "x"), dir("b")}, {sym("a", "b")}}, tree("a->b", "b/")},
	{"a directory over a link", layers{{dir("b"), file("b/f", "x"), sym("a", "b")}, {dir("a"), file("a/g", "y")}},
		tree("a/", "a/g=y", "b/", "b/f=x")},
	{"a file over a link does not follow it", layers{{file("b", "x"), sym("a", "b")}, {file("a", "y")}}, tree("a=y", "b=x")},
	{"a device over a file, and back", layers{{file("a", "x"), dev(tar.TypeChar, "b", 1, 3)}, {dev(tar.TypeBlock, "a", 8, 1), file("b", "y")}},
		tree("a b8:1", "b=y")},

	// Whiteouts.
	{"of a file", layers{{file("f", "x"), file("g", "y")}, {file(".wh.f", "")}}, tree("g=y")},
	{"of a directory", layers{{file("a/b/f", "x"), file("a/g", "y")}, {file("a/.wh.b", "")}}, tree("a/", "a/g=y")},
	{"of nothing", layers{{file("f", "x")}, {file(".wh.g", "")}}, tree("f=x")},
	{"of nothing, in a directory that is missing", layers{{}, {file("a/b/.wh.g", "")}}, tree("a/", "a/b/")},
	{"of a link, not its target", layers{{dir("b"), sym("a", "b")}, {file(".wh.a", "")}}, tree("b/")},
	{"before an entry of the same layer", layers{{file("a/f", "x")}, {file(".wh.a", ""), dir("a"), file("a/g", "y")}}, tree("a/", "a/g=y")},
	{"after one", layers{{file("f", "x")}, {file("f", "y"), file(".wh.f", "")}}, tree()},
	{"is of any type and has content", layers{{file("a", "x"), file("b", "x"), file("c", "x")}, {dir(".wh.a"), sym(".wh.b", "x"), file(".wh.c", "content")}}, tree()},
	{"under a link", layers{{file("b/f", "x"), sym("a", "b")}, {file("a/.wh.f", "")}}, tree("a->b", "b/")},
	{"a lower layer may bring it back", layers{{file("f", "1")}, {file(".wh.f", "")}, {file("f", "3")}}, tree("f=3")},
	{"a whiteout's name as a directory", layers{{file("foo", "x"), file(".wh.foo/bar", "y")}}, tree(".wh.foo/", ".wh.foo/bar=y", "foo=x")},
	{"of no name", layers{{file("a/.wh.", "")}}, refused(errdefs.ErrInvalidArgument, "layer L1", `"a/.wh."`, "whiteout of no name")},
	{"of .", layers{{file(".wh..", "")}}, refused(errdefs.ErrInvalidArgument, `".wh.."`, "whiteout of no name")},
	{"of ..", layers{{file("a/.wh...", "")}}, refused(errdefs.ErrInvalidArgument, `"a/.wh..."`, "whiteout of no name")},

	// Opaque directories.
	{"hide what is below", layers{{file("a/f", "x"), file("a/b/g", "y"), file("c", "z")}, {file("a/.wh..wh..opq", "")}}, tree("a/", "c=z")},
	{"keep what is of their layer, before and after", layers{{file("a/f", "x"), file("a/g", "y")},
		{file("a/g", "new"), file("a/.wh..wh..opq", ""), file("a/h", "z")}}, tree("a/", "a/g=new", "a/h=z")},
	{"keep directories that have something of their layer", layers{{file("a/b/f", "x"), file("a/b/g", "y"), file("a/c/h", "z")},
		{file("a/b/g", "new"), file("a/.wh..wh..opq", "")}}, tree("a/", "a/b/", "a/b/g=new")},
	{"keep directories of their layer, without what is below", layers{{file("a/b/f", "x")}, {dir("a/b").mode(0o700), file("a/.wh..wh..opq", "")}}, tree("a/", "a/b/ mode=700")},
	{"all of the root", layers{{file("f", "x"), file("a/g", "y")}, {file("h", "z"), file(".wh..wh..opq", "")}}, tree("h=z")},
	{"make the directory", layers{{file("a/.wh..wh..opq", "")}}, tree("a/")},
	{"twice, and nested", layers{{file("a/b/f", "x"), file("a/g", "y")},
		{file("a/b/.wh..wh..opq", ""), file("a/b/n", "1"), file("a/.wh..wh..opq", ""), file("a/m", "2"), file("a/.wh..wh..opq", "")}},
		tree("a/", "a/b/", "a/b/n=1", "a/m=2")},
	{"keep a hard link of their layer to what they hide", layers{{file("a/f", "x")}, {hard("a/g", "a/f"), file("a/.wh..wh..opq", "")}}, tree("a/", "a/g=x")},
	{"under a link", layers{{file("b/f", "x"), sym("a", "b")}, {file("a/.wh..wh..opq", "")}}, tree("a->b", "b/")},
	{"replaced by a directory of the layer, leave the link's target alone", layers{{file("b/f", "x"), sym("a", "b")}, {dir("a"), file("a/.wh..wh..opq", "")}},
		tree("a/", "b/", "b/f=x")},

	// AUFS.
	{"AUFS's bookkeeping is gone", layers{{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), dir(".wh..wh.orph"), file("f", "y")}}, tree("f=y")},
	{"what it has may be linked to", layers{{file(".wh..wh.plnk/1.2", "x"), hard("f", ".wh..wh.plnk/1.2"), hard("g", ".wh..wh.plnk/1.2")}}, tree("f=x", "g=x &f")},
	{"but not from another layer", layers{{file(".wh..wh.plnk/1.2", "x")}, {hard("f", ".wh..wh.plnk/1.2")}},
		refused(errdefs.ErrInvalidArgument, "layer L2", `entry "f"`, ".wh..wh.plnk/1.2")},

	// Parents that are links.
	{"relative, absolute, through links, to beyond the root", layers{{dir("t/u"), sym("a", "t"), sym("b", "/t"), sym("c", "../../../t"), sym("t/d", "../b/u"), sym("e", "a/d")},
		{file("a/1", "1"), file("b/2", "2"), file("c/3", "3"), file("t/d/4", "4"), file("e/5", "5")}},
		tree("a->t", "b->/t", "c->../../../t", "e->a/d", "t/", "t/1=1", "t/2=2", "t/3=3", "t/d->../b/u", "t/u/", "t/u/4=4", "t/u/5=5")},
	{"to the root and to their own directory", layers{{sym("r", "/"), sym("d", "."), sym("u", "..")}, {file("r/1", "1"), file("d/2", "2"), file("u/3", "3"), file("r/d/u/r/4", "4")}},
		tree("1=1", "2=2", "3=3", "4=4", "d->.", "r->/", "u->..")},
	{"dangling: the target is made", layers{{sym("a", "x/y")}, {file("a/b/f", "1")}}, tree("a->x/y", "x/", "x/y/", "x/y/b/", "x/y/b/f=1")},
	{"whose target has .. after a link", layers{{dir("t/u"), sym("l", "t/u"), sym("a", "l/../n")}, {file("a/f", "1")}},
		tree("a->l/../n", "l->t/u", "t/", "t/n/", "t/n/f=1", "t/u/")},
	{"whose target has .. after what is missing", layers{{sym("a", "x/y/../z/./../../../w"), file("a/f", "1"), dir("t"), sym("t/b", "/../t//q/.."), file("t/b/g", "2")}},
		tree("a->x/y/../z/./../../../w", "t/", "t/b->/../t//q/..", "t/g=2", "w/", "w/f=1")},
	{"whose target has .. after what is missing no more", layers{{sym("a", "b/../n"), file("a/f", "1"), file("b", "2"), file("a/g", "3")}},
		refused(errdefs.ErrInvalidArgument, `entry "a/g"`, `"b" is no directory`)},
	{"as they are at that point", layers{{sym("a", "b"), file("a/1", "1"), dir("a"), file("a/2", "2"), file(".wh.a", ""), sym("a", "c"), file("a/3", "3")}},
		tree("a->c", "b/", "b/1=1", "c/", "c/3=3")},
	{"a loop", layers{{sym("a", "b"), sym("b", "a"), file("a/f", "x")}}, refused(errdefs.ErrInvalidArgument, `"a/f"`, "symbolic links")},
	{"a link to itself", layers{{sym("a", "a/b"), file("a/f", "x")}}, refused(errdefs.ErrInvalidArgument, `"a/f"`, "symbolic links")},
	{"to a file", layers{{file("b", "x"), sym("a", "b"), file("a/f", "x")}}, refused(errdefs.ErrInvalidArgument, `"a/f"`, `"b" is no directory`)},

	// Hard links.
	{"in one layer", layers{{file("a", "x"), hard("b", "a"), hard("d/c", "/b")}}, tree("a=x", "b=x &a", "d/", "d/c=x &a")},
	{"across layers", layers{{file("a", "x")}, {hard("b", "a")}, {hard("c", "./b")}}, tree("a=x", "b=x &a", "c=x &a")},
	{"outlive their target", layers{{file("a", "x")}, {hard("b", "a")}, {file(".wh.a", "")}}, tree("b=x")},
	{"keep what the target was", layers{{file("a", "x"), hard("b", "a"), file("a", "y")}, {file("a", "z")}}, tree("a=z", "b=x")},
	{"give the inode their attributes", layers{{file("a", "x").mode(0o600).xattr("user.a", "1").xattr("user.b", "2")}, {hard("b", "a").mode(0o4711).own(7, 8).at(time.Unix(9, 0)).xattr("user.b", "3").xattr("user.c", "4")}},
		tree(`a=x mode=4711 own=7:8 time=9.000000000 user.a="1" user.b="3" user.c="4"`, `b=x mode=4711 own=7:8 time=9.000000000 user.a="1" user.b="3" user.c="4" &a`)},
	{"to a symbolic link, which stays one", layers{{file("t", "x"), sym("a", "t"), hard("b", "a").mode(0o600).own(1, 1).xattr("user.x", "y")}}, tree("a->t own=1:1", "b->t own=1:1 &a", "t=x")},
	{"to a device", layers{{dev(tar.TypeChar, "a", 1, 3), hard("b", "a")}}, tree("a c1:3", "b c1:3 &a")},
	{"through links in the target's parents", layers{{file("t/f", "x"), sym("l", "t"), hard("b", "l/f")}}, tree("b=x", "l->t", "t/", "t/f=x &b")},
	{"over a directory", layers{{file("f", "x"), file("a/g", "y")}, {hard("a", "f")}}, tree("a=x", "f=x &a")},
	{"forward", layers{{hard("b", "a"), file("a", "x")}}, refused(errdefs.ErrInvalidArgument, "layer L1", `entry "b"`, `hard link to "a", which is not there`)},
	{"to what is gone", layers{{file("a", "x")}, {file(".wh.a", "")}, {hard("b", "a")}}, refused(errdefs.ErrInvalidArgument, "layer L3", `entry "b"`, `"a", which is not there`)},
	{"to itself", layers{{file("a", "x")}, {hard("a", "a")}}, refused(errdefs.ErrInvalidArgument, `entry "a"`, `"a", which is not there`)},
	{"to what it replaces", layers{{file("a/f", "x")}, {hard("a", "a/f")}}, refused(errdefs.ErrInvalidArgument, `entry "a"`, `"a/f", which is not there`)},
	{"to a directory", layers{{dir("a"), hard("b", "a")}}, refused(errdefs.ErrInvalidArgument, `entry "b"`, `the directory "a"`)},
	{"to the root", layers{{hard("b", "/")}}, refused(errdefs.ErrInvalidArgument, `entry "b"`, "the directory")},
	{"to beyond the root", layers{{hard("b", "../etc/passwd")}}, refused(errdefs.ErrInvalidArgument, `entry "b"`, `"../etc/passwd" leads out of the image`)},
	{"freed with the last name", layers{{file("a", "x"), hard("b", "a"), hard("c", "a")}, {file(".wh.a", ""), file(".wh.b", ""), file(".wh.c", "")}}, tree()},
	{"freed with a directory that has all names", layers{{file("d/a", "x"), hard("d/b", "d/a"), hard("d/e/c", "d/a"), hard("k", "d/a"), file("d/e/f", "y")}, {file(".wh.d", "")}}, tree("k=x")},

	// Attributes.
	{"all mode bits", layers{{file("f", "x").mode(0o7777), dir("d").mode(0o1777), file("g", "y").mode(0o100600), file("h", "").mode(0)}},
		tree("d/ mode=1777", "f=x mode=7777", "g=y mode=600", "h= mode=0")},
	{"symbolic links have the mode that they have", layers{{sym("s", "x").mode(0o4600)}}, tree("s->x")},
	{"targets of links are kept as they are", layers{{sym("a", "../../../etc/./shadow//"), sym("b", "/"), sym("c", "\xff")}}, tree("a->../../../etc/./shadow//", "b->/", "c->\xff")},
	{"devices", layers{{dev(tar.TypeChar, "a", 4095, 1048575), dev(tar.TypeBlock, "b", 0, 0), dev(tar.TypeChar, "c", 0, 0).own(1, 2)}, {file("d", "")}},
		tree("a c4095:1048575", "b b0:0", "c c0:0 own=1:2", "d=")},
	{"a character device 0:0 hides nothing but its name", layers{{file("a/f", "x"), file("b", "y")}, {dev(tar.TypeChar, "b", 0, 0)}}, tree("a/", "a/f=x", "b c0:0")},
	{"huge owners", layers{{file("f", "x").own(1<<32-2, 1<<32-2), file("g", "x").own(3_000_000, 1<<31)}}, tree("f=x own=4294967294:4294967294", "g=x own=3000000:2147483648")},
	{"times", layers{{
		file("a", "").at(time.Unix(1, 999_999_999)),
		file("b", "").at(time.Unix(-2, 500_000_000)),
		file("c", "").at(time.Unix(-1<<31, 0)), file("d", "").at(time.Unix(15032385535, 0)),
		file("e", "").at(time.Unix(-1<<31-1, 0)), file("f", "").at(time.Unix(15032385536, 0)), file("g", "").at(time.Unix(1<<40, 0))}},
		tree("a= time=1.999999999", "b= time=-2.500000000", "c= time=-2147483648.000000000", "d= time=15032385535.000000000", "e=", "f=", "g=")},
	{"extended attributes", layers{{file("f", "x").xattr("security.capability", "\x01\x00\x00\x02").xattr("user.a", "\x00\xff").xattr("security.selinux", "u:o:r:t\x00"),
		dir("d").xattr("system.posix_acl_default", acl).xattr("user.d", "1"), file("g", "y").mode(0o770).xattr("system.posix_acl_access", acl), sym("s", "f").xattr("security.selinux", "l")}},
		tree(`d/ system.posix_acl_default=`+aclQuoted+` user.d="1"`, `f=x security.capability="\x01\x00\x00\x02" security.selinux="u:o:r:t\x00" user.a="\x00\xff"`,
			`g=y mode=770 system.posix_acl_access=`+aclQuoted, `s->f security.selinux="l"`)},
	{"an ACL follows the mode, or is nothing but it", layers{{file("f", "x").mode(0o640).xattr("system.posix_acl_access", acl), file("g", "y").xattr("system.posix_acl_access", acl[:12]+acl[20:28]+acl[36:]),
		file("h", "z").xattr("system.posix_acl_access", acl[:4]), file("i", "").xattr("system.posix_acl_access", acl), hard("j", "i").mode(0o606)}},
		tree(`f=x mode=640 system.posix_acl_access=`+strings.NewReplacer(`\x01\x00\a\x00`, `\x01\x00\x06\x00`, `\x10\x00\a\x00`, `\x10\x00\x04\x00`).Replace(aclQuoted), "g=y", "h=z",
			`i= mode=606 system.posix_acl_access=`+aclOf606, `j= mode=606 system.posix_acl_access=`+aclOf606+" &i")},
	{"those that cannot be are dropped", layers{{file("f", "x").xattr("trusted.overlay.opaque", "y").xattr("com.apple.quarantine", "q").xattr("system.nfs4_acl", "n"),
		sym("s", "f").xattr("user.a", "b").xattr("system.posix_acl_access", acl), dev(tar.TypeFifo, "p", 0, 0).xattr("user.a", "b"), file("l", "").pax("LIBARCHIVE.xattr.user.a", "Yg")}},
		tree("f=x", "l=", "p p", "s->f")},

	// Forms of tars.
	{"an empty value of an attribute", layers{{paxed([]string{"SCHILY.xattr.user.a", ""}, raw('0', "f", "", nil, "x"))}}, tree(`f=x user.a=""`)},
	{"old tars: a directory is a name with a slash", layers{{raw(0, "d/", "", map[int]string{100: "0000755\x00"}, ""), raw(0, "d/f", "", nil, "x")}}, tree("d/", "d/f=x")},
	{"global headers say nothing", layers{{file("pax_global_header", "x"), mk(tar.TypeXGlobalHeader, "pax_global_header", 0).pax("comment", "c", "path", "evil"), file("f", "y")}},
		tree("f=y", "pax_global_header=x")},
	{"GNU's sparse files", layers{{gnuSparse}}, tree("sparse=" + sparseContent)},
	{"PAX's sparse files, 0.1", layers{{paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.name", "sparse", "GNU.sparse.size", "20",
		"GNU.sparse.numblocks", "2", "GNU.sparse.map", "4,2,10,3"}, raw('0', "x", "", nil, "abcde"))}}, tree("sparse=" + sparseContent)},
	{"PAX's sparse files, 1.0", layers{{paxed([]string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "sparse", "GNU.sparse.realsize", "20"},
		raw('0', "x", "", nil, "2\n4\n2\n10\n3\n"+strings.Repeat("\x00", 512-11)+"abcde"))}}, tree("sparse=" + sparseContent)},
	{"a sparse file of a hole", layers{{paxed([]string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.size", "1000000", "GNU.sparse.numblocks", "0", "GNU.sparse.map", ""},
		raw('0', "hole", "", nil, ""))}}, tree("hole=" + short(make([]byte, 1000000)))},
}

const sparseContent = "\x00\x00\x00\x00ab\x00\x00\x00\x00cde\x00\x00\x00\x00\x00\x00\x00"

// gnuSparse has "ab" at 4 and "cde" at 10 of 20 bytes.
var gnuSparse = raw('S', "sparse", "", map[int]string{
	257: "ustar  \x00", 345: "\x00", 386: "00000000004\x0000000000002\x00" + "00000000012\x0000000000003\x00", 483: "00000000024\x00"}, "abcde")

// acl is that of user::rwx, user:1:r--, group::r-x, mask::rwx, other::---.
const (
	acl = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x01\x00\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	aclQuoted = `"\x02\x00\x00\x00\x01\x00\a\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\a\x00\xff\xff\xff\xff \x00\x00\x00\xff\xff\xff\xff"`
)

// aclOf606 is acl after chmod 606.
var aclOf606 = strings.NewReplacer(`\x01\x00\a\x00`, `\x01\x00\x06\x00`, `\x10\x00\a\x00`, `\x10\x00\x00\x00`, ` \x00\x00\x00`, ` \x00\x06\x00`).Replace(aclQuoted)

// deep is n directories, each in the one before.
func deep(name string, n int) []string {
	var all []string
	p := ""
	for range n {
		p += name + "/"
		all = append(all, p)
	}
	return all
}

func TestRules(t *testing.T) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range r.layers {
				tars = append(tars, tarOf(t, l...))
			}
			got, _, err := try(t, flatten.Limits{}, layersOf(tars...)...)
			r.want.check(t, got, err)
		})
	}
}
