package ext4

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestAttributesAreShared(t *testing.T) {
	m := begin(t, fixed(256<<20))
	root := dir()
	for i := range 3000 {
		n := &Inode{Mode: modeFile, Xattrs: []Xattr{{"user.big", strings.Repeat("x", 2000)}, {"user.small", fmt.Sprint(i)}}}
		if i%1000 == 7 {
			n.Xattrs[0].Value += fmt.Sprint(i)
		}
		root.Children = append(root.Children, Node{fmt.Sprintf("%04d", i), n})
	}
	m.done(t, root)
	blocks := map[string]int{}
	var script strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&script, "stat /%04d\n", i)
	}
	for _, at := range regexp.MustCompile(`File ACL: (\d+)`).FindAllStringSubmatch(debugfs(t, m.path, script.String()), -1) {
		blocks[at[1]]++
	}
	if len(blocks) != 6 || blocks["0"] != 0 {
		t.Errorf("blocks and how many share them: %v", blocks)
	}
	for at, n := range blocks {
		if n > attrMaxRefs {
			t.Errorf("block %s is shared by %d", at, n)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, c := range []struct{ is, want Time }{
		{Time{0, 0}, Time{0, 0}},
		{Time{-1, 5}, Time{-1, 5}},
		{Time{minTime, 999_999_999}, Time{minTime, 999_999_999}},
		{Time{minTime - 1, 5}, Time{minTime, 0}},
		{Time{1 << 31, 5}, Time{1 << 31, 5}},
		{Time{1 << 33, 5}, Time{1 << 33, 5}},
		{Time{doubtedFrom - 1, 5}, Time{doubtedFrom - 1, 5}},
		{Time{doubtedFrom, 5}, Time{doubtedFrom - 1, 0}},
		{Time{doubtedTo - 1, 5}, Time{doubtedFrom - 1, 0}},
		{Time{doubtedTo, 5}, Time{doubtedTo, 5}},
		{Time{maxTime, 999_999_999}, Time{maxTime, 999_999_999}},
		{Time{maxTime + 1, 5}, Time{maxTime, 0}},
		{Time{-1 << 63, 5}, Time{minTime, 0}},
		{Time{1<<63 - 1, 5}, Time{maxTime, 0}},
	} {
		sec, extra := c.is.encode()
		// As the kernel puts it together.
		if have := (Time{int64(int32(sec)) + int64(extra&3)<<32, extra >> 2}); have != c.want {
			t.Errorf("%v became %v, want %v", c.is, have, c.want)
		}
	}
}
