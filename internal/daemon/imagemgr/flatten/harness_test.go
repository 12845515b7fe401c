package flatten_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
)

// sink keeps contents, and complains of what is freed twice or was never written.
type sink struct {
	mu    sync.Mutex
	w     *ext4.Writer
	live  map[string][]string // contents by where they lie; holes lie nowhere
	wrong []string
	fail  error // what Write returns instead
	wrote int   // files, ever
}

// nowhere is a file that takes everything.
type nowhere struct{}

func (nowhere) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) Truncate(int64) error                   { return nil }

func newSink(t testing.TB) *sink {
	w, err := ext4.New(nowhere{}, ext4.Options{Size: 16 << 30})
	if err != nil {
		t.Fatal(err)
	}
	return &sink{w: w, live: map[string][]string{}}
}

// place tells a Data from others: it has no other name outside of its package.
func place(d ext4.Data) string { return fmt.Sprint(d) }

func (s *sink) Write(ctx context.Context, r io.Reader, size int64) (ext4.Data, error) {
	if s.fail != nil {
		return ext4.Data{}, s.fail
	}
	var h bytes.Buffer
	d, err := s.w.Write(ctx, io.TeeReader(r, &h), size)
	if err != nil {
		return d, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote++
	s.live[place(d)] = append(s.live[place(d)], short(h.Bytes()))
	return d, nil
}

func (s *sink) Free(d ext4.Data) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := place(d)
	if len(s.live[p]) == 0 {
		s.wrong = append(s.wrong, p)
		return
	}
	if s.live[p] = s.live[p][1:]; len(s.live[p]) == 0 {
		delete(s.live, p)
	}
	s.w.Free(d)
}

// short is what a content is called: itself, or its length and the start of its digest.
func short(content []byte) string {
	if len(content) <= 4096 {
		return string(content)
	}
	return fmt.Sprintf("<%d bytes, %.16s>", len(content), digest(content))
}

// check compares what is stored with what the tree has.
func (s *sink) check(t testing.TB, root *ext4.Inode) {
	t.Helper()
	if len(s.wrong) > 0 {
		t.Errorf("freed, but not there: %v", s.wrong)
	}
	used := map[string]int{}
	seen := map[*ext4.Inode]bool{}
	walk(root, "", func(_ string, in *ext4.Inode) {
		if !seen[in] && in.Data.Size() > 0 {
			used[place(in.Data)]++
		}
		seen[in] = true
	})
	for p, n := range used {
		if len(s.live[p]) != n {
			t.Errorf("the tree has %d times %s, of which %d are stored", n, p, len(s.live[p]))
		}
	}
	for p, all := range s.live {
		if used[p] != len(all) {
			t.Errorf("stored and in no tree: %s %.100q", p, all)
		}
	}
}

func walk(in *ext4.Inode, at string, f func(string, *ext4.Inode)) {
	if in == nil {
		return
	}
	f(at, in)
	for _, c := range in.Children {
		walk(c.Inode, strings.TrimPrefix(at+"/"+c.Name, "/"), f)
	}
}

