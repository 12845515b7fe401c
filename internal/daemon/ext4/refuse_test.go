package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"banger/internal/errdefs"
)

func TestRefused(t *testing.T) {
	link := func(target string) *Inode { return &Inode{Mode: modeLink | 0o777, Target: target} }
	attr := func(name, value string) *Inode {
		return &Inode{Mode: modeFile, Xattrs: []Xattr{{name, value}}}
	}
	shared := dir()
	user := [3]uint32{aclUser, 1, 1}
	owner, group, other := [3]uint32{aclOwner, 1, noID}, [3]uint32{aclGroupObj, 1, noID}, [3]uint32{aclOther, 1, noID}
	for name, c := range map[string]struct {
		n     *Inode
		class error
	}{
		"no type":              {&Inode{Mode: 0o644}, errdefs.ErrInvalidArgument},
		"unknown type":         {&Inode{Mode: 0o150644}, errdefs.ErrInvalidArgument},
		"mode of 32 bits":      {&Inode{Mode: 1<<31 | modeFile}, errdefs.ErrInvalidArgument},
		"nanoseconds":          {&Inode{Mode: modeFile, MTime: Time{0, 1e9}}, errdefs.ErrInvalidArgument},
		"link to nothing":      {link(""), errdefs.ErrInvalidArgument},
		"link too long":        {link(strings.Repeat("a", 4096)), errdefs.ErrInvalidArgument},
		"link with a NUL":      {link("a\x00b"), errdefs.ErrInvalidArgument},
		"major too large":      {&Inode{Mode: modeChar, Rdev: Device{4096, 0}}, errdefs.ErrInvalidArgument},
		"minor too large":      {&Inode{Mode: modeBlock, Rdev: Device{0, 1 << 20}}, errdefs.ErrInvalidArgument},
		"no inode":             {dir(Node{"a", nil}), errdefs.ErrInternal},
		"slash":                {dir(Node{"a/b", dir()}), errdefs.ErrInvalidArgument},
		"NUL":                  {dir(Node{"a\x00b", dir()}), errdefs.ErrInvalidArgument},
		"empty name":           {dir(Node{"", dir()}), errdefs.ErrInvalidArgument},
		"dot":                  {dir(Node{".", dir()}), errdefs.ErrInvalidArgument},
		"dot dot":              {dir(Node{"..", dir()}), errdefs.ErrInvalidArgument},
		"name too long":        {dir(Node{strings.Repeat("a", 256), dir()}), errdefs.ErrInvalidArgument},
		"name twice":           {dir(Node{"a", dir()}, Node{"a", dir()}), errdefs.ErrInvalidArgument},
		"directory twice":      {dir(Node{"a", shared}, Node{"b", shared}), errdefs.ErrInvalidArgument},
		"too many links":       {namesTo(maxLinks + 1), errdefs.ErrUnsupported},
		"attribute twice":      {&Inode{Mode: modeFile, Xattrs: []Xattr{{"user.a", "1"}, {"user.a", "1"}}}, errdefs.ErrInvalidArgument},
		"attribute too large":  {attr("user.a", strings.Repeat("a", 4045)), errdefs.ErrUnsupported},
		"attributes too large": {&Inode{Mode: modeFile, Xattrs: []Xattr{{"user.a", strings.Repeat("a", 3000)}, {"user.b", strings.Repeat("a", 3000)}}}, errdefs.ErrUnsupported},
		"attribute of no kind": {attr("user", "1"), errdefs.ErrInvalidArgument},
		"unknown attribute":    {attr("other.a", "1"), errdefs.ErrUnsupported},
		"data in an attribute": {attr("system.data", "1"), errdefs.ErrUnsupported},
		"attribute's NUL":      {attr("user.a\x00b", "1"), errdefs.ErrInvalidArgument},
		"attribute's name":     {attr("user."+strings.Repeat("a", 251), "1"), errdefs.ErrInvalidArgument},
		"default ACL":          {attr(defaultACLName, acl(owner, group, other)), errdefs.ErrInvalidArgument},
		"ACL of 3 bytes":       {attr(aclName, "abc"), errdefs.ErrInvalidArgument},
		"ACL of version 1":     {attr(aclName, "\x01\x00\x00\x00"), errdefs.ErrInvalidArgument},
		"ACL cut off":          {attr(aclName, acl(owner, group, other)[:27]), errdefs.ErrInvalidArgument},
		"ACL without a mask":   {attr(aclName, acl(owner, user, group, other)), errdefs.ErrInvalidArgument},
		"ACL without an owner": {attr(aclName, acl(group, other)), errdefs.ErrInvalidArgument},
		"ACL out of order":     {attr(aclName, acl(group, owner, other)), errdefs.ErrInvalidArgument},
		"ACL with two owners":  {attr(aclName, acl(owner, owner, group, other)), errdefs.ErrInvalidArgument},
		"ACL of unknown kind":  {attr(aclName, acl(owner, group, other, [3]uint32{0x40, 1, 1})), errdefs.ErrInvalidArgument},
		"ACL of bit 3":         {attr(aclName, acl(owner, group, [3]uint32{aclOther, 8, noID})), errdefs.ErrInvalidArgument},
		"ACL of nobody":        {attr(aclName, acl(owner, [3]uint32{aclUser, 1, noID}, group, [3]uint32{aclMask, 1, noID}, other)), errdefs.ErrInvalidArgument},
	} {
		m := begin(t, fixed(64<<20))
		err := m.Finish(context.Background(), dir(Node{"first", dir()}, Node{"x", dir(Node{"bad one", c.n})}))
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), `"/x/bad one`) {
			t.Errorf("%s: %.300v", name, err)
		}
	}
}

