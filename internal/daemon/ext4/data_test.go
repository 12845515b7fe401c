package ext4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"banger/internal/errdefs"
)

// stored reads content back from where it lies.
func (m *image) stored(t testing.TB, d *Data) []byte {
	t.Helper()
	p := make([]byte, (d.size+blockSize-1)/blockSize*blockSize)
	d.each(func(e extent) {
		if _, err := m.f.ReadAt(p[int64(e.logical)*blockSize:][:int64(e.n)*blockSize], int64(e.start)*blockSize); err != nil {
			t.Fatal(err)
		}
	})
	if len(bytes.Trim(p[d.size:], "\x00")) > 0 {
		t.Error("there is something behind the end of a file")
	}
	return p[:d.size]
}

// takes is how many bytes of the disk a file takes.
func takes(t testing.TB, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestHolesAreKept(t *testing.T) {
	m := begin(t, fixed(1<<30))
	content := make([]byte, 100<<20)
	for _, at := range []int{0, 5 << 20, 5<<20 + blockSize, 50<<20 - 1, len(content) - 1} {
		content[at] = 1
	}
	d := m.data(t, content)
	if d.Allocated() != 5*blockSize || d.Size() != int64(len(content)) {
		t.Errorf("%d bytes are stored of %d", d.Allocated(), d.Size())
	}
	m.done(t, dir(Node{"a", file(d)}))
	if !bytes.Equal(m.stored(t, &d), content) {
		t.Error("the content is another one")
	}
	if n := takes(t, m.f); n > 4<<20 {
		t.Errorf("the image takes %d bytes", n)
	}
}

func TestSparseRanges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	m := begin(t, fixed(256<<20))
	root := dir()
	want := map[*Inode][]byte{}
	for i := range 300 {
		size := rnd.Int64N(200_000)
		content := make([]byte, size)
		var ranges []Range
		var in []byte
		for at := int64(0); at < size; {
			at += rnd.Int64N(3) * rnd.Int64N(9000)
			n := min(rnd.Int64N(3)*rnd.Int64N(9000), size-at)
			if n < 0 {
				break
			}
			part := pattern(int(n), byte(at))
			if rnd.IntN(4) == 0 {
				clear(part)
			}
			copy(content[at:], part)
			in = append(in, part...)
			ranges = append(ranges, Range{at, n})
			at += n
		}
		d, err := m.WriteSparse(context.Background(), bytes.NewReader(in), size, ranges)
		if err != nil {
			t.Fatal(err)
		}
		n := file(d)
		want[n] = content
		root.Children = append(root.Children, Node{fmt.Sprint(i), n})
	}
	m.done(t, root)
	for n, content := range want {
		if !bytes.Equal(m.stored(t, &n.Data), content) {
			t.Errorf("a file of %d bytes differs", len(content))
		}
	}
}

// Readers may say that they are at their end with the last bytes, or give few at a time.
func TestReadersOfAllKinds(t *testing.T) {
	m := begin(t, fixed(64<<20))
	root := dir()
	for i, r := range []func(io.Reader) io.Reader{iotest.DataErrReader, iotest.HalfReader, iotest.OneByteReader} {
		for _, size := range []int{1, 4096, 5000, 70_000} {
			content := pattern(size, 1)
			d, err := m.Write(context.Background(), r(bytes.NewReader(content)), int64(size))
			if err != nil {
				t.Fatalf("%d, %d bytes: %v", i, size, err)
			}
			root.Children = append(root.Children, Node{fmt.Sprint(i, size), file(d)})
		}
	}
	m.done(t, root)
	for _, c := range root.Children {
		if c.Mode&modeType == modeFile && !bytes.Equal(m.stored(t, &c.Data), pattern(int(c.Data.size), 1)) {
			t.Errorf("%s differs", c.Name)
		}
	}
}

func TestManyExtents(t *testing.T) {
	m := begin(t, fixed(1<<30))
	root := dir()
	for _, n := range []int{4, 5, 340, 341, 1360, 1361, 20_000} {
		r := &dots{left: int64(n) * 2 * blockSize}
		d, err := m.Write(context.Background(), r, r.left)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.more) != n-1 {
			t.Fatalf("%d extents, want %d", len(d.more)+1, n)
		}
		root.Children = append(root.Children, Node{fmt.Sprint(n), file(d)})
	}
	m.done(t, root)
	mapped := tool(t, "debugfs", "-R", "stat /20000", m.path)
	if n := strings.Count(mapped, "ETB"); n < 59 {
		t.Errorf("%d blocks of extents", n)
	}
	dump := m.path + ".dump"
	tool(t, "debugfs", "-R", "dump /20000 "+dump, m.path)
	have, err := os.Open(dump)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = have.Close() }()
	if want, have := sum(t, &dots{left: 40_000 * blockSize}), sum(t, have); want != have {
		t.Error("debugfs reads another content")
	}
}

