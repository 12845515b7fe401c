package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// sample is a tree with what a test knows about it.
type sample struct {
	root    *Inode
	content map[*Inode][]byte
}

// richTree has about everything that a filesystem can have.
func richTree(t testing.TB, m *image) *sample {
	s := &sample{content: map[*Inode][]byte{}}
	regular := func(content []byte) *Inode {
		n := file(m.data(t, content))
		s.content[n] = content
		return n
	}
	var all []Node
	add := func(name string, n *Inode) { all = append(all, Node{name, n}) }

	files := dir()
	for i, size := range []int{0, 1, 4095, 4096, 4097, 12288, 1 << 20, 1<<20 + 1, 5<<20 + 77} {
		n := regular(pattern(size, byte(i)))
		n.Mode = modeFile | uint32(i*0o631)&0o7777
		n.UID, n.GID = uint32(i*70000), 1<<32-2-uint32(i)
		files.Children = append(files.Children, Node{fmt.Sprintf("of %d bytes", size), n})
	}
	add("files", files)

	holes := dir()
	for i, blocks := range []string{"0", "0000", "x0", "0x", "0x0x0x0x0", "00xx00xx0y", strings.Repeat("x0", 700), strings.Repeat("xy0xy00", 500)} {
		var content []byte
		for _, b := range blocks {
			block := make([]byte, blockSize)
			if b != '0' {
				block[len(block)-1-i] = byte(b)
			}
			content = append(content, block...)
		}
		holes.Children = append(holes.Children,
			Node{fmt.Sprintf("%d whole", i), regular(content)},
			Node{fmt.Sprintf("%d part", i), regular(content[:len(content)-1000])})
	}
	add("holes", holes)

	links := dir()
	for _, n := range []int{1, 58, 59, 60, 61, 1000, 4095} {
		links.Children = append(links.Children, Node{fmt.Sprint(n), &Inode{Mode: modeLink | 0o777, Target: strings.Repeat("a/\xff", n)[:n], MTime: Time{5, 6}}})
	}
	add("links", links)

	special := dir()
	for i, d := range []Device{{0, 0}, {1, 3}, {255, 255}, {256, 0}, {0, 256}, {4095, 1<<20 - 1}} {
		special.Children = append(special.Children,
			Node{fmt.Sprint("char", i), &Inode{Mode: modeChar | 0o666, Rdev: d}},
			Node{fmt.Sprint("block", i), &Inode{Mode: modeBlock | 0o600, Rdev: d}})
	}
	special.Children = append(special.Children,
		Node{"fifo", &Inode{Mode: modeFifo | 0o620, UID: 3}},
		Node{"socket", &Inode{Mode: modeSocket | 0o777}})
	add("special", special)

	names := dir()
	for _, name := range []string{"-", "...", " ", "\n", "\xff\xfe\x01", strings.Repeat("n", 255), strings.Repeat("\xf0", 254), "ünï", "*", "a\\b"} {
		names.Children = append(names.Children, Node{name, regular([]byte(name))})
	}
	add("names", names)

	times := dir()
	for _, tm := range timesOf {
		n := dir()
		n.MTime = tm
		times.Children = append(times.Children, Node{fmt.Sprint(tm.Sec, tm.Nsec), n})
	}
	add("times", times)

	hard := regular([]byte("shared"))
	add("hard", dir(Node{"one", hard}, Node{"deeper", dir(Node{"two", hard}, Node{"three", hard})}))
	pipe := &Inode{Mode: modeFifo | 0o644}
	add("pipe", pipe)
	add("pipe too", pipe)

	attrs := dir()
	for i, xs := range attrsOf {
		name := fmt.Sprint(i)
		attrs.Children = append(attrs.Children,
			Node{name + " file", with(regular([]byte(name)), xs)},
			Node{name + " dir", with(dir(), xs)},
			Node{name + " link", with(&Inode{Mode: modeLink | 0o777, Target: "x"}, privileged(xs))},
			Node{name + " long link", with(&Inode{Mode: modeLink | 0o777, Target: strings.Repeat("x", 100)}, privileged(xs))},
			Node{name + " device", with(&Inode{Mode: modeChar | 0o600, Rdev: Device{5, 6}}, privileged(xs))})
	}
	add("attrs", attrs)
	add("acls", aclTree(regular))

	for _, n := range []int{0, 1, 10, 200, 1000} {
		d := dir()
		for i := range n {
			d.Children = append(d.Children, Node{fmt.Sprintf("%s%d", strings.Repeat("l", i%200), i), &Inode{Mode: modeFifo | 0o600}})
		}
		d.Children = append(d.Children, Node{"sub", dir()})
		add(fmt.Sprintf("dir of %d", n), d)
	}
	deep := dir()
	for range 300 {
		deep = dir(Node{"d", deep})
	}
	add("deep", deep)
	s.root = dir(all...)
	s.root.Mode = modeDir | 0o1751
	s.root.UID = 77
	return s
}

