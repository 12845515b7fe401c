package flatten_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/flatten"
)

// model is a filesystem as simple as can be: a map of paths, in which each operation
// looks at all of them. It knows the rules by another way than the package.
type model struct {
	at    map[string]*node // without the root
	layer int
}

type node struct {
	kind   byte // 'd', 'f', 'l'
	text   string
	layers map[string]int // of a name of it: which layer has put it there
}

var errModel = errors.New("refused")

// resolve follows all links in a path, one after the other.
func (m *model) resolve(p string) (string, error) {
	real, rest := "", strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			real = strings.TrimPrefix(path.Dir("/"+real), "/")
			continue
		}
		next := path.Join(real, name)
		n := m.at[next]
		switch {
		case n == nil:
			// What is missing has no links; as text it may lead back to what is not.
			all := append([]string{name}, rest...)
			clean := path.Clean(strings.Join(all, "/"))
			if clean == strings.Join(all, "/") {
				return path.Join(real, clean), nil
			}
			rest = strings.Split(clean, "/")
		case n.kind == 'd':
			real = next
		case n.kind == 'l':
			if links++; links > 255 {
				return "", errModel
			}
			if strings.HasPrefix(n.text, "/") {
				real = ""
			}
			rest = append(strings.Split(n.text, "/"), rest...)
		default:
			return "", errModel
		}
	}
	return real, nil
}

func (m *model) parent(p string) (string, error) {
	d, err := m.resolve(path.Dir(p))
	if err != nil {
		return "", err
	}
	for i := range d + "/" {
		if i == len(d) || d[i] == '/' {
			if i > 0 && m.at[d[:i]] == nil {
				m.put(d[:i], &node{kind: 'd', layers: map[string]int{}})
			}
		}
	}
	return d, nil
}

func (m *model) put(p string, n *node) {
	m.at[p] = n
	n.layers[p] = m.layer
}

func (m *model) removeAll(p string) {
	for q, n := range m.at {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(m.at, q)
			delete(n.layers, q)
		}
	}
}

func (m *model) apply(e ent) error {
	name := strings.TrimSuffix(e.hdr.Name, "/")
	d, err := m.parent(name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if base == ".wh..wh..opq" {
		m.opaque(d)
		return nil
	}
	if gone, ok := strings.CutPrefix(base, ".wh."); ok {
		m.removeAll(path.Join(d, gone))
		return nil
	}
	p := path.Join(d, base)
	if old := m.at[p]; old != nil && old.kind == 'd' && e.hdr.Typeflag == '5' {
		old.layers[p] = m.layer
		return nil
	}
	m.removeAll(p)
	n := &node{layers: map[string]int{}}
	switch e.hdr.Typeflag {
	case '5':
		n.kind = 'd'
	case '0':
		n.kind, n.text = 'f', e.body
	case '2':
		n.kind, n.text = 'l', e.hdr.Linkname
	case '1':
		to, err := m.resolve(path.Dir(e.hdr.Linkname))
		if err != nil {
			return err
		}
		n = m.at[path.Join(to, path.Base(e.hdr.Linkname))]
		if n == nil || n.kind == 'd' {
			return errModel
		}
	}
	m.put(p, n)
	return nil
}

// opaque removes below d whatever is of a lower layer and has nothing of this one in it.
func (m *model) opaque(d string) {
	kept := func(p string) bool {
		for q, n := range m.at {
			if (q == p || strings.HasPrefix(q, p+"/")) && n.layers[q] == m.layer {
				return true
			}
		}
		return false
	}
	for p := range m.at {
		if (d == "" || strings.HasPrefix(p, d+"/")) && !kept(p) {
			delete(m.at[p].layers, p)
			delete(m.at, p)
		}
	}
}

func (m *model) render() string {
	var lines []string
	first := map[*node]string{}
	paths := make([]string, 0, len(m.at))
	for p := range m.at {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		n := m.at[p]
		line := p + map[byte]string{'d': "/", 'f': "=", 'l': "->"}[n.kind] + n.text
		if f, ok := first[n]; ok {
			line += " &" + f
		} else {
			first[n] = p
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// script makes layers of any bytes: few names, so that entries meet, and in one of
// the directories many.
func script(b []byte) layers {
	next := func() int {
		if len(b) == 0 {
			return 0
		}
		c := b[0]
		b = b[1:]
		return int(c)
	}
	flat := next()%2 == 1
	where := func() string {
		p := ""
		if c := next(); flat && c%8 > 0 {
			return fmt.Sprint("n", c) // in one large directory
		}
		for range next() % 4 {
			p += []string{"a", "b", "c", "d"}[next()%4] + "/"
		}
		if next()%3 == 0 {
			return p + fmt.Sprint("n", next())
		}
		return p + []string{"a", "b", "c", "d"}[next()%4]
	}
	all := layers{{}}
	for i := 0; len(b) > 0 && i < 1500; i++ {
		var e ent
		switch c := next() % 32; {
		case c < 8:
			e = file(where(), fmt.Sprint("content ", i))
		case c < 13:
			e = dir(where())
		case c < 18:
			e = sym(where(), []string{"", "/", "../", "../../", "./", "b/../"}[next()%6]+where())
		case c < 23:
			e = hard(where(), where())
		case c < 27:
			p := where()
			e = file(path.Join(path.Dir(p), ".wh."+path.Base(p)), "")
		case c < 29:
			e = file(path.Join(where(), ".wh..wh..opq"), "")
		default:
			if len(all) < 5 {
				all = append(all, nil)
			}
			continue
		}
		all[len(all)-1] = append(all[len(all)-1], e)
	}
	return all
}

// agree flattens what a script makes, and does the same with the model. Scripts seldom
// get far before something is refused, so what the model refuses is left out, but for
// the last if there is an odd number of bytes.
func agree(t *testing.T, b []byte) (entries int) {
	t.Helper()
	m := &model{at: map[string]*node{}}
	var tars [][]byte
	want := outcome{}
	for i, l := range script(b) {
		m.layer = i + 1
		var kept []ent
		for _, e := range l {
			if want.class != nil {
				break
			}
			before := m.clone()
			err := m.apply(e)
			if err == nil || len(b)%2 == 1 {
				kept = append(kept, e)
			}
			switch {
			case err != nil && len(b)%2 == 1:
				want = refused(invalid, fmt.Sprint("layer L", i+1))
			case err != nil:
				m = before
			}
		}
		entries += len(kept)
		tars = append(tars, tarOf(t, kept...))
	}
	if want.class == nil {
		want.tree = m.render()
	}
	got, _, err := try(t, flatten.Limits{}, layersOf(tars...)...)
	want.check(t, got, err)
	return entries
}

func (m *model) clone() *model {
	c := &model{at: map[string]*node{}, layer: m.layer}
	copies := map[*node]*node{}
	for p, n := range m.at {
		if copies[n] == nil {
			l := map[string]int{}
			for q, i := range n.layers {
				l[q] = i
			}
			copies[n] = &node{n.kind, n.text, l}
		}
		c.at[p] = copies[n]
	}
	return c
}

func TestModelAgrees(t *testing.T) {
	entries := 0
	for seed := range uint64(120) {
		rng := rand.New(rand.NewPCG(seed, 0))
		b := make([]byte, 200+rng.IntN(1500))
		if seed%4 == 0 {
			b = make([]byte, 4000)
		}
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		entries += agree(t, b)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
	if entries < 10_000 {
		t.Errorf("only %d entries in all", entries)
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("0123456789 some script"))
	f.Fuzz(func(t *testing.T, b []byte) { agree(t, b) })
}
