package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// hostile are small filesystems to be damaged. None has checksums, which would end most
// walks before they begin, but the last.
func hostile(t testing.TB) [][]byte {
	t.Helper()
	m := begin(t, fixed(8<<20))
	hard := file(m.data(t, pattern(9000, 1)))
	many := dir()
	for i := range 200 {
		many.Children = append(many.Children, Node{fmt.Sprintf("%s%d", strings.Repeat("n", 40), i), &Inode{Mode: modeFifo | 0o600}})
	}
	var scattered []byte
	for i := range 30 {
		scattered = append(scattered, pattern(blockSize, byte(i))...)
		scattered = append(scattered, zeros[:]...)
	}
	m.done(t, dir(
		Node{"a", hard}, Node{"b", dir(Node{"c", hard}, Node{"d", dir(Node{"e", dir()})})}, Node{"many", many},
		Node{"scattered", file(m.data(t, scattered))},
		Node{"link", &Inode{Mode: modeLink | 0o777, Target: strings.Repeat("t", 100)}},
		Node{"short", &Inode{Mode: modeLink | 0o777, Target: "t"}},
		Node{"null", &Inode{Mode: modeChar | 0o666, Rdev: Device{1, 3}}},
		Node{"attrs", with(file(m.data(t, []byte("x"))), []Xattr{{"user.a", "b"}, {"user.long", strings.Repeat("l", 500)}})},
		Node{"acl", with(dir(), []Xattr{{aclName, acl([3]uint32{aclOwner, 6, noID}, [3]uint32{aclUser, 7, 1000}, [3]uint32{aclGroupObj, 4, noID}, [3]uint32{aclMask, 4, noID}, [3]uint32{aclOther, 4, noID})}})}))
	sealed, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	open := bytes.Clone(sealed)
	p := open[superAt:][:superLen]
	le.PutUint32(p[0x64:], le.Uint32(p[0x64:])&^roSums)
	all := [][]byte{open}
	src := filepath.Join(t.TempDir(), "src")
	if err := errors.Join(os.MkdirAll(filepath.Join(src, "d/e"), 0o755), sparse(filepath.Join(src, "d/file")), os.Symlink("x", filepath.Join(src, "link"))); err != nil {
		t.Fatal(err)
	}
	for i, features := range []string{"^extents,^64bit,^metadata_csum,^resize_inode", "inline_data,^metadata_csum"} {
		path := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", features, "-d", src, path, "6M").Run() != nil {
			continue // without e2fsprogs the others do
		}
		disk, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, disk)
	}
	return append(all, sealed)
}

// sparse makes a file that needs every kind of pointer.
func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for i, at := range []int64{0, 20_000, 30_000, 300_000, 70 << 20} {
		_, werr := f.WriteAt(pattern(3000, byte(i)), at)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, f.Close())
}

// bounded walks a filesystem, and fails if it turns out to be more than its disk.
func bounded(t testing.TB, disk []byte) error {
	t.Helper()
	f, err := Open(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		return err
	}
	stored, names := int64(0), 0
	err = f.Walk(context.Background(), func(e *Entry) error {
		if names++; names > len(disk)/8 {
			t.Fatalf("%d names on a disk of %d bytes", names, len(disk))
		}
		if e.Mode&modeType != modeFile || e.Link != "" {
			return nil
		}
		if e.Size < 1<<20 {
			var content bytes.Buffer
			if err := e.WriteContent(context.Background(), &content); err != nil || int64(content.Len()) != e.Size {
				t.Fatalf("a content of %d bytes has %d: %v", e.Size, content.Len(), err)
			}
		}
		last := int64(-1)
		return e.Ranges(func(r Range) error {
			if stored += r.Len; stored > int64(len(disk)) {
				t.Fatalf("%d bytes are stored on a disk of %d", stored, len(disk))
			}
			if r.Len <= 0 || r.Off < last || r.Off+r.Len > e.Size {
				t.Fatalf("range %v of %d bytes", r, e.Size)
			}
			last = r.Off + r.Len
			return nil
		})
	})
	if err != nil && errdefs.ClassOf(err) == errdefs.ClassInternal {
		t.Fatalf("of no class: %v", err)
	}
	return err
}

// used are the blocks of 1 KiB of a disk that have something.
func used(disk []byte) (all []int) {
	for at := 0; at+1024 <= len(disk); at += 1024 {
		if !bytes.Equal(disk[at:][:1024], zeros[:1024]) {
			all = append(all, at)
		}
	}
	return all
}

