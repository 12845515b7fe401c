package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