var timesOf = []Time{
	{minTime, 0}, {minTime, 999_999_999}, {-1, 999_999_999}, {-1, 0}, {0, 0}, {0, 1}, {1, 5},
	{1<<31 - 1, 999_999_999}, {1 << 31, 0}, {1<<32 - 1, 1}, {1 << 32, 2}, {3 << 31, 3}, {1 << 33, 4}, {5 << 31, 5},
	{doubtedFrom - 1, 999_999_999}, {doubtedFrom, 7}, {doubtedTo - 1, 8}, {doubtedTo, 9}, {maxTime, 999_999_999},
	{minTime - 1, 5}, {maxTime + 1, 5}, {-1 << 62, 1}, {1 << 62, 1},
}

// capability is CAP_NET_RAW, permitted and effective.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var attrsOf = [][]Xattr{
	{{"user.a", "b"}},
	{{"user.empty", ""}},
	{{"security.capability", capability}},
	{{"security.selinux", "system_u:object_r:bin_t:s0\x00"}},
	{{"security.selinux", "system_u:object_r:bin_t:s0\x00"}, {"security.capability", capability}, {"user.mime", "text/plain"}, {"trusted.overlay.opaque", "y"}},
	{{"user.big", strings.Repeat("big", 1300)}},
	{{"user.x", strings.Repeat("\x80\xff", 100)}, {"user.y", "1"}, {"user.yy", "22"}, {"trusted.z", strings.Repeat("z", 999)}, {"security.q", strings.Repeat("q", 1001)}},
	{{"user." + strings.Repeat("n", 250), "long name"}, {"user.\xff\x01", "name"}},
	{{"user.most", strings.Repeat("m", blockSize-attrHeader-attrEnd-attrEntry-4)}, {"user.in", strings.Repeat("i", 60)}},
	{{"user.\xe4\xf6", strings.Repeat("b", 200)}},
}

func privileged(xs []Xattr) (out []Xattr) {
	for _, x := range xs {
		if strings.HasPrefix(x.Name, "trusted.") || x.Name == "security.selinux" {
			out = append(out, x)
		}
	}
	return out
}

func with(n *Inode, xs []Xattr) *Inode {
	n.Xattrs = xs
	return n
}

func acl(entries ...[3]uint32) string {
	p := le.AppendUint32(nil, userACL)
	for _, e := range entries {
		p = le.AppendUint32(le.AppendUint16(le.AppendUint16(p, uint16(e[0])), uint16(e[1])), e[2])
	}
	return string(p)
}

const noID = 1<<32 - 1

