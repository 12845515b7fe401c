package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	root   = "../.." // of the repository
	module = "banger/"
)

// file is one parsed Go file.
type file struct {
	path      string // relative to the root, with slashes
	pkg       string // import path without the module, e.g. "internal/model"
	test      bool
	generated bool
	lines     int
	ast       *ast.File
	imports   map[string]string // import path by the name it has in the file
}

// tree is everything the tests look at; made once.
type tree struct {
	fset  *token.FileSet
	files []file
}

var load = sync.OnceValues(func() (tree, error) {
	t := tree{fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(path, root+"/"))
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata" || rel == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		f, err := t.parse(path, rel)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an editor's temporary file, gone again
		}
		t.files = append(t.files, f)
		return err
	})
	return t, err
})

func (t *tree) parse(path, rel string) (file, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return file{}, err
	}
	parsed, err := parser.ParseFile(t.fset, rel, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return file{}, err
	}
	f := file{
		path: rel, pkg: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"),
		generated: ast.IsGenerated(parsed), lines: bytes.Count(src, []byte("\n")), ast: parsed, imports: map[string]string{},
	}
	for _, spec := range parsed.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		name := importPath[strings.LastIndex(importPath, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "_" || name == "." {
			name += importPath // may stand there more than once
		}
		f.imports[name] = importPath
	}
	return f, nil
}

// goFiles returns the files of the project that people wrote.
func goFiles(t *testing.T) ([]file, *token.FileSet) {
	t.Helper()
	tr, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var written []file
	for _, f := range tr.files {
		if !f.generated {
			written = append(written, f)
		}
	}
	if len(written) < 10 {
		t.Fatalf("only %d files found: is the root right?", len(written))
	}
	return written, tr.fset
}

// uses reports every use in f of a function or value of package importPath, by name.
func (f file) uses(importPath string, report func(name string, at token.Pos)) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && f.imports[x.Name] == importPath {
			report(sel.Sel.Name, sel.Pos())
		}
		return true
	})
}

// isOf reports whether x is something that package importPath exports.
func (f file) isOf(x ast.Expr, importPath string) bool {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && f.imports[pkg.Name] == importPath
}

// deps returns all packages, of the standard library too, that a package is built from.
func deps(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath", "./"+pkg)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("list dependencies of %s: %v: %s", pkg, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	all := map[string]bool{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ ImportPath string }
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = true
	}
}

// within reports whether pkg is dir or below it.
func within(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func withinAny(pkg string, dirs ...string) bool {
	for _, d := range dirs {
		if within(pkg, d) {
			return true
		}
	}
	return false
}
