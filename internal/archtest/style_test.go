package archtest

import (
	"errors"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// maxLines is how long a file may be.
const maxLines = 600

// maxMain is how long all of a main package may be; the rest is testable elsewhere.
const maxMain = 60

// sleeps lists the files that may call time.Sleep, and why.
var sleeps = map[string]string{}

// What may be used where. Tests may start programs: they are
// the ones that drive the real thing.
var (
	mayExec  = []string{"internal/sysexec", "tools", "bench"}
	mayPrint = []string{"internal/cli", "cmd", "kernels", "tools", "bench"}
	mayExit  = []string{"cmd", "kernels", "tools", "bench"}
)

// exits lists the other files that may call os.Exit, and why.
var exits = map[string]string{
	"internal/cli/vm_run.go": "a second interrupt means now, and the daemon cleans up without us",
}

func TestCalls(t *testing.T) {
	files, fset := goFiles(t)
	for _, f := range files {
		complain := func(at token.Pos, what string) {
			t.Errorf("%s:%d: %s", f.path, fset.Position(at).Line, what)
		}
		if f.imports["exec"] == "os/exec" && !f.test && !withinAny(f.pkg, mayExec...) {
			complain(f.ast.Package, "os/exec; start programs through internal/sysexec")
		}
		if f.imports["log"] == "log" {
			complain(f.ast.Package, "package log; use the *slog.Logger that was handed in")
		}
		f.uses("time", func(name string, at token.Pos) {
			if name == "Sleep" && sleeps[f.path] == "" {
				complain(at, "time.Sleep; wait for what is meant to happen")
			}
		})
		f.uses("context", func(name string, at token.Pos) {
			if name == "TODO" {
				complain(at, "context.TODO; take the context of the request, the operation or the daemon")
			}
		})
		if f.test {
			continue
		}
		f.uses("fmt", func(name string, at token.Pos) {
			if strings.HasPrefix(name, "Print") && !withinAny(f.pkg, mayPrint...) {
				complain(at, "fmt."+name+"; only the CLI prints")
			}
		})
		f.uses("os", func(name string, at token.Pos) {
			if name == "Exit" && !withinAny(f.pkg, mayExit...) && exits[f.path] == "" {
				complain(at, "os.Exit; return an error, main exits")
			}
		})
		f.uses("log/slog", func(name string, at token.Pos) {
			switch strings.TrimSuffix(name, "Context") {
			case "Debug", "Info", "Warn", "Error", "Log", "Default", "SetDefault":
				complain(at, "slog."+name+"; use the logger that was handed in")
			}
		})
	}
}

// logged are the methods of a *slog.Logger, and which argument is the first key.
var logged = map[string]int{
	"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0,
	"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2,
}

// TestLogLines keeps the host's log lines together: the keys are those of package
// logkey, and where there is a context it is handed over, for it knows the operation.
func TestLogLines(t *testing.T) {
	files, fset := goFiles(t)
	seen := 0
	for _, f := range files {
		if f.test || !within(f.pkg, "internal") || within(f.pkg, "internal/guest/agent") {
			continue
		}
		var walk func(n ast.Node, hasContext bool)
		walk = func(n ast.Node, hasContext bool) {
			ast.Inspect(n, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Body != nil {
						walk(n.Body, takesContext(n.Type))
					}
					return false
				case *ast.FuncLit:
					walk(n.Body, hasContext || takesContext(n.Type))
					return false
				case *ast.CallExpr:
					sel, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || !strings.EqualFold(lastName(sel.X), "log") {
						return true
					}
					first, ok := logged[sel.Sel.Name]
					if !ok {
						return true
					}
					seen++
					line := fset.Position(n.Pos()).Line
					if hasContext && first == 1 {
						t.Errorf("%s:%d: log.%s where there is a context; use %[3]sContext", f.path, line, sel.Sel.Name)
					}
					for i := first; i < len(n.Args); i += 2 {
						if !f.isOf(n.Args[i], module+"internal/logkey") {
							t.Errorf("%s:%d: a log key that is not of package logkey", f.path, line)
						}
					}
				}
				return true
			})
		}
		walk(f.ast, false)
	}
	if seen < 20 {
		t.Errorf("only %d log lines found: is the test looking for the right thing?", seen)
	}
}

// lastName is the name an expression ends with: "log" of s.deps.log.
func lastName(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	}
	return ""
}