func aclTree(regular func([]byte) *Inode) *Inode {
	access := acl([3]uint32{aclOwner, 6, noID}, [3]uint32{aclUser, 7, 1000}, [3]uint32{aclUser, 0, 70000}, [3]uint32{aclGroupObj, 4, noID},
		[3]uint32{aclGroup, 5, 4}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID})
	minimal := acl([3]uint32{aclOwner, 7, noID}, [3]uint32{aclGroupObj, 5, noID}, [3]uint32{aclOther, 5, noID})
	var many [][3]uint32
	many = append(many, [3]uint32{aclOwner, 7, noID}, [3]uint32{aclGroupObj, 5, noID})
	for i := range uint32(300) {
		many = append(many, [3]uint32{aclGroup, i % 8, i * 1000})
	}
	many = append(many, [3]uint32{aclMask, 5, noID}, [3]uint32{aclOther, 5, noID})
	return dir(
		Node{"file", with(regular([]byte("1")), []Xattr{{aclName, access}})},
		Node{"dir", with(dir(), []Xattr{{defaultACLName, minimal}, {aclName, access}, {"user.z", "z"}})},
		Node{"default", with(dir(), []Xattr{{defaultACLName, access}})},
		Node{"many", with(dir(), []Xattr{{aclName, acl(many...)}})},
		Node{"none", with(dir(), []Xattr{{aclName, minimal}, {defaultACLName, acl()}})},
	)
}

// compare compares what is mounted at at with the sample.
func (s *sample) compare(t *testing.T, at string) error {
	names := map[*Inode]int{}
	inos := map[*Inode]uint64{}
	var walk func(path string, n *Inode) error
	walk = func(path string, n *Inode) error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		short := strings.TrimPrefix(path, at)
		complain := func(what string, have, want any) { t.Errorf("%.80q: %s is %v, want %v", short, what, have, want) }
		if st.Mode != n.Mode {
			complain("mode", fmt.Sprintf("%o", st.Mode), fmt.Sprintf("%o", n.Mode))
		}
		if st.Uid != n.UID || st.Gid != n.GID {
			complain("owner", []uint32{st.Uid, st.Gid}, []uint32{n.UID, n.GID})
		}
		want := n.MTime
		sec, extra := want.encode() // what can be is checked by times_test.go
		want = Time{int64(int32(sec)) + int64(extra&3)<<32, extra >> 2}
		if have := (Time{st.Mtim.Sec, uint32(st.Mtim.Nsec)}); have != want {
			complain("mtime", have, want)
		}
		if names[n]++; names[n] == 1 {
			inos[n] = st.Ino
		} else if inos[n] != st.Ino {
			complain("inode", st.Ino, inos[n])
		}
		if n.Mode&modeType == modeChar || n.Mode&modeType == modeBlock {
			if have := (Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}); have != n.Rdev {
				complain("device", have, n.Rdev)
			}
		}
		if n.Mode&modeType == modeLink {
			if target, err := os.Readlink(path); err != nil || target != n.Target || st.Size != int64(len(n.Target)) {
				complain("target", target, n.Target)
			}
		}
		if n.Mode&modeType == modeFile {
			if st.Size != n.Data.size {
				complain("size", st.Size, n.Data.size)
			}
			if content, ok := s.content[n]; ok {
				have, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if !bytes.Equal(have, content) {
					complain("content", len(have), len(content))
				}
			}
		}
		if err := compareAttrs(path, n, complain); err != nil {
			return err
		}
		if n.Mode&modeType != modeDir {
			return nil
		}
		list, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		var have, wanted []string
		for _, e := range list {
			have = append(have, e.Name())
		}
		for _, c := range n.Children {
			wanted = append(wanted, c.Name)
		}
		slices.Sort(have)
		slices.Sort(wanted)
		if !slices.Equal(have, wanted) {
			complain("number of names", len(have), len(wanted))
		}
		for _, c := range n.Children {
			if err := walk(filepath.Join(path, c.Name), c.Inode); err != nil {
				return err
			}
		}
		if dirs := slices.IndexFunc(n.Children, func(c Node) bool { return c.Mode&modeType == modeDir }); dirs < 0 && st.Nlink != 2 {
			complain("links", st.Nlink, 2)
		}
		return nil
	}
	if err := walk(at, s.root); err != nil {
		return err
	}
	return nil
}

