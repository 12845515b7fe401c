package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// prose are the words that follow "banger" where no command is meant.
var prose = map[string]bool{
	"is": true, "was": true, "to": true, "gives": true, "itself": true, "never": true, "needs": true,
	"knows": true, "speaks": true, "and": true, "as": true, "daemon:": true, "VM;": true, "(`make": true, "%s": true, "{{.Version}}": true,
	"initramfs": true, "modules": true, // of hashes
}

// mention is "banger" as a program's name in a text, and what follows it.
var mention = regexp.MustCompile(`(?:^|[^\w/.-])banger ([^\n]*)`)

// What errors and hints tell people to run must be there to be run.
func TestCommandsInTextsExist(t *testing.T) {
	root := newRootCmd(newApp(os.Stdin, os.Stdout, os.Stderr))
	fset, seen := token.NewFileSet(), 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			for text != "" && err == nil {
				at := mention.FindStringSubmatchIndex(text)
				if at == nil {
					break
				}
				rest := text[at[2]:at[3]]
				if word, _, _ := strings.Cut(rest, " "); !prose[word] {
					seen++
					if problem := misspelt(root, rest); problem != "" {
						t.Errorf("%s: \"banger %s\": %s", fset.Position(lit.Pos()), rest, problem)
					}
				}
				text = text[at[2]:]
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("only %d commands were found", seen)
	}
}

// What the command line itself refuses comes with what to try.
func TestErrorsOfTheCLIHaveHints(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	constructors := map[string]bool{}
	for _, name := range []string{"Invalid", "NotFound", "AlreadyExists", "Precondition", "Unavailable", "Exhausted", "Permission", "Unsupported"} {
		constructors[name] = true
	}
	fset, hinted, found := token.NewFileSet(), map[ast.Expr]bool{}, 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "errors.go" { // that adds the hint later
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool { // what a call is made on comes after the call
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if sel.Sel.Name == "WithHint" {
				hinted[sel.X] = true
			}
			if from, ok := sel.X.(*ast.Ident); !ok || from.Name != "errdefs" || !constructors[sel.Sel.Name] {
				return true
			}
			found++
			if !hinted[call] {
				t.Errorf("%s: an error with nothing to try", fset.Position(call.Pos()))
			}
			return true
		})
	}
	if found < 20 {
		t.Errorf("only %d errors were found", found)
	}
}

// misspelt says what is wrong with the command line that text begins with.
func misspelt(c *cobra.Command, text string) string {
	for word := range strings.SplitSeq(text, " ") {
		bare := strings.TrimRight(word, ".,:;)`'\"")
		switch {
		case bare == "-":
		case bare == "--" || bare == "|" || bare == "" || strings.HasPrefix(bare, "$("):
			return ""
		case strings.HasPrefix(bare, "-"):
			name, _, _ := strings.Cut(strings.TrimLeft(bare, "-"), "=")
			long := strings.HasPrefix(bare, "--")
			if long && c.Flag(name) == nil || !long && c.Flags().ShorthandLookup(name[:1]) == nil {
				return c.CommandPath() + " has no flag " + bare
			}
		case c.HasSubCommands():
			sub, _, err := c.Find([]string{bare})
			if err != nil || sub == c {
				return c.CommandPath() + " has no command " + bare
			}
			c = sub
		}
		if bare != word {
			return ""
		}
	}
	return ""
}
