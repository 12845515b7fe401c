package workspace_test

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/workspace"
)

// contents are the files of a tree but for .git, with what is in them.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			all[rel] = "-> " + target
			return err
		}
		b, err := os.ReadFile(path)
		all[rel] = fmt.Sprintf("%o %s", info.Mode().Perm(), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBothSides edits both sides at random. A sync without force either changes nothing and
// names only what both sides changed, or keeps everything that the guest changed and brings
// everything else to what the host has. With force the host's changes win.
func TestBothSides(t *testing.T) {
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { bothSides(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

// poke changes files at random, without git.
func poke(r *rand.Rand, dir string) {
	for range 1 + r.IntN(3) {
		name := filepath.Join(dir, randomNames[r.IntN(len(randomNames))])
		switch r.IntN(4) {
		case 0:
			_ = os.RemoveAll(name)
		case 1:
			_ = os.RemoveAll(name)
			if os.MkdirAll(filepath.Dir(name), 0o755) == nil {
				_ = os.Symlink("a", name)
			}
		default:
			if st, err := os.Lstat(name); err == nil && !st.Mode().IsRegular() {
				_ = os.RemoveAll(name)
			}
			if os.MkdirAll(filepath.Dir(name), 0o755) == nil {
				_ = os.WriteFile(name, []byte(strings.Repeat(fmt.Sprintln(r.IntN(4)), r.IntN(5))), 0o644)
			}
		}
	}
}

// differing are the names that are not the same in two trees.
func differing(a, b map[string]string) map[string]bool {
	names := map[string]bool{}
	for name := range a {
		if b[name] != a[name] {
			names[name] = true
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names[name] = true
		}
	}
	return names
}

func bothSides(t *testing.T, r *rand.Rand) {
	repo, g := t.TempDir(), newGuest(t)
	git(t, repo, "init", "-q", "-b", "main")
	for _, name := range randomNames {
		if r.IntN(2) == 0 && os.MkdirAll(filepath.Join(repo, filepath.Dir(name)), 0o755) == nil {
			_ = os.WriteFile(filepath.Join(repo, name), []byte(name), 0o644)
		}
	}
	write(t, repo, "base", "base\n")
	git(t, repo, "add", "-A")
	git(t, repo, "commit", "-q", "-m", "first")
	opts := workspace.Options{Depth: 5}
	g.put(t, repo, opts, false)
	for range 6 {
		sent := contents(t, g.dir) // what both sides have had, or the guest's own since
		hostWas := contents(t, repo)
		poke(r, g.dir)
		poke(r, repo)
		guestHas, hostHas := contents(t, g.dir), contents(t, repo)
		guestChanged, hostChanged := differing(sent, guestHas), differing(hostWas, hostHas)
		_, conflicts := g.put(t, repo, opts, false)
		now := contents(t, g.dir)
		if len(conflicts) > 0 {
			if !maps.Equal(now, guestHas) {
				t.Fatalf("there are conflicts (%v), and something was changed: %v", conflicts, differing(now, guestHas))
			}
			g.put(t, repo, opts, true)
			for name := range hostChanged {
				if got := contents(t, g.dir)[name]; got != hostHas[name] {
					t.Fatalf("forced: %q is %q, and on the host %q", name, got, hostHas[name])
				}
			}
			continue
		}
		for name := range guestChanged {
			if !hostChanged[name] && now[name] != guestHas[name] {
				t.Fatalf("%q, which only the guest changed, is %q and was %q", name, now[name], guestHas[name])
			}
		}
		for name := range hostChanged {
			if now[name] != hostHas[name] {
				t.Fatalf("%q, which the host changed, is %q and there %q", name, now[name], hostHas[name])
			}
		}
	}
}
