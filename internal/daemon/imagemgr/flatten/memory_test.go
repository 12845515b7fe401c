package flatten_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"testing"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
)

// gauge is a sink that looks at the memory whenever something is freed, which is when
// layers are merged and nothing else goes on.
type gauge struct {
	w    *ext4.Writer
	peak uint64
}

func (g *gauge) Write(ctx context.Context, r io.Reader, size int64) (ext4.Data, error) {
	return g.w.Write(ctx, r, size)
}

func (g *gauge) Free(d ext4.Data) {
	g.peak = max(g.peak, live())
	g.w.Free(d)
}

// manyFiles is a tar of n small files, so many in a directory, of names that do not
// repeat, as it is read: it is never in memory as a whole.
type manyFiles struct {
	n, next int
	each    int // in a directory
	buf     bytes.Buffer
	rng     *rand.Rand
}

func (m *manyFiles) Close() error { return nil }

func (m *manyFiles) Read(p []byte) (int, error) {
	for m.buf.Len() < len(p) && m.next < m.n {
		at := fmt.Sprintf("usr/lib/node_modules/package-%d/dist/part-%d", m.next/m.each/10, m.next/m.each)
		if m.next%m.each == 0 {
			m.buf.Write(raw('5', at+"/", "", nil, "").raw)
		}
		m.buf.Write(raw('0', fmt.Sprintf("%s/module-%x.js", at, m.rng.Uint32()), "", nil, "x").raw)
		if m.next++; m.next%(m.n/10) == 0 {
			// Of two with one name one is freed.
			m.buf.Write(raw('0', "twice", "", nil, "x").raw)
		}
	}
	return m.buf.Read(p)
}

// live is how much memory is in use, without what is garbage already.
func live() uint64 {
	runtime.GC()
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// TestMemory: what a file costs, while layers are read and merged, and then in the tree.
func TestMemory(t *testing.T) {
	const n = 100_000
	for _, each := range []int{25, n / 5} {
		before := live()
		w, err := ext4.New(nowhere{}, ext4.Options{Size: 16 << 30})
		if err != nil {
			t.Fatal(err)
		}
		g := &gauge{w: w}
		m := &manyFiles{n: n, each: each, rng: rand.New(rand.NewPCG(1, 2))}
		root, stats, err := flatten.Flatten(t.Context(), []flatten.Layer{{Name: "L1", Open: func(context.Context) (io.ReadCloser, error) { return m, nil }}},
			g, flatten.Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		after := live()
		perFile := func(bytes uint64) float64 { return float64(bytes-before) / float64(stats.Entries) }
		t.Logf("%d entries, %d in a directory: at most %.0f bytes for each, then %.0f in the tree", stats.Entries, each, perFile(g.peak), perFile(after))
		if perFile(g.peak) > 300 {
			t.Error("more than 0.3 kB for a file")
		}
		runtime.KeepAlive(root)
	}
}