func sum(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// dots is content in which every other block is a hole.
type dots struct{ at, left int64 }

var ones = bytes.Repeat([]byte{1}, blockSize)

func (d *dots) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), blockSize-d.at%blockSize, d.left)
	clear(p[:n])
	if d.at/blockSize%2 == 0 {
		copy(p[:n], ones[d.at%blockSize:])
		if d.at%blockSize == 0 {
			p[0] = byte(d.at>>12) | 1
		}
	}
	d.at, d.left = d.at+n, d.left-n
	return int(n), nil
}

func TestFilled(t *testing.T) {
	m := begin(t, fixed(200<<20))
	root := dir()
	free := int64(m.space.free) * blockSize
	// Files of odd sizes until there is no room, from two at a time.
	var mu sync.Mutex
	var stored int64
	fill := func(from int) {
		for i := from; ; i += 2 {
			size := 1 + int64(i)*7919%400_000
			d, err := m.Write(context.Background(), bytes.NewReader(pattern(int(size), byte(i))), size)
			if err != nil {
				if !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			root.Children = append(root.Children, Node{fmt.Sprint(i), file(d)})
			stored += d.Allocated()
			mu.Unlock()
		}
	}
	var both sync.WaitGroup
	both.Go(func() { fill(0) })
	both.Go(func() { fill(1) })
	both.Wait()
	fill(1_000_000)
	if rest := free - stored; rest > 400_000 {
		t.Errorf("full with %d bytes left", rest)
	}
	// Half of it is taken back, and written again.
	kept := root.Children[:0]
	for i, c := range root.Children {
		if i%2 == 0 {
			m.Free(c.Data)
			stored -= c.Data.Allocated()
		} else {
			kept = append(kept, c)
		}
	}
	root.Children = kept
	was := stored
	fill(2_000_000)
	if stored-was < free/3 {
		t.Errorf("%d bytes could be written to where %d were free", stored-was, free/2)
	}
	for {
		_, err := m.Write(context.Background(), strings.NewReader("x"), 1)
		if err != nil {
			break
		}
	}
	// What is not in the tree makes room for it.
	root.Children = root.Children[5:]
	for i := range 20 {
		root.Children = append(root.Children, Node{fmt.Sprint("d", i), dir()})
	}
	m.done(t, root)
	for _, c := range root.Children {
		if c.Mode&modeType == modeFile {
			i, err := strconv.Atoi(c.Name)
			if err != nil || !bytes.Equal(m.stored(t, &c.Data), pattern(int(c.Data.size), byte(i))) {
				t.Errorf("%s differs", c.Name)
			}
		}
	}
}

func TestNoRoomForTheTree(t *testing.T) {
	m := begin(t, fixed(16<<20))
	size := int64(m.space.free) * blockSize
	d, err := m.Write(context.Background(), bytes.NewReader(pattern(int(size), 1)), size)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Finish(context.Background(), dir(Node{"a", file(d)}))
	if !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" {
		t.Error(err)
	}
	m = begin(t, fixed(16<<20))
	many := dir()
	for i := range 9000 {
		many.Children = append(many.Children, Node{fmt.Sprint(i), &Inode{Mode: modeFifo}})
	}
	if err := m.Finish(context.Background(), many); !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" {
		t.Error(err)
	}
	m = begin(t, Options{Size: 32 << 20, Inodes: 9020})
	m.done(t, many)
}

func TestFreedIsGivenBack(t *testing.T) {
	m := begin(t, fixed(1<<30))
	keep := m.data(t, pattern(10<<20, 1))
	for _, d := range []Data{m.data(t, pattern(100<<20, 2)), m.data(t, pattern(5000, 3))} {
		m.Free(d)
	}
	forgotten := m.data(t, pattern(50<<20, 4))
	m.Free(Data{})
	before := takes(t, m.f)
	m.done(t, dir(Node{"keep", file(keep)}))
	if after := takes(t, m.f); before-after < 140<<20 {
		t.Errorf("the image took %d bytes and takes %d, after %d more were not needed", before, after, 100<<20+forgotten.Allocated())
	}
	if !bytes.Equal(m.stored(t, &keep), pattern(10<<20, 1)) {
		t.Error("the wrong content was given back")
	}
}

