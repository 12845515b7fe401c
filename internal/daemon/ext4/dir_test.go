package ext4

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHash(t *testing.T) {
	o := fixed(0)
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", o.HashSeed[0:4], o.HashSeed[4:6], o.HashSeed[6:8], o.HashSeed[8:10], o.HashSeed[10:])
	// debugfs knows bytes with a sign only; e2fsck and the kernel judge the others.
	for _, name := range []string{"a", "abcd", "abcde", strings.Repeat("x", 31), strings.Repeat("y", 32), strings.Repeat("z", 33), strings.Repeat("long", 63)} {
		for _, seed := range []string{uuid, ""} {
			args := "dx_hash -h half_md4"
			want := hash(name, [16]byte{})
			if seed != "" {
				args += " -s " + seed
				want = hash(name, o.HashSeed)
			}
			out := tool(t, "debugfs", "-R", args+" "+name, "/dev/null")
			if has := regexp.MustCompile(`is (0x[0-9a-f]+)`).FindStringSubmatch(out); has == nil || has[1] != fmt.Sprintf("%#08x", want) {
				t.Errorf("%q, seed %q: %#08x, debugfs says %s", name, seed, want, out)
			}
		}
	}
}

// namesOf makes a directory of n names.
func namesOf(n int, name func(int) string) *Inode {
	d, pipe := dir(), &Inode{Mode: modeFifo | 0o600}
	for i := range n {
		if i%maxLinks == 0 {
			pipe = &Inode{Mode: modeFifo | 0o600}
		}
		d.Children = append(d.Children, Node{name(i), pipe})
	}
	return d
}

func TestDirectories(t *testing.T) {
	m := begin(t, fixed(1<<30))
	dirs := map[string]*Inode{}
	for _, n := range []int{0, 1, 10, 100, 253, 254, 255, 1000, 100_000} {
		dirs[fmt.Sprint(n)] = namesOf(n, func(i int) string { return fmt.Sprintf("n%07d", i) })
	}
	long := strings.Repeat("long", 60)
	dirs["long"] = namesOf(20_000, func(i int) string { return fmt.Sprint(long, i) })
	dirs["mixed"] = namesOf(5000, func(i int) string { return fmt.Sprint(long[:i%240], "\xff\x80ü"[:i%4], i) })
	dirs["collisions"] = colliding(m.o.HashSeed)
	var all []Node
	for name, d := range dirs {
		all = append(all, Node{name, d})
	}
	root := dir(all...)
	m.done(t, root)
	mounted(t, m.path, unix.MS_RDONLY, func(at string, _ *os.File) error {
		for name, d := range dirs {
			at := at + "/" + name
			f, err := os.Open(at)
			if err != nil {
				return err
			}
			list, err := f.Readdirnames(-1)
			_ = f.Close()
			if err != nil {
				return err
			}
			slices.Sort(list)
			if !slices.EqualFunc(list, d.Children, func(a string, b Node) bool { return a == b.Name }) {
				t.Errorf("%s: %d names, want %d", name, len(list), len(d.Children))
			}
			for _, c := range d.Children {
				var st unix.Stat_t
				if err := unix.Lstat(at+"/"+c.Name, &st); err != nil || st.Ino != uint64(c.ino) {
					return fmt.Errorf("%s/%s: inode %d, want %d; %w", name, c.Name, st.Ino, c.ino, err)
				}
			}
			if _, err := os.Lstat(at + "/nothing"); !os.IsNotExist(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return nil
	})
}

// colliding is a directory in which two names with one hash are in different blocks:
// one is the last of the first block.
func colliding(seed [16]byte) *Inode {
	name := func(i int) string { return fmt.Sprintf("%0250d", i) } // 15 in a block
	const perLeaf = leafSize / 260
	seen := map[uint32]int{}
	var all []uint32
	for i := 0; ; i++ {
		h := hash(name(i), seed)
		_, ok := seen[h]
		if !ok {
			seen[h] = i
			all = append(all, h)
			continue
		}
		d := namesOf(0, nil)
		pipe := &Inode{Mode: modeFifo | 0o600}
		add := func(h uint32) { d.Children = append(d.Children, Node{name(seen[h]), pipe}) }
		slices.Sort(all)
		at, _ := slices.BinarySearch(all, h)
		if at < perLeaf {
			continue
		}
		for _, h := range all[at-perLeaf+1 : at+1] {
			add(h)
		}
		d.Children = append(d.Children, Node{name(i), pipe})
		for _, h := range all[at+1 : min(at+30, len(all))] {
			add(h)
		}
		return d
	}
}

func TestCollisionIsAtTheEndOfABlock(t *testing.T) {
	m := begin(t, fixed(64<<20))
	tr := &tree{w: m.Writer}
	leaves := (&dirWriter{t: tr}).leaves(colliding(m.o.HashSeed))
	if len(leaves) < 2 || leaves[1].hash&1 == 0 {
		t.Errorf("the test makes no collision between blocks: %d blocks", len(leaves))
	}
}

func TestManyDirectoriesInOne(t *testing.T) {
	m := begin(t, Options{Size: 1 << 30, Inodes: 80_000})
	d := dir()
	for i := range maxLinks + 10 {
		d.Children = append(d.Children, Node{fmt.Sprint(i), dir()})
	}
	m.done(t, dir(Node{"d", d}))
	mounted(t, m.path, unix.MS_RDONLY, func(at string, _ *os.File) error {
		var st unix.Stat_t
		if err := unix.Lstat(at+"/d", &st); err != nil || st.Nlink != 1 {
			t.Errorf("%d links, want 1; %v", st.Nlink, err)
		}
		return nil
	})
}

func TestHardLinks(t *testing.T) {
	m := begin(t, fixed(64<<20))
	root := namesOf(maxLinks, func(i int) string { return fmt.Sprint("n", i) })
	n := root.Children[0].Inode
	m.done(t, root)
	if n.links != maxLinks {
		t.Errorf("%d links", n.links)
	}
	if out := tool(t, "debugfs", "-R", "stat /n64999", m.path); !strings.Contains(out, "Links: 65000 ") {
		t.Errorf("debugfs says %s", out)
	}
}