// takesContext reports whether a function has a parameter called ctx.
func takesContext(f *ast.FuncType) bool {
	for _, field := range f.Params.List {
		for _, name := range field.Names {
			if name.Name == "ctx" {
				return true
			}
		}
	}
	return false
}

var failedTo = regexp.MustCompile(`^(failed to|unable to|could not|cannot [a-z]+ the error)\b`)

func TestErrorTexts(t *testing.T) {
	files, fset := goFiles(t)
	for _, f := range files {
		if f.test {
			continue
		}
		check := func(call *ast.CallExpr) {
			for _, arg := range call.Args {
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				if text, err := strconv.Unquote(lit.Value); err == nil && failedTo.MatchString(text) {
					t.Errorf("%s:%d: %q: say what was done, as in \"open disk: …\"", f.path, fset.Position(lit.Pos()).Line, text)
				}
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && (sel.Sel.Name == "Errorf" || x.Name == "errors" || x.Name == "errdefs") {
					check(call)
				}
			}
			return true
		})
	}
}

// TestEveryFailureHasAFix finds results of doctor's checks that leave the user alone.
func TestEveryFailureHasAFix(t *testing.T) {
	files, fset := goFiles(t)
	for _, f := range files {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 || f.test {
				return true
			}
			name := ""
			switch fun := call.Fun.(type) {
			case *ast.Ident:
				if f.pkg == "internal/doctor" {
					name = fun.Name
				}
			case *ast.SelectorExpr:
				if x, ok := fun.X.(*ast.Ident); ok && f.imports[x.Name] == module+"internal/doctor" {
					name = fun.Sel.Name
				}
			}
			lit, ok := call.Args[0].(*ast.BasicLit)
			if (name == "Fail" || name == "Warn" || name == "FailErr") && ok && lit.Value == `""` {
				t.Errorf("%s:%d: doctor.%s without a fix; say what to do", f.path, fset.Position(call.Pos()).Line, name)
			}
			return true
		})
	}
}

func TestNoInitFunctions(t *testing.T) {
	files, fset := goFiles(t)
	for _, f := range files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s:%d: func init; wire it in the composition root, where it can be seen", f.path, fset.Position(fn.Pos()).Line)
			}
		}
	}
}

func TestFileLength(t *testing.T) {
	files, _ := goFiles(t)
	mains := map[string]int{}
	for _, f := range files {
		if f.lines > maxLines {
			t.Errorf("%s has %d lines, more than %d", f.path, f.lines, maxLines)
		}
		if within(f.pkg, "cmd") && !f.test {
			mains[f.pkg] += f.lines
		}
	}
	for pkg, lines := range mains {
		if lines > maxMain {
			t.Errorf("%s: package main has %d lines, more than %d", pkg, lines, maxMain)
		}
	}
}

var marker = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)

func TestNoMarkers(t *testing.T) {
	const instead = "do it, or say in docs/decisions.md why not"
	files, fset := goFiles(t)
	for _, f := range files {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := marker.FindString(c.Text); m != "" && f.pkg != "internal/archtest" {
					t.Errorf("%s:%d: %s; %s", f.path, fset.Position(c.Pos()).Line, m, instead)
				}
			}
		}
	}
	others := 0
	for _, dir := range []string{".ci", "docs", "examples", "internal", "scripts", "test", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".go") {
				return err
			}
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // an editor's temporary file, gone again
			}
			others++
			n := 0
			for line := range strings.Lines(string(text)) {
				n++
				if m := marker.FindString(line); m != "" {
					t.Errorf("%s:%d: %s; %s", strings.TrimPrefix(path, root+"/"), n, m, instead)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if others < 40 {
		t.Errorf("only %d files that are not Go were looked at", others)
	}
}

func TestOnePackageComment(t *testing.T) {
	files, _ := goFiles(t)
	found := map[string][]string{}
	for _, f := range files {
		if f.test {
			continue
		}
		list := found[f.pkg] // an entry even for a package without one
		if f.ast.Doc != nil {
			list = append(list, f.path)
			text := f.ast.Doc.Text()
			if name := f.ast.Name.Name; name != "main" && !strings.HasPrefix(text, "Package "+name+" ") {
				t.Errorf("%s: the package comment must start with \"Package %s\"", f.path, name)
			}
		}
		found[f.pkg] = list
	}
	for pkg, where := range found {
		if len(where) != 1 {
			t.Errorf("%s: package comments in %d files %v, want exactly one", pkg, len(where), where)
		}
	}
}