func compareAttrs(path string, n *Inode, complain func(string, any, any)) error {
	buf := make([]byte, 1<<16)
	k, err := unix.Llistxattr(path, buf)
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	have := map[string]string{}
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		k, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		have[name] = string(value[:k])
	}
	want := map[string]string{}
	for _, x := range n.Xattrs {
		if _, ok, _ := storedAttr(n, x); ok {
			want[x.Name] = x.Value
		}
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		complain("attributes", fmt.Sprintf("%.300q", have), fmt.Sprintf("%.300q", want))
	}
	return nil
}

func TestMountedReadOnly(t *testing.T) {
	m := begin(t, fixed(1<<30))
	s := richTree(t, m)
	m.done(t, s.root)
	mounted(t, m.path, unix.MS_RDONLY, func(dir string, _ *os.File) error { return s.compare(t, dir) })
	fsck(t, m.path)
}

func TestMountedAndUsed(t *testing.T) {
	m := begin(t, fixed(1<<30))
	s := richTree(t, m)
	m.done(t, s.root)
	// Files whose names, blocks and attributes are next to, or in, what was made.
	mounted(t, m.path, 0, func(dir string, _ *os.File) error {
		for _, d := range []string{"/dir of 0", "/dir of 200", "/dir of 1000", "/names", "/new"} {
			if d == "/new" {
				if err := os.Mkdir(dir+d, 0o755); err != nil {
					return err
				}
			}
			for i := range 3000 {
				if err := os.WriteFile(fmt.Sprintf("%s%s/new file %d", dir, d, i), pattern(i, 3), 0o644); err != nil {
					return err
				}
			}
		}
		for i := range 6 { // in those with more extents the kernel leaves gaps in the tree, of which e2fsck tells
			h, err := os.OpenFile(fmt.Sprintf("%s/holes/%d whole", dir, i), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = h.WriteAt(pattern(3*blockSize, 9), 2000)
			if err = errors.Join(err, h.Close()); err != nil {
				return err
			}
		}
		for i := range attrsOf {
			path := fmt.Sprintf("%s/attrs/%d file", dir, i)
			if err := unix.Setxattr(path, "user.more", pattern(100, 4), 0); err != nil && !errors.Is(err, unix.ENOSPC) {
				return err
			}
			if err := unix.Setxattr(path, "security.selinux", []byte("label"), 0); err != nil && !errors.Is(err, unix.ENOSPC) {
				return err
			}
		}
		return errors.Join(os.RemoveAll(dir+"/deep"), os.RemoveAll(dir+"/files"), os.RemoveAll(dir+"/attrs"), os.RemoveAll(dir+"/acls/many"))
	})
	fsck(t, m.path)
}

// fillUp writes to a mounted filesystem until it is full.
func fillUp(dir string) (bytes int64, err error) {
	f, err := os.Create(dir + "/filler")
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	p := pattern(1<<20, 5)
	for ; ; bytes += int64(len(p)) {
		if _, err := f.Write(p); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return bytes, nil
			}
			return bytes, err
		}
	}
}

func TestFilledByTheKernel(t *testing.T) {
	m := begin(t, fixed(300<<20))
	s := richTree(t, m)
	m.done(t, s.root)
	mounted(t, m.path, 0, func(dir string, _ *os.File) error {
		n, err := fillUp(dir)
		if err == nil && n < 200<<20 {
			t.Errorf("full after %d bytes", n)
		}
		return errors.Join(err, s.compareAfter(t, dir))
	})
	fsck(t, m.path)
}

// compareAfter is compare for a root that has a file more, and so another time.
func (s *sample) compareAfter(t *testing.T, dir string) error {
	for _, c := range s.root.Children {
		part := sample{c.Inode, s.content}
		if err := part.compare(t, filepath.Join(dir, c.Name)); err != nil {
			return err
		}
	}
	return nil
}

