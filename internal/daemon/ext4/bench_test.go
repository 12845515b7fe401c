package ext4

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// benchTree describes 20,000 files of 300 MB in 1,000 directories.
func benchTree(do func(dir, name string, size int)) {
	for i := range 20_000 {
		size := 3000 + i%100*200
		if i%2000 == 0 {
			size = 9 << 20
		}
		do(fmt.Sprintf("d%d/e%d", i/400, i/20%20), fmt.Sprintf("file%d", i), size)
	}
}

func BenchmarkTree(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("writers=%d", workers), func(b *testing.B) {
			content := pattern(9<<20, 1)
			for b.Loop() {
				writeBenchTree(b, filepath.Join(b.TempDir(), "disk"), content, workers)
			}
		})
	}
}

func writeBenchTree(b *testing.B, path string, content []byte, workers int) {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w, err := New(f, fixed(10<<30))
	if err != nil {
		b.Fatal(err)
	}
	dirs := map[string]*Inode{}
	root := dir()
	type job struct {
		n    *Inode
		size int
	}
	var jobs []job
	benchTree(func(name, base string, size int) {
		d := dirs[name]
		if d == nil {
			d = dir()
			dirs[name] = d
			outer := dirs[filepath.Dir(name)]
			if outer == nil {
				outer = dir()
				dirs[filepath.Dir(name)] = outer
				root.Children = append(root.Children, Node{filepath.Dir(name), outer})
			}
			outer.Children = append(outer.Children, Node{filepath.Base(name), d})
		}
		n := file(Data{})
		jobs = append(jobs, job{n, size})
		d.Children = append(d.Children, Node{base, n})
	})
	var all sync.WaitGroup
	for k := range workers {
		all.Go(func() {
			for i := k; i < len(jobs); i += workers {
				d, err := w.Write(context.Background(), bytes.NewReader(content[:jobs[i].size]), int64(jobs[i].size))
				if err != nil {
					b.Error(err)
					return
				}
				jobs[i].n.Data = d
			}
		})
	}
	all.Wait()
	if err := w.Finish(context.Background(), root); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkMke2fs is the same tree by mke2fs, from a directory that is there already.
func BenchmarkMke2fs(b *testing.B) {
	path, err := exec.LookPath("/usr/sbin/mke2fs")
	if err != nil {
		b.Skip(err)
	}
	tree := b.TempDir()
	content := pattern(9<<20, 1)
	benchTree(func(dir, name string, size int) {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, dir, name), content[:size], 0o644); err != nil {
			b.Fatal(err)
		}
	})
	for b.Loop() {
		out, err := exec.Command(path, "-q", "-F", "-t", "ext4", "-d", tree, filepath.Join(b.TempDir(), "disk"), "10G").CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}

// Finish needs little memory beyond the tree.
func TestMemoryOfFinish(t *testing.T) {
	const n = 60_000
	m := begin(t, Options{Size: 4 << 30, Inodes: n + 100})
	root := dir()
	for i := range n {
		if i%500 == 0 {
			root.Children = append(root.Children, Node{fmt.Sprint(i), dir()})
		}
		d := root.Children[len(root.Children)-1]
		d.Children = append(d.Children, Node{fmt.Sprint(i), &Inode{Mode: modeFile, Data: m.data(t, []byte("x"))}})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tr, err := m.number(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; per > 50 {
		t.Errorf("%d bytes for a file", per)
	}
	runtime.KeepAlive(tr)
	m.done(t, root)
}
