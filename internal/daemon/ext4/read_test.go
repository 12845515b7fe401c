package ext4

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// facts are what is known of a name, as text.
type facts map[string]string

func fact(mode, uid, gid uint32, rdev Device, mtime Time, target string, xattrs map[string]string, content []byte) string {
	if mode&modeType != modeChar && mode&modeType != modeBlock {
		rdev = Device{}
	}
	return fmt.Sprintf("%o %d:%d dev %v at %d.%09d -> %q attrs %.300q content %d %x", mode, uid, gid, rdev, mtime.Sec, mtime.Nsec,
		target, fmt.Sprint(xattrs), len(content), sha256.Sum256(content))
}

func openDisk(t testing.TB, path string) (*FS, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Open(f, fi.Size())
}

// read returns what is in a filesystem, and which names are links to which.
func read(t testing.TB, path string) (all facts, links map[string]string) {
	t.Helper()
	f, err := openDisk(t, path)
	if err != nil {
		t.Fatal(err)
	}
	all, links = facts{}, map[string]string{}
	last := ""
	err = f.Walk(t.Context(), func(e *Entry) error {
		if parent := filepath.Dir(e.Path); e.Path != "" && parent != "." && all[parent] == "" {
			t.Errorf("%q comes before its parent", e.Path)
		}
		if e.Path == last && e.Path != "" {
			t.Errorf("%q comes twice", e.Path)
		}
		last = e.Path
		var content bytes.Buffer
		if e.Mode&modeType == modeFile {
			if err := e.WriteContent(t.Context(), &content); err != nil {
				return err
			}
			if int64(content.Len()) != e.Size {
				t.Errorf("%q has %d bytes and says %d", e.Path, content.Len(), e.Size)
			}
		}
		if e.Link != "" {
			if all[e.Link] == "" {
				t.Errorf("%q is a link to %q, which did not come yet", e.Path, e.Link)
			}
			links[e.Path] = e.Link
		}
		xs := map[string]string{}
		for _, x := range e.Xattrs {
			xs[x.Name] = x.Value
		}
		all[e.Path] = fact(e.Mode, e.UID, e.GID, e.Rdev, e.MTime, e.Target, xs, content.Bytes())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, links
}

func (all facts) compare(t testing.TB, want facts) {
	t.Helper()
	shown := 0
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if all[p] != want[p] && shown < 10 {
			t.Errorf("%.100q is\n%.600s, want\n%.600s", p, all[p], want[p])
			shown++
		}
	}
	for p := range all {
		if _, ok := want[p]; !ok {
			t.Errorf("%.100q is not there", p)
		}
	}
}

// hostTree returns what is in a directory, and which names are links to which.
func hostTree(t testing.TB, dir string) (all facts, links map[string]string, err error) {
	all, links = facts{}, map[string]string{}
	var paths []string
	err = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	})
	// Ordered by component, as Walk has them.
	slices.SortFunc(paths, func(a, b string) int {
		return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
	})
	first := map[uint64]string{}
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return nil, nil, err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		var target string
		var content []byte
		switch st.Mode & modeType {
		case modeLink:
			target, err = os.Readlink(p)
		case modeFile:
			content, err = os.ReadFile(p)
		}
		xs, xerr := hostAttrs(p)
		if err := cmp.Or(err, xerr); err != nil {
			return nil, nil, err
		}
		if st.Nlink > 1 && st.Mode&modeType != modeDir {
			if f, ok := first[st.Ino]; ok {
				links[rel] = f
			} else {
				first[st.Ino] = rel
			}
		}
		all[rel] = fact(st.Mode, st.Uid, st.Gid, Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, Time{st.Mtim.Sec, uint32(st.Mtim.Nsec)}, target, xs, content)
	}
	return all, links, err
}

func hostAttrs(p string) (map[string]string, error) {
	xs := map[string]string{}
	buf := make([]byte, 1<<16)
	k, err := unix.Llistxattr(p, buf)
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(string(buf[:k]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		k, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, p, err)
		}
		xs[name] = string(value[:k])
	}
	return xs, nil
}