// render writes a tree down, a line for each name, without what is as usual: owner root,
// time 0, modes 755 and 644.
func (s *sink) render(root *ext4.Inode) string {
	var lines []string
	type named struct {
		path string
		in   *ext4.Inode
	}
	var all []named
	walk(root, "", func(p string, in *ext4.Inode) { all = append(all, named{p, in}) })
	slices.SortFunc(all, func(a, b named) int { return cmp.Compare(a.path, b.path) })
	first := map[*ext4.Inode]string{}
	for _, n := range all {
		in := n.in
		line, usual := n.path, uint32(0o644)
		switch in.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			line, usual = line+"/", 0o755
		case unix.S_IFREG:
			line += "="
			if in.Data.Size() > 0 {
				line += s.live[place(in.Data)][0]
			}
		case unix.S_IFLNK:
			line, usual = line+"->"+in.Target, 0o777
		case unix.S_IFCHR:
			line += fmt.Sprintf(" c%d:%d", in.Rdev.Major, in.Rdev.Minor)
		case unix.S_IFBLK:
			line += fmt.Sprintf(" b%d:%d", in.Rdev.Major, in.Rdev.Minor)
		case unix.S_IFIFO:
			line += " p"
		default:
			line += fmt.Sprintf(" type=%o", in.Mode&unix.S_IFMT)
		}
		if p := in.Mode & 0o7777; p != usual {
			line += fmt.Sprintf(" mode=%o", p)
		}
		if in.UID != 0 || in.GID != 0 {
			line += fmt.Sprintf(" own=%d:%d", in.UID, in.GID)
		}
		if in.MTime.Sec != 0 || in.MTime.Nsec != 0 {
			line += fmt.Sprintf(" time=%d.%09d", in.MTime.Sec, in.MTime.Nsec)
		}
		for _, a := range in.Xattrs {
			line += fmt.Sprintf(" %s=%q", a.Name, a.Value)
		}
		if f, ok := first[in]; ok {
			line += " &" + f
		} else {
			first[in] = n.path
		}
		if n.path == "" && line == "/" {
			continue // a root as all have it
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// ent is an entry of a tar that is made, or bytes that stand there instead.
type ent struct {
	hdr  tar.Header
	body string
	raw  []byte
}

func (e ent) with(f func(*tar.Header)) ent {
	f(&e.hdr)
	return e
}

func (e ent) mode(m int64) ent { e.hdr.Mode = m; return e }
func (e ent) own(u, g int) ent { e.hdr.Uid, e.hdr.Gid = u, g; return e }
func (e ent) at(t time.Time) ent {
	e.hdr.ModTime, e.hdr.Format = t, tar.FormatPAX // others have no fractions
	return e
}

func (e ent) pax(kv ...string) ent {
	m := map[string]string{}
	for k, v := range e.hdr.PAXRecords {
		m[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	e.hdr.PAXRecords = m
	return e
}

func (e ent) xattr(k, v string) ent { return e.pax("SCHILY.xattr."+k, v) }

func mk(flag byte, name string, mode int64) ent {
	return ent{hdr: tar.Header{Typeflag: flag, Name: name, Mode: mode}}
}

func file(name, body string) ent {
	e := mk(tar.TypeReg, name, 0o644)
	e.hdr.Size, e.body = int64(len(body)), body
	return e
}

func dir(name string) ent { return mk(tar.TypeDir, name+"/", 0o755) }

func sym(name, target string) ent {
	return mk(tar.TypeSymlink, name, 0o777).with(func(h *tar.Header) { h.Linkname = target })
}

func hard(name, target string) ent {
	return mk(tar.TypeLink, name, 0o644).with(func(h *tar.Header) { h.Linkname = target })
}

func dev(flag byte, name string, major, minor int64) ent {
	return mk(flag, name, 0o644).with(func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
}

// raw is a header block made by hand, which Go's writer would refuse to make.
func raw(flag byte, name, linkname string, fields map[int]string, body string) ent {
	b := make([]byte, 512)
	put := func(at int, s string) { copy(b[at:], s) }
	put(0, name)
	put(100, "0000644\x00")
	put(108, "0000000\x00")
	put(116, "0000000\x00")
	put(124, fmt.Sprintf("%011o\x00", len(body)))
	put(136, "00000000000\x00")
	b[156] = flag
	put(157, linkname)
	put(257, "ustar\x0000")
	put(329, "0000000\x00")
	put(337, "0000000\x00")
	for at, s := range fields {
		put(at, s)
	}
	put(148, "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, body...)
	return ent{raw: append(b, make([]byte, (512-len(body)%512)%512)...)}
}

// paxed is raw after a PAX header with records as they are.
func paxed(records []string, e ent) ent {
	var text strings.Builder
	for i := 0; i < len(records); i += 2 {
		rest := len(records[i]) + len(records[i+1]) + 3
		n := rest + len(fmt.Sprint(rest))
		n = rest + len(fmt.Sprint(n))
		fmt.Fprintf(&text, "%d %s=%s\n", n, records[i], records[i+1])
	}
	h := raw('x', "pax", "", nil, text.String())
	return ent{raw: append(h.raw, e.raw...)}
}

// tarOf makes a tar with end blocks.
func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	return append(openTar(t, entries...), make([]byte, 1024)...)
}

// openTar makes a tar without end blocks.
func openTar(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		if e.raw != nil {
			b.Write(e.raw)
			continue
		}
		w := tar.NewWriter(&b)
		h := e.hdr
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("write %q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// layersOf makes layers of plain tars, called L1, L2 and so on.
func layersOf(tars ...[]byte) []flatten.Layer {
	var all []flatten.Layer
	for i, b := range tars {
		all = append(all, flatten.Layer{
			Name:   fmt.Sprintf("L%d", i+1),
			DiffID: digest(b),
			Open:   func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		})
	}
	return all
}

// try flattens, checks that nothing has leaked, and writes down the tree.
func try(t testing.TB, limits flatten.Limits, layers ...flatten.Layer) (string, flatten.Stats, error) {
	t.Helper()
	s := newSink(t)
	root, stats, err := flatten.Flatten(t.Context(), layers, s, limits, nil)
	s.check(t, root)
	if err != nil {
		if root != nil {
			t.Error("a tree came with an error")
		}
		return "", stats, err
	}
	return s.render(root), stats, nil
}

// outcome is what is to become of an image: a tree, or an error of a class which
// says all of some things.
type outcome struct {
	tree  string
	class error
	says  []string
}

func tree(lines ...string) outcome { return outcome{tree: strings.Join(lines, "\n")} }

func refused(class error, says ...string) outcome { return outcome{class: class, says: says} }

func (o outcome) check(t *testing.T, got string, err error) {
	t.Helper()
	if o.class == nil {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		if got != o.tree {
			t.Errorf("the tree is\n%s\nwanted\n%s", got, o.tree)
		}
		return
	}
	if err == nil {
		t.Fatalf("not refused; the tree is\n%.2000s", got)
	}
	if !errors.Is(err, o.class) {
		t.Errorf("%v: not of class %v", err, o.class)
	}
	for _, s := range o.says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v: does not say %q", err, s)
		}
	}
}