// damage changes a disk as the recipe says.
func damage(disk []byte, places []int, r recipe) {
	place := func() int { return places[(r.byte()<<8|r.byte())%len(places)] }
	for len(r) > 0 {
		switch at := place(); r.byte() % 5 {
		case 0:
			disk[at+(r.byte()<<8|r.byte())%1024] ^= 1 << (r.byte() % 8)
		case 1:
			le.PutUint32(disk[at+(r.byte()<<8|r.byte())%256*4:], uint32(r.byte())<<(r.byte()%32))
		case 2:
			le.PutUint16(disk[at+(r.byte()<<8|r.byte())%512*2:], uint16(r.byte()<<8|r.byte()))
		case 3:
			copy(disk[at:][:1024], disk[place():])
		case 4:
			le.PutUint32(disk[at+(r.byte()<<8|r.byte())%256*4:], uint32(place()/1024>>(r.byte()%3)))
		}
	}
}

func FuzzRead(f *testing.F) {
	disks := hostile(f)
	for i := range 8 {
		f.Add(bytes.Repeat([]byte{byte(i), 7, byte(i * 31)}, 4+i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, r []byte, which uint8) {
		disk := bytes.Clone(disks[int(which)%len(disks)])
		damage(disk, used(disk), r)
		_ = bounded(t, disk)
	})
}

func TestReadDamaged(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for i, whole := range hostile(t) {
		if err := bounded(t, whole); err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
		places, refused := used(whole), 0
		disk := make([]byte, len(whole))
		for range 400 {
			copy(disk, whole)
			r := make(recipe, 6+random.IntN(60))
			for i := range r {
				r[i] = byte(random.Uint32())
			}
			damage(disk, places, r)
			if bounded(t, disk) != nil {
				refused++
			}
		}
		t.Logf("disk %d: %d of 400 refused", i, refused)
		if refused < 20 || refused == 400 {
			t.Errorf("disk %d: %d of 400 refused", i, refused)
		}
	}
}

// made is the first of the hostile filesystems, with the numbers of its inodes.
type made struct {
	disk []byte
	ino  map[string]uint32
}

func makeHostile(t *testing.T) *made {
	m := &made{disk: hostile(t)[0], ino: map[string]uint32{}}
	f, err := Open(bytes.NewReader(m.disk), int64(len(m.disk)))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Walk(t.Context(), func(e *Entry) error { m.ino[e.Path] = e.Ino; return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *made) inode(t *testing.T, path string) []byte {
	t.Helper()
	f, err := Open(bytes.NewReader(m.disk), int64(len(m.disk)))
	if err != nil {
		t.Fatal(err)
	}
	table, err := f.inodeTable(0)
	if err != nil || m.ino[path] == 0 {
		t.Fatal(path, err)
	}
	return m.disk[int64(table)*blockSize+int64(m.ino[path]-1)*inodeSize:][:inodeSize]
}

// block is the first block of a file, or of its extents.
func (m *made) block(t *testing.T, path string) []byte {
	t.Helper()
	p := m.inode(t, path)
	at := le.Uint32(p[60:])
	if le.Uint16(p[46:]) > 0 {
		at = le.Uint32(p[56:])
	}
	return m.disk[int64(at)*blockSize:][:blockSize]
}

func TestReadHostile(t *testing.T) {
	pointTo := func(t *testing.T, m *made, in, name, at string) {
		p := m.block(t, in)
		i := bytes.Index(p, []byte(name))
		if i < 8 {
			t.Fatalf("no %q in %q", name, in)
		}
		le.PutUint32(p[i-8:], m.ino[at])
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, m *made)
		says   string
	}{
		"a directory in itself":    {func(t *testing.T, m *made) { pointTo(t, m, "b/d", "e\x00\x00", "b") }, `"/b/d/e": inode`},
		"the root below it":        {func(t *testing.T, m *made) { pointTo(t, m, "b/d", "e\x00\x00", "") }, "a second name"},
		"a directory twice":        {func(t *testing.T, m *made) { pointTo(t, m, "b/d", "e\x00\x00", "acl") }, "a second name"},
		"a file twice":             {func(t *testing.T, m *made) { pointTo(t, m, "b/d", "e\x00\x00", "short") }, "more names than it says"},
		"the journal as a file":    {func(t *testing.T, m *made) { m.ino["x"] = journalIno; pointTo(t, m, "b/d", "e\x00\x00", "x") }, "not one of files"},
		"an inode that is not":     {func(t *testing.T, m *made) { m.ino["x"] = 1 << 31; pointTo(t, m, "b/d", "e\x00\x00", "x") }, "not one of files"},
		"a free inode":             {func(t *testing.T, m *made) { m.ino["x"] = 400; pointTo(t, m, "b/d", "e\x00\x00", "x") }, "not in use"},
		"blocks of another file's": {func(t *testing.T, m *made) { copy(m.inode(t, "a")[40:100], m.inode(t, "scattered")[40:100]) }, "part of something else"},
		"a directory's blocks":     {func(t *testing.T, m *made) { copy(m.inode(t, "b/d/e")[40:100], m.inode(t, "b")[40:100]) }, "part of something else"},
		"extents in a circle": {func(t *testing.T, m *made) {
			p := m.block(t, "scattered")
			le.PutUint16(p[6:], 1)
			le.PutUint16(m.inode(t, "scattered")[46:], 2)
			le.PutUint32(p[16:], le.Uint32(m.inode(t, "scattered")[56:]))
			le.PutUint16(p[20:], 0)
		}, "part of something else"},
		"extents of no depth": {func(t *testing.T, m *made) { le.PutUint16(m.inode(t, "scattered")[46:], 9) }, "extents"},
		"extents back and forth": {func(t *testing.T, m *made) {
			p := m.block(t, "scattered")
			copy(p[24:36], p[12:24])
		}, "not in order"},
		"blocks outside":      {func(t *testing.T, m *made) { le.PutUint16(m.inode(t, "a")[58:], 1) }, "outside"},
		"a name with a slash": {func(t *testing.T, m *made) { p := m.block(t, "b"); p[bytes.Index(p, []byte("c\x00"))] = '/' }, "called"},
		"a name twice":        {func(t *testing.T, m *made) { p := m.block(t, "b"); p[bytes.Index(p, []byte("c\x00"))] = 'd' }, "twice"},
		"an entry without end": {func(t *testing.T, m *made) {
			p := m.block(t, "b")
			le.PutUint16(p[bytes.Index(p, []byte("c\x00"))-4:], 0)
		}, "length"},
		"a directory with holes": {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "b")[4:], 2*blockSize) }, "hole"},
		"a target with a zero":   {func(t *testing.T, m *made) { m.block(t, "link")[3] = 0 }, "zero byte"},
		"a target of any length": {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "link")[4:], 5000) }, "symbolic link"},
		"a size of no end":       {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "a")[108:], 1<<30) }, "cannot be"},
		"a type of none":         {func(t *testing.T, m *made) { le.PutUint16(m.inode(t, "null")[0:], 0o644) }, "no type"},
		"nanoseconds":            {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "a")[136:], ^uint32(0)) }, "a time"},
		"attributes elsewhere":   {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "attrs")[104:], 3) }, "extended attributes"},
		"attributes by inode":    {func(t *testing.T, m *made) { le.PutUint32(m.inode(t, "attrs")[inlineAt+4+4:], 12) }, "of its own"},
		"encrypted":              {func(t *testing.T, m *made) { m.inode(t, "a")[33] |= flagEncrypt >> 8 }, "encrypted"},
		"no table of inodes":     {func(t *testing.T, m *made) { le.PutUint32(m.disk[blockSize+8:], 1<<31) }, "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			m := makeHostile(t)
			c.change(t, m)
			err := bounded(t, m.disk)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// With checksums each of these is noticed.
func TestReadSums(t *testing.T) {
	all := hostile(t)
	whole := all[len(all)-1]
	m := makeHostile(t)
	f, err := Open(bytes.NewReader(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	table, err := f.inodeTable(0)
	if err != nil {
		t.Fatal(err)
	}
	inodeAt := func(path string) int64 { return int64(table)*blockSize + int64(m.ino[path]-1)*inodeSize }
	blockAt := func(path string) int64 { return int64(le.Uint32(m.inode(t, path)[60:])) * blockSize }
	for name, at := range map[string]int64{
		"descriptor": blockSize + 12, "inode": inodeAt("a") + 2, "directory": blockAt("b") + 40, "index": blockAt("many") + 40,
		"leaf": blockAt("many") + blockSize + 3000, "extents": int64(le.Uint32(m.inode(t, "scattered")[56:]))*blockSize + 16,
		"attributes": int64(le.Uint32(m.inode(t, "attrs")[104:]))*blockSize + 4000,
	} {
		disk := bytes.Clone(whole)
		disk[at] ^= 1
		if err := bounded(t, disk); err == nil || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