func TestReadOwn(t *testing.T) {
	m := begin(t, fixed(1<<30))
	s := richTree(t, m)
	m.done(t, s.root)
	want, names := facts{}, map[*Inode][]string{}
	var walk func(path string, n *Inode)
	walk = func(path string, n *Inode) {
		xs := map[string]string{}
		for _, x := range n.Xattrs {
			if _, ok, _ := storedAttr(n, x); ok {
				xs[x.Name] = x.Value
			}
		}
		mtime, _ := decode(n.MTime.encode())
		want[path] = fact(n.Mode, n.UID, n.GID, n.Rdev, mtime, n.Target, xs, s.content[n])
		if n.Mode&modeType != modeDir {
			names[n] = append(names[n], path)
		}
		for _, c := range n.Children {
			walk(strings.TrimPrefix(path+"/"+c.Name, "/"), c.Inode)
		}
	}
	walk("", s.root)
	have, links := read(t, m.path)
	have.compare(t, want)
	wantLinks := map[string]string{}
	for _, ps := range names {
		slices.SortFunc(ps, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
		for _, p := range ps[1:] {
			wantLinks[p] = ps[0]
		}
	}
	if !maps.Equal(links, wantLinks) {
		t.Errorf("links are %q, want %q", links, wantLinks)
	}
	if len(wantLinks) != 3 {
		t.Errorf("the sample has %d links", len(wantLinks))
	}
}

// Ranges are the stored parts of what was written, and no more.
func TestReadRanges(t *testing.T) {
	m := begin(t, fixed(64<<20))
	block := bytes.Repeat([]byte("x"), blockSize)
	d, err := m.WriteSparse(t.Context(), bytes.NewReader(bytes.Repeat(block, 3)), 1<<40+5, []Range{{0, blockSize}, {1 << 30, 2 * blockSize}})
	if err != nil {
		t.Fatal(err)
	}
	end, err := m.WriteSparse(t.Context(), strings.NewReader("end"), 5*blockSize+3, []Range{{5 * blockSize, 3}})
	if err != nil {
		t.Fatal(err)
	}
	m.done(t, dir(Node{"big", file(d)}, Node{"end", file(end)}, Node{"none", file(Data{})}))
	f, err := openDisk(t, m.path)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]Range{}
	err = f.Walk(t.Context(), func(e *Entry) error {
		if e.Mode&modeType != modeFile {
			return nil
		}
		return e.Ranges(func(r Range) error {
			got[e.Path] = append(got[e.Path], r)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]Range{"big": {{0, blockSize}, {1 << 30, 2 * blockSize}}, "end": {{5 * blockSize, 3}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// variants are filesystems as mke2fs makes them.
var variants = map[string][]string{
	"default":                {"-t", "ext4"},
	"1k blocks":              {"-t", "ext4", "-b", "1024"},
	"2k blocks":              {"-t", "ext4", "-b", "2048"},
	"32 bits":                {"-t", "ext4", "-O", "^64bit"},
	"1k blocks of 32 bits":   {"-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"},
	"no extents":             {"-t", "ext4", "-O", "^extents,^64bit"},
	"no checksums":           {"-t", "ext4", "-O", "^metadata_csum"},
	"older checksums":        {"-t", "ext4", "-O", "^metadata_csum,uninit_bg"},
	"older, 32 bits":         {"-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"},
	"inline data":            {"-t", "ext4", "-O", "inline_data"},
	"seed":                   {"-t", "ext4", "-O", "metadata_csum_seed"},
	"groups with their own":  {"-t", "ext4", "-O", "meta_bg,^resize_inode"},
	"1k and their own":       {"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"},
	"no journal":             {"-t", "ext4", "-O", "^has_journal"},
	"ext3":                   {"-t", "ext3"},
	"ext2":                   {"-t", "ext2"},
	"ext2, 1k blocks":        {"-t", "ext2", "-b", "1024", "-O", "^filetype"},
	"ext2, small inodes":     {"-t", "ext2", "-I", "128"},
	"large inodes":           {"-t", "ext4", "-I", "1024"},
	"large directories":      {"-t", "ext4", "-O", "large_dir"},
	"attributes of any size": {"-t", "ext4", "-O", "ea_inode"},
	"unused tables":          {"-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1"},
}

// fillHost makes a tree by the kernel of what its filesystem can have.
func fillHost(dir string) error {
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	p := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, content []byte) { do(os.WriteFile(p(name), content, 0o640)) }
	for i, n := range []int{0, 1, 50, 60, 61, 100, 159, 160, 161, 4096, 70000, 3 << 20} {
		write(fmt.Sprint("file", i), pattern(n, byte(i)))
	}
	do(os.MkdirAll(p("a/b/c/d"), 0o750))
	write("a/b/c/d/deep", []byte("deep"))
	do(os.Mkdir(p("many"), 0o755))
	for i := range 600 {
		write(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%120), i), nil)
	}
	for i := range 500 { // holes in the directory's blocks
		if i%3 != 0 {
			do(os.Remove(p(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%120), i))))
		}
	}
	do(os.Mkdir(p("few"), 0o1777))
	for i := range 4 {
		write(fmt.Sprint("few/", i), []byte("few"))
	}
	do(os.Link(p("file4"), p("a/link")))
	do(os.Link(p("file4"), p("zlink")))
	for i, n := range []int{1, 59, 60, 61, 100, 160, 1000} {
		do(os.Symlink(strings.Repeat("t", n), p(fmt.Sprint("symlink", i))))
	}
	do(unix.Mkfifo(p("fifo"), 0o600))
	do(unix.Mknod(p("socket"), unix.S_IFSOCK|0o700, 0))
	do(unix.Mknod(p("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))))
	do(unix.Mknod(p("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	do(os.Lchown(p("file3"), 70000, 3_000_000_000))
	do(os.Chmod(p("file5"), 0o6755|os.ModeSetuid))
	do(os.Chmod(p("file6"), 0o755|os.ModeSetuid|os.ModeSetgid))
	// Sparse, with more parts than an inode has room for.
	f, err := os.Create(p("sparse"))
	do(err)
	for i := range 40 {
		_, err := f.WriteAt(pattern(4096, byte(i)), int64(i)*7*4096)
		do(err)
	}
	_, err = f.WriteAt([]byte("far"), 9<<20)
	do(errors.Join(err, f.Truncate(10<<20)))
	if err := unix.Fallocate(int(f.Fd()), 0, 1<<20, 1<<20); !errors.Is(err, unix.EOPNOTSUPP) {
		do(err)
	}
	do(f.Close())
	f, err = os.Create(p("allocated"))
	do(err)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20); !errors.Is(err, unix.EOPNOTSUPP) {
		do(err)
	}
	_, err = f.Write([]byte("short"))
	do(errors.Join(err, f.Close()))
	for _, x := range []struct{ name, value string }{
		{"user.small", "v"}, {"user.empty", ""}, {"user.large", strings.Repeat("l", 600)}, {"security.capability", capability}, {"trusted.t", "\x00\xff"},
	} {
		for _, name := range []string{"file2", "file9", "a"} {
			do(unix.Setxattr(p(name), x.name, []byte(x.value), 0))
		}
	}
	access := acl([3]uint32{aclOwner, 6, noID}, [3]uint32{aclUser, 7, 1000}, [3]uint32{aclGroupObj, 4, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID})
	do(unix.Setxattr(p("file7"), aclName, []byte(access), 0))
	do(unix.Setxattr(p("few"), defaultACLName, []byte(access), 0))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, p("file8"), []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 1 << 30, Nsec: 123_456_789}}, 0))
	do(unix.UtimesNanoAt(unix.AT_FDCWD, p("symlink1"), []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: -100, Nsec: 0}}, unix.AT_SYMLINK_NOFOLLOW))
	return errors.Join(errs...)
}

