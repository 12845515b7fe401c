// Package kmod reads a tree of kernel modules and works out which files must be
// loaded, in which order, to have given modules. It reads the modules themselves
// (.modinfo), so it needs neither depmod nor its files.
package kmod

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/daemon/imagemgr/decompress"
)

// maxModule bounds one plain module, in bytes.
const maxModule = 256 << 20

// Tree is the module tree of one kernel, as in /lib/modules/<release>.
type Tree struct {
	dir      string
	files    map[string]string // normalised name -> path
	builtin  map[string]bool
	haveList bool // modules.builtin was there
}

// Module is one file to load.
type Module struct {
	Name string // normalised
	Path string // absolute; perhaps compressed
}

// Open indexes the tree at dir. Files are found by name; none is read yet.
func Open(dir string) (*Tree, error) {
	t := &Tree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := ModuleName(d.Name()); ok && d.Type().IsRegular() {
			t.files[name] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the list of built-in modules: %w", err)
	}
	t.haveList = err == nil
	for _, line := range strings.Fields(string(list)) {
		if name, ok := ModuleName(filepath.Base(line)); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// ModuleName returns the normalised name of a module's file: "virtio-rng.ko.xz"
// gives "virtio_rng". ok is false for other files.
func ModuleName(file string) (name string, ok bool) {
	for _, ext := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if base, found := strings.CutSuffix(file, ext); found && base != "" {
			return Normalise(base), true
		}
	}
	return "", false
}

// Len is how many modules the tree has.
func (t *Tree) Len() int { return len(t.files) }

// Builtin reports whether the kernel itself has the module. A tree without a
// list of built-in modules answers true for every module it has no file of.
func (t *Tree) Builtin(name string) bool {
	name = Normalise(name)
	return t.builtin[name] || !t.haveList && t.files[name] == ""
}

// Has reports whether the module has a file.
func (t *Tree) Has(name string) bool { return t.files[Normalise(name)] != "" }

// Order returns the files that load the wanted modules, dependencies first, each
// once. Built-in modules need no file. A wanted module, or one it depends on,
// that is nowhere is an error that wraps fs.ErrNotExist.
func (t *Tree) Order(wanted ...string) ([]Module, error) {
	var out []Module
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = Normalise(name)
		path := t.files[name]
		switch {
		case state[name] == 2:
			return nil
		case state[name] == 1:
			return fmt.Errorf("module %s depends on itself", name)
		case path == "" && t.Builtin(name):
			return nil
		case path == "":
			return fmt.Errorf("module %s%s: %w", name, by, fs.ErrNotExist)
		}
		state[name] = 1
		data, err := Read(path)
		if err != nil {
			return err
		}
		info, err := ReadInfo(bytes.NewReader(data))
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, dep := range info.Depends {
			if err := visit(dep, ", needed by "+name); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, Module{Name: name, Path: path})
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Read returns a module's plain content, unpacked when its file is compressed.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open module: %w", err)
	}
	defer f.Close()
	data, err := Plain(f)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", filepath.Base(path), err)
	}
	return data, nil
}

// Plain reads all of a module from r and unpacks it when it is compressed.
func Plain(r io.Reader) ([]byte, error) {
	raw, err := readAll(r)
	if err != nil || decompress.Detect(raw) == "" {
		return raw, err
	}
	z, err := decompress.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return readAll(z)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(data) > maxModule {
		err = fmt.Errorf("it has more than %d bytes", maxModule)
	}
	return data, err
}