// namesTo is a directory of n short names of one file.
func namesTo(n int) *Inode {
	d, pipe := dir(), &Inode{Mode: modeFifo}
	d.Children = make([]Node, n)
	for i := range d.Children {
		d.Children[i] = Node{fmt.Sprintf("%x", i), pipe}
	}
	return d
}

func TestRootIsADirectory(t *testing.T) {
	for _, root := range []*Inode{nil, {Mode: modeFile}} {
		m := begin(t, fixed(64<<20))
		if err := m.Finish(context.Background(), root); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v: %v", root, err)
		}
	}
	m := begin(t, fixed(64<<20))
	root := dir()
	root.Children = []Node{{"a", root}}
	if err := m.Finish(context.Background(), root); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a root in itself: %v", err)
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, o := range []Options{
		{}, {Size: -4096}, {Size: 4 << 20}, {Size: 64<<20 + 1}, {Size: 17 << 40},
		{Size: 64 << 20, Inodes: 40_000}, {Size: 64 << 20, Label: "longer than it is"},
		{Size: 8 << 20, Inodes: 32_000}, {Size: 64 << 20, Now: Time{-1, 0}},
	} {
		if _, err := New(noFile{}, o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// noFile is a file that nobody may use.
type noFile struct{ File }

func TestContentRefused(t *testing.T) {
	m := begin(t, fixed(64<<20))
	ctx, cancel := context.WithCancel(context.Background())
	free := m.space.free
	reader := func(n int) io.Reader { return bytes.NewReader(pattern(n, 1)) }
	_, short := m.Write(ctx, reader(3<<20), 3<<20+1)
	_, empty := m.Write(ctx, reader(0), 1)
	_, failed := m.Write(ctx, io.MultiReader(reader(2<<20), iotest.ErrReader(errRead)), 3<<20)
	_, negative := m.Write(ctx, reader(1), -1)
	_, huge := m.Write(ctx, reader(1), maxFile+1)
	var ranges []error
	for _, r := range [][]Range{{{-1, 2}}, {{0, 11}}, {{0, 1 << 62}}, {{9, -1}}, {{5, 1}, {4, 1}}, {{5, 2}, {6, 1}}, {{11, 0}}} {
		_, err := m.WriteSparse(ctx, reader(20), 10, r)
		ranges = append(ranges, err)
	}
	for i, err := range append(ranges, short, empty, negative, huge) {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if !errors.Is(failed, errRead) {
		t.Errorf("reader: %v", failed)
	}
	cancel()
	if _, err := m.Write(ctx, reader(3<<20), 3<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := m.reclaim(context.Background()); err != nil || m.space.free != free {
		t.Errorf("%d blocks are free, want %d; %v", m.space.free, free, err)
	}
	if err := m.Finish(ctx, dir()); !errors.Is(err, context.Canceled) {
		t.Errorf("finish: %v", err)
	}
	if err := m.Finish(context.Background(), dir()); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("finish again: %v", err)
	}
	if _, err := m.Write(context.Background(), reader(10), 10); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("write after that: %v", err)
	}
}

func TestContentOfTwo(t *testing.T) {
	m, other := begin(t, fixed(64<<20)), begin(t, fixed(64<<20))
	d := m.data(t, []byte("content"))
	for _, two := range []*Inode{dir(Node{"a", file(d)}, Node{"b", file(d)})} {
		if err := m.Finish(context.Background(), two); !errors.Is(err, errdefs.ErrInternal) {
			t.Errorf("content of two: %v", err)
		}
	}
	if err := other.Finish(context.Background(), dir(Node{"a", file(d)})); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("content of another filesystem: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	m := begin(t, fixed(64<<20))
	m.Writer.f = &full{File: m.f, err: errRead}
	// The first is in the buffer when the second one's failure is met.
	d, err := m.Write(context.Background(), strings.NewReader("small"), 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Write(context.Background(), bytes.NewReader(pattern(3<<20, 1)), 3<<20); !errors.Is(err, errRead) {
		t.Errorf("write: %v", err)
	}
	if err := m.Finish(context.Background(), dir(Node{"a", file(d)})); !errors.Is(err, errRead) {
		t.Errorf("finish: %v", err)
	}
}

// full is a file to which one write fails.
type full struct {
	File
	err error
}

func (f *full) WriteAt(p []byte, at int64) (int, error) {
	if err := f.err; err != nil {
		f.err = nil
		return 0, err
	}
	return f.File.WriteAt(p, at)
}