// What is freed while it is still in a buffer must not be written over what comes next,
// be it that nobody uses the buffer, or that somebody is about to go on with it.
func TestReuseWhileBuffered(t *testing.T) {
	m := begin(t, fixed(32<<20))
	ctx := context.Background()
	free := m.space.free
	busy, err := m.lane()
	if err != nil {
		t.Fatal(err)
	}
	other, err := m.lane()
	if err != nil {
		t.Fatal(err)
	}
	m.Free(m.data(t, pattern(100_000, 1))) // through a third one, which is idle then
	m.release(other)
	var d Data
	if err := busy.copy(ctx, &d, bytes.NewReader(pattern(25*blockSize, 2)), 0, 25); err != nil {
		t.Fatal(err)
	}
	m.Free(d)
	root := dir()
	for i := range 2000 {
		d, err := m.Write(ctx, bytes.NewReader(pattern(20_000, byte(i))), 20_000)
		if errors.Is(err, errdefs.ErrExhausted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		root.Children = append(root.Children, Node{fmt.Sprintf("%05d", i), file(d)})
	}
	var stored uint64
	for _, c := range root.Children {
		stored += c.Data.blocks()
	}
	if rest := free - stored - (busy.area.hi - busy.area.lo); rest > 5 { // a file's
		t.Errorf("full with %d blocks left", rest)
	}
	m.release(busy)
	root.Children = root.Children[1:]
	m.done(t, root)
	for _, c := range root.Children {
		if c.Mode&modeType != modeFile {
			continue
		}
		i, err := strconv.Atoi(c.Name)
		if err != nil || !bytes.Equal(m.stored(t, &c.Data), pattern(20_000, byte(i))) {
			t.Fatalf("%s differs", c.Name)
		}
	}
}

func TestConcurrent(t *testing.T) {
	m := begin(t, fixed(128<<20))
	root := dir()
	var mu sync.Mutex
	var all sync.WaitGroup
	for g := range 6 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			var mine []Node
			for i := range 400 {
				size := rnd.Int64N(200_000)
				if rnd.IntN(50) == 0 {
					size = 3 << 20
				}
				d, err := m.Write(context.Background(), bytes.NewReader(pattern(int(size), byte(g))), size)
				switch {
				case errors.Is(err, errdefs.ErrExhausted):
				case err != nil:
					t.Error(err)
				default:
					mine = append(mine, Node{fmt.Sprintf("%d-%d", g, i), file(d)})
				}
				if len(mine) > 0 && rnd.IntN(5) > 1 {
					k := rnd.IntN(len(mine))
					m.Free(mine[k].Data)
					mine = slices.Delete(mine, k, k+1)
				}
			}
			mu.Lock()
			root.Children = append(root.Children, mine...)
			mu.Unlock()
		})
	}
	all.Wait()
	root.Children = root.Children[20:] // it may be full, and there must be room for the names
	m.done(t, root)
	for _, c := range root.Children {
		if c.Mode&modeType == modeFile && !bytes.Equal(m.stored(t, &c.Data), pattern(int(c.Data.size), c.Name[0]-'0')) {
			t.Errorf("%s differs", c.Name)
		}
	}
}

func TestDeterministic(t *testing.T) {
	var sums []string
	for range 2 {
		m := begin(t, fixed(200<<20))
		m.done(t, richTree(t, m).root)
		if _, err := m.f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum(t, m.f))
	}
	if sums[0] != sums[1] {
		t.Error("the same tree makes two filesystems")
	}
	a, b := begin(t, Options{Size: 64 << 20}), begin(t, Options{Size: 64 << 20})
	if a.o.UUID == b.o.UUID || a.o.HashSeed == b.o.HashSeed || a.o.Now == (Time{}) {
		t.Error("two filesystems have one identity, or none")
	}
}

func TestLittleIsWritten(t *testing.T) {
	for _, size := range []int64{64 << 20, 10 << 30, 1 << 40} {
		m := begin(t, fixed(size))
		m.done(t, dir())
		if n, limit := takes(t, m.f), 1<<20+size/100_000; n > limit {
			t.Errorf("an empty filesystem of %d bytes takes %d, more than %d", size, n, limit)
		}
	}
}
