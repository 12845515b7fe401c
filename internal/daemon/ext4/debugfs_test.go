package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// debugfs runs a script of debugfs's commands.
func debugfs(t testing.TB, path, script string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return tool(t, "debugfs", "-f", file, path)
}

// What the kernel says of a mounted filesystem is compared inode by inode elsewhere;
// this is for machines that cannot mount.
func TestDebugfs(t *testing.T) {
	m := begin(t, fixed(200<<20))
	s := richTree(t, m)
	m.done(t, s.root)
	out := debugfs(t, m.path, `stat "/files/of 5242957 bytes"
stat /special/char4
stat /special/block5
stat /pipe
ea_get -x "/attrs/4 file" security.capability
ea_get "/attrs/0 file" user.a
ea_list "/attrs/6 file"
cat "/hard/deeper/three"
stat "/links/59"
ls -p /hard
ls -p "/times"
stat "/times/-1 999999999"
stat "/times/12884901888 9"
stats -h
`)
	for _, want := range []string{
		"Size: 5242957", "User: 560000   Group:   -10", /* of 32 bits */
		"Device major/minor number: 00:256", "Device major/minor number: 4095:1048575",
		"Type: FIFO", "Links: 2   Blockcount: 0",
		"user.a (1) = \"b\"", "trusted.z (999)", "security.q (1001)", "shared",
		"Fast link dest: \"" + s.link(t, "59") + "\"",
		"/" + fmt.Sprint(s.ino("hard", "one")) + "/100644/0/0/one/6/", "/040755/0/0/deeper//",
		"mtime: 0xffffffff:ee6b27fc", "mtime: 0x00000000:00000027",
		"Filesystem volume name:   test", "Filesystem UUID:          01020304-0506-4708-890a-0b0c0d0e0f10",
		"Default directory hash:   half_md4", "Checksum type:            crc32c", "Filesystem state:         clean",
		"has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("debugfs does not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	if info := tool(t, "dumpe2fs", m.path); !strings.Contains(info, "Total journal size:       16M") || !strings.Contains(info, "Reserved GDT blocks:      127") {
		t.Errorf("dumpe2fs says %s", info)
	}
}

// e2fsck has nothing to mend, and the copies of the superblock are as good as the first.
func TestCopies(t *testing.T) {
	m := begin(t, fixed(1200<<20))
	s := richTree(t, m)
	m.done(t, s.root)
	const size = 4 << 30
	if err := errors.Join(m.f.Truncate(size), Grow(m.f, m.f, size)); err != nil {
		t.Fatal(err)
	}
	head := func(at int64) []byte {
		p := make([]byte, superLen+size/groupBytes*descSize)
		for _, part := range []struct {
			p  []byte
			at int64
		}{{p[:superLen], at}, {p[superLen:], at/blockSize*blockSize + blockSize}} {
			if _, err := m.f.ReadAt(part.p, part.at); err != nil {
				t.Fatal(err)
			}
		}
		if group := uint16(at / groupBytes); le.Uint16(p[0x5a:]) != group || le.Uint32(p[0x3fc:]) != crc(^uint32(0), p[:0x3fc]) {
			t.Errorf("the copy in group %d does not say so, or its checksum is wrong", group)
		}
		clear(p[0x5a:0x5c])
		clear(p[0x3fc:0x400])
		return p
	}
	first := head(superAt)
	for _, group := range []int64{1, 3, 9, 25} {
		if !bytes.Equal(first, head(group*groupBytes)) {
			t.Errorf("the copy in group %d is another one", group)
		}
	}
	tool(t, "e2fsck", "-fp", m.path)
	// Without the first one, and all descriptors, the others are found and do.
	if _, err := m.f.WriteAt(make([]byte, 2*blockSize), 0); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/e2fsck", "-fy", m.path).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 { // mended
		t.Fatalf("e2fsck: %v\n%s", err, tail(out))
	}
	fsck(t, m.path)
	mounted(t, m.path, unix.MS_RDONLY, func(dir string, _ *os.File) error { return s.compare(t, dir) })
}

func TestDeep(t *testing.T) {
	m := begin(t, fixed(256<<20))
	deep := dir()
	for range 8000 {
		deep = dir(Node{"d", deep})
	}
	m.done(t, deep)
}

func (s *sample) find(path ...string) *Inode {
	n := s.root
next:
	for _, name := range path {
		for _, c := range n.Children {
			if c.Name == name {
				n = c.Inode
				continue next
			}
		}
		return &Inode{}
	}
	return n
}

func (s *sample) ino(path ...string) uint32 { return s.find(path...).ino }

func (s *sample) link(t testing.TB, name string) string {
	t.Helper()
	target := s.find("links", name).Target
	if target == "" {
		t.Fatalf("no link %s", name)
	}
	return target
}
