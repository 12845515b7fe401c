package workspace

import (
	"context"
	"os"
	"path"
	"path/filepath"

	"banger/internal/guest/ignore"
)

// plainRules are those of a directory that is no repository.
type plainRules struct {
	all     bool     // none count
	include []string // globs of what is sent although it is ignored
	found   bool     // there are rules
	stack   ignore.Stack
}

// enter takes the rules of a directory, and returns what takes them back.
func (r *plainRules) enter(root, dir string) (leave func(), err error) {
	n := r.stack.Len()
	for _, name := range []string{".gitignore", ".bangerignore"} { // the last counts most
		text, err := readSmall(filepath.Join(root, dir, name))
		if err != nil {
			return nil, err
		}
		if text != nil && !r.all {
			r.found = true
			r.stack.Push(dir, ignore.Parse(text))
		}
	}
	return func() { r.stack.Cut(n) }, nil
}

// out reports whether a name is left out.
func (r *plainRules) out(name string, isDir bool) bool {
	if r.all || !r.stack.Ignored(name, isDir) {
		return false
	}
	for _, glob := range r.include {
		if ignore.Match(glob, name) || isDir && ignore.MayContain(glob, name) {
			return false
		}
	}
	return true
}

// walkRules adds what is below root and not left out.
func (s *survey) walkRules(ctx context.Context, root string, rules *plainRules) error {
	return s.rulesDir(ctx, root, "", rules)
}

func (s *survey) rulesDir(ctx context.Context, root, dir string, rules *plainRules) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	leave, err := rules.enter(root, dir)
	if err != nil {
		return err
	}
	defer leave()
	children, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return pathErr(filepath.Join(root, dir), err)
	}
	for _, c := range children {
		name := path.Join(dir, c.Name())
		if rules.out(name, c.IsDir()) {
			continue
		}
		e, ok, err := lookAt(filepath.Join(root, name), name)
		if err != nil {
			return err
		}
		if !ok || !s.add(e) || !e.mode.IsDir() {
			continue
		}
		if err := s.rulesDir(ctx, root, name, rules); err != nil {
			return err
		}
	}
	return nil
}