// The kernel writes a tree, and says what it has written.
func TestReadKernels(t *testing.T) {
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			tool(t, "mke2fs", append(append([]string{"-q", "-F"}, args...), path, "300M")...)
			var want facts
			var links map[string]string
			mounted(t, path, 0, func(dir string, _ *os.File) error {
				err := fillHost(dir)
				if err == nil {
					want, links, err = hostTree(t, dir)
				}
				return err
			})
			have, haveLinks := read(t, path)
			have.compare(t, want)
			if !maps.Equal(links, haveLinks) || len(links) != 2 {
				t.Errorf("links are %q, want %q", haveLinks, links)
			}
		})
	}
}

// mke2fs writes a tree in its own way.
func TestReadMke2fs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make device nodes")
	}
	src := t.TempDir()
	if err := fillHost(src); err != nil {
		t.Skip("needs a filesystem that can have all that ext4 can: ", err)
	}
	want, links, err := hostTree(t, src)
	if err != nil {
		t.Fatal(err)
	}
	// Some of its versions drop fractions of seconds.
	whole := func(all facts) facts {
		delete(all, "lost+found")
		delete(all, "") // whose time is its own
		for p, s := range all {
			head, rest, _ := strings.Cut(s, ".")
			all[p] = head + rest[9:]
		}
		return all
	}
	want = whole(want)
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			args := append(append([]string{"-q", "-F", "-d", src}, args...), path, "300M")
			if out, err := exec.Command("mke2fs", args...).CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
				t.Skip(err)
			} else if err != nil {
				t.Skipf("mke2fs does not manage: %s", out)
			}
			have, haveLinks := read(t, path)
			want := maps.Clone(want)
			if strings.Contains(tool(t, "debugfs", "-R", "stat sparse", path), "Size: 9438208") {
				delete(want, "sparse") // mke2fs 1.47.0 drops a hole at the end where content can be in inodes
				delete(have, "sparse")
			}
			whole(have).compare(t, want)
			if !maps.Equal(links, haveLinks) {
				t.Errorf("links are %q, want %q", haveLinks, links)
			}
		})
	}
}

func TestReadRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, path string)
		class  error
		says   string
	}{
		"nothing there": {func(t *testing.T, path string) { poke(t, path, superAt, make([]byte, 1024)) }, errdefs.ErrInvalidArgument, "no ext4"},
		"cut short":     {func(t *testing.T, path string) { _ = os.Truncate(path, 20<<20) }, errdefs.ErrInvalidArgument, "blocks"},
		"in use": {func(t *testing.T, path string) {
			super(0x5c, func(v uint32) uint32 { return v &^ hasJournal })(t, path)
			super(0x60, func(v uint32) uint32 { return v | hasRecover })(t, path)
		}, errdefs.ErrFailedPrecondition, "in use"},
		"with errors":  {super(0x38, func(v uint32) uint32 { return v | 2<<16 }), errdefs.ErrFailedPrecondition, "errors"},
		"encrypted":    {super(0x60, func(v uint32) uint32 { return v | 0x10000 }), errdefs.ErrUnsupported, "encrypt"},
		"unknown":      {super(0x60, func(v uint32) uint32 { return v | 0x40000000 }), errdefs.ErrUnsupported, "0x40000000"},
		"clusters":     {super(0x64, func(v uint32) uint32 { return v | roBigAlloc }), errdefs.ErrUnsupported, "bigalloc"},
		"large blocks": {super(0x18, func(uint32) uint32 { return 30 }), errdefs.ErrUnsupported, "blocks"},
		"many inodes":  {super(0x00, func(uint32) uint32 { return 1 << 31 }), errdefs.ErrInvalidArgument, "inodes"},
		"damaged":      {func(t *testing.T, path string) { poke(t, path, superAt+0x80, []byte("x")) }, errdefs.ErrInvalidArgument, "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			m := begin(t, fixed(64<<20))
			m.done(t, dir())
			c.change(t, m.path)
			_, err := openDisk(t, m.path)
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if c.class == errdefs.ErrFailedPrecondition && errdefs.HintOf(err) == "" {
				t.Error("no hint")
			}
		})
	}
}

func poke(t *testing.T, path string, at int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(p, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// super changes a field of the superblock.
func super(at int, change func(uint32) uint32) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		disk, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p := disk[superAt:][:superLen]
		le.PutUint32(p[at:], change(le.Uint32(p[at:])))
		sealSuper(p, 0)
		poke(t, path, superAt, p)
	}
}

func TestReadDeep(t *testing.T) {
	m := begin(t, fixed(256<<20))
	deep := dir()
	for range maxPath { // "d/d/…/d" has less than twice as many bytes
		deep = dir(Node{"d", deep})
	}
	m.done(t, deep)
	f, err := openDisk(t, m.path)
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	err = f.Walk(t.Context(), func(e *Entry) error {
		longest = max(longest, len(e.Path))
		return nil
	})
	if !errors.Is(err, errdefs.ErrUnsupported) || longest != maxPath {
		t.Errorf("a path of %d bytes; %.300v", longest, err)
	}
}

func TestReadEnds(t *testing.T) {
	m := begin(t, fixed(64<<20))
	m.done(t, dir(Node{"a", file(m.data(t, []byte("a")))}))
	f, err := openDisk(t, m.path)
	if err != nil {
		t.Fatal(err)
	}
	own := errors.New("own")
	if err := f.Walk(t.Context(), func(*Entry) error { return own }); err != own {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Walk(ctx, func(*Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