func TestGrownOffline(t *testing.T) {
	for _, to := range []string{"1100M", "5G", "70G"} {
		m := begin(t, fixed(1<<30))
		s := richTree(t, m)
		m.done(t, s.root)
		tool(t, "resize2fs", m.path, to)
		fsck(t, m.path)
		mounted(t, m.path, unix.MS_RDONLY, func(dir string, _ *os.File) error { return s.compare(t, dir) })
	}
}

func TestGrownByTheKernel(t *testing.T) {
	denied := false
	for _, ours := range []int64{0, 700 << 20, 3 << 30} {
		m := begin(t, fixed(500<<20))
		s := richTree(t, m)
		m.done(t, s.root)
		if ours > 0 {
			if err := errors.Join(m.f.Truncate(ours), Grow(m.f, m.f, ours)); err != nil {
				t.Fatal(err)
			}
			fsck(t, m.path)
		}
		const size = 11 << 30
		if err := m.f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		mounted(t, m.path, 0, func(dir string, _ *os.File) error {
			switch err := growMounted(dir, size); {
			case errors.Is(err, unix.EPERM):
				denied = true
				return nil
			case err != nil:
				return err
			}
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				return err
			}
			if n := int64(st.Bavail) * st.Bsize; n < size*9/10 {
				t.Errorf("%d bytes are free", n)
			}
			return s.compare(t, dir)
		})
		if denied {
			t.Skip("needs CAP_SYS_RESOURCE to have the kernel grow a filesystem")
		}
		fsck(t, m.path)
	}
}

func TestGrownAndFilled(t *testing.T) {
	m := begin(t, fixed(40<<20))
	m.done(t, dir(Node{"a", file(m.data(t, pattern(1<<20, 1)))}))
	const size = 700 << 20
	if err := errors.Join(m.f.Truncate(size), Grow(m.f, m.f, size)); err != nil {
		t.Fatal(err)
	}
	mounted(t, m.path, 0, func(dir string, _ *os.File) error {
		n, err := fillUp(dir)
		if err == nil && n < size*9/10 {
			t.Errorf("full after %d bytes", n)
		}
		return err
	})
	fsck(t, m.path)
	if err := Grow(m.f, failing{}, 2*size); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("grow what was mounted: %v", err)
	}
	tool(t, "e2fsck", "-fp", m.path) // which resize2fs insists on
	tool(t, "resize2fs", m.path, "2G")
	fsck(t, m.path)
}

func TestLargeSparseFile(t *testing.T) {
	m := begin(t, fixed(1<<30))
	const size = 40<<30 + 5
	ranges := []Range{{0, 10}, {100, 0}, {4000, 200}, {5 << 30, 1 << 20}, {40<<30 - 3, 8}}
	content := pattern(10+200+1<<20+8, 6)
	d, err := m.WriteSparse(context.Background(), bytes.NewReader(content), size, ranges)
	if err != nil {
		t.Fatal(err)
	}
	m.done(t, dir(Node{"sparse", file(d)}))
	mounted(t, m.path, unix.MS_RDONLY, func(dir string, _ *os.File) error {
		f, err := os.Open(dir + "/sparse")
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		at := 0
		for _, r := range ranges {
			have := make([]byte, r.Len)
			if _, err := io.ReadFull(io.NewSectionReader(f, r.Off, r.Len), have); err != nil {
				return err
			}
			if !bytes.Equal(have, content[at:at+int(r.Len)]) {
				t.Errorf("what is at %d differs", r.Off)
			}
			at += int(r.Len)
		}
		for _, off := range []int64{10, 3999, 4200, 5<<30 - 1, 5<<30 + 1<<20} {
			var p [1]byte
			if _, err := f.ReadAt(p[:], off); err != nil || p[0] != 0 {
				t.Errorf("at %d is %d, %v", off, p[0], err)
			}
		}
		st, err := f.Stat()
		if err == nil && st.Size() != size {
			t.Errorf("size %d", st.Size())
		}
		return err
	})
}
