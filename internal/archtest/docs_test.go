package archtest

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"banger/internal/paths"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stringConsts returns the string constants of a package: name to value.
func stringConsts(t *testing.T, pkg string) map[string]string {
	t.Helper()
	files, _ := goFiles(t)
	consts := map[string]string{}
	for _, f := range files {
		if f.pkg != pkg || f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			for _, spec := range gen.Specs {
				vs := spec.(*ast.ValueSpec)
				for i, name := range vs.Names {
					if i >= len(vs.Values) {
						continue
					}
					if lit, ok := vs.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
						consts[name.Name], _ = strconv.Unquote(lit.Value)
					}
				}
			}
		}
	}
	if len(consts) == 0 {
		t.Fatalf("no string constants found in %s", pkg)
	}
	return consts
}

// firstCells returns what stands in backticks in the first cell of every table row.
func firstCells(text string) []string {
	var cells []string
	row := regexp.MustCompile("(?m)^\\| *`([^`]+)`")
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		cells = append(cells, m[1])
	}
	return cells
}

// TestPurgeKnowsTheState: what is documented to lie in a state directory is what goes
// when that is removed.
func TestPurgeKnowsTheState(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/internals.md"), "\n## In the state directory\n")
	section, _, _ = strings.Cut(section, "\n## ")
	documented := slices.DeleteFunc(firstCells(section), func(name string) bool {
		return name == paths.StagingPrefix || name == paths.CorruptSuffix // of other names
	})
	names := paths.StateNames()
	slices.Sort(documented)
	slices.Sort(names)
	if !slices.Equal(names, documented) {
		t.Errorf("paths.StateNames has %q, docs/internals.md %q", names, documented)
	}
}

func TestInternalsNamesEveryPath(t *testing.T) {
	documented := firstCells(read(t, "docs/internals.md"))
	consts := stringConsts(t, "internal/paths")
	known := map[string]bool{}
	for name, value := range consts {
		known[value] = true
		if !slices.Contains(documented, value) {
			t.Errorf("docs/internals.md has no row for `%s` (paths.%s)", value, name)
		}
	}
	for _, cell := range documented {
		if !known[cell] {
			t.Errorf("docs/internals.md has a row for `%s`, which internal/paths does not name", cell)
		}
	}
}

func TestNamesOnDiskStandInPathsOnly(t *testing.T) {
	files, fset := goFiles(t)
	names := map[string]string{}
	for name, value := range stringConsts(t, "internal/paths") {
		// Only what cannot be mistaken for an ordinary word.
		if strings.Contains(value, ".") && !strings.HasPrefix(value, ".") || strings.HasPrefix(value, "BANGER_") {
			names[value] = name
		}
	}
	for _, f := range files {
		if f.test || f.pkg == "internal/paths" || !withinAny(f.pkg, "internal", "cmd") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if v, err := strconv.Unquote(lit.Value); err == nil && names[v] != "" {
				t.Errorf("%s:%d: %q: use paths.%s", f.path, fset.Position(lit.Pos()).Line, v, names[v])
			}
			return true
		})
	}
}

func TestAPIDocsNameEveryProcedure(t *testing.T) {
	proto := read(t, "internal/api/bangerv1/banger.proto")
	pkg := regexp.MustCompile(`(?m)^package ([\w.]+);`).FindStringSubmatch(proto)[1]
	var procedures []string
	service := ""
	for _, m := range regexp.MustCompile(`(?m)^service (\w+) |^  rpc (\w+)\(`).FindAllStringSubmatch(proto, -1) {
		if m[1] != "" {
			service = m[1]
			continue
		}
		procedures = append(procedures, "/"+pkg+"."+service+"/"+m[2])
	}
	if len(procedures) < 10 {
		t.Fatalf("only %d procedures found in the schema", len(procedures))
	}
	documented := firstCells(read(t, "docs/api.md"))
	for _, p := range procedures {
		if !slices.Contains(documented, p) {
			t.Errorf("docs/api.md has no row for `%s`", p)
		}
	}
	for _, cell := range documented {
		if strings.HasPrefix(cell, "/"+pkg) && !slices.Contains(procedures, cell) {
			t.Errorf("docs/api.md has a row for `%s`, which the schema does not have", cell)
		}
	}
}

func TestAPIDocsNameEveryErrorClass(t *testing.T) {
	documented := firstCells(read(t, "docs/api.md"))
	for name, value := range stringConsts(t, "internal/errdefs") {
		if strings.HasPrefix(name, "Class") && !slices.Contains(documented, value) {
			t.Errorf("docs/api.md has no row for the error class `%s` (errdefs.%s)", value, name)
		}
	}
}

func TestArchitectureNamesEveryPackage(t *testing.T) {
	text := read(t, "docs/architecture.md")
	files, _ := goFiles(t)
	seen := map[string]bool{}
	for _, f := range files {
		short := strings.TrimPrefix(f.pkg, "internal/")
		if f.test || seen[short] || !strings.HasPrefix(f.pkg, "internal/") {
			continue
		}
		seen[short] = true
		if !strings.Contains(text, "`"+short+"`") {
			t.Errorf("docs/architecture.md does not name package `%s`", short)
		}
	}
}

// lockRow is a row of the lock table: "| 10 | vmLocks[id] | …" in the document,
// "//	10  vmLocks[id]  …" in the comment.
var lockRow = regexp.MustCompile("(?m)^(?:\\||//) *\\t? *(\\d\\d) *\\|? +`?([A-Za-z][\\w.\\[\\]]*)")

func TestLockOrderIsTheSameInBothPlaces(t *testing.T) {
	rows := func(text string) []string {
		var all []string
		for _, m := range lockRow.FindAllStringSubmatch(text, -1) {
			all = append(all, m[1]+" "+m[2])
		}
		slices.Sort(all)
		return all
	}
	doc, code := rows(read(t, "docs/locking.md")), rows(read(t, "internal/daemon/locks.go"))
	if len(doc) < 4 || !slices.Equal(doc, code) {
		t.Errorf("docs/locking.md has %q, internal/daemon/locks.go has %q", doc, code)
	}
}

// TestEveryConfigKeyIsUsed finds keys that a user may set and nothing reads.
func TestEveryConfigKeyIsUsed(t *testing.T) {
	files, _ := goFiles(t)
	var used strings.Builder
	sections := map[string][]string{}
	for _, f := range files {
		if f.test {
			continue
		}
		if f.pkg == "internal/config" {
			collectFields(f.ast, sections)
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				used.WriteString(" " + sel.Sel.Name + " ")
			}
			return true
		})
	}
	if len(sections["Config"]) == 0 {
		t.Fatal("no struct Config found in internal/config")
	}
	for section, fields := range sections {
		for _, field := range fields {
			if !strings.Contains(used.String(), " "+field+" ") {
				t.Errorf("config key %s.%s is read by nobody", section, field)
			}
		}
	}
}

// collectFields adds the fields with a yaml tag of every struct in f.
func collectFields(f *ast.File, sections map[string][]string) {
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if st, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range st.Fields.List {
				if field.Tag != nil && strings.Contains(field.Tag.Value, "yaml:") {
					sections[spec.Name.Name] = append(sections[spec.Name.Name], field.Names[0].Name)
				}
			}
		}
		return true
	})
}
