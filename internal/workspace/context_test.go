package workspace

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// sent is what of a directory goes into a stream.
func sent(t *testing.T, dir, rules string) ([]string, error) {
	t.Helper()
	ignore, err := ParseIgnore(strings.NewReader(rules))
	if err != nil {
		return nil, err
	}
	tree, err := InspectContext(t.Context(), dir, ignore)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := tree.WriteTar(t.Context(), &b, WriteOptions{}); err != nil {
		return nil, err
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		names = append(names, h.Name)
	}
}

func TestInspectContext(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"main.go", "secret.pem", "a/b/c.txt", "a/b/d.md", "a/e.txt", "vendor/x/y.go", "vendor/x/keep/z.go", "docs/README.md", "docs/other.md", ".dockerignore",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../secret.pem", filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	all := ".dockerignore a/ a/b/ a/b/c.txt a/b/d.md a/e.txt a/link docs/ docs/README.md docs/other.md main.go secret.pem vendor/ vendor/x/ vendor/x/keep/ vendor/x/keep/z.go vendor/x/y.go"
	without := func(gone ...string) string {
		var left []string
		for _, name := range strings.Fields(all) {
			kept := true
			for _, g := range gone {
				kept = kept && name != g && !(strings.HasSuffix(g, "/") && strings.HasPrefix(name, g))
			}
			if kept {
				left = append(left, name)
			}
		}
		return strings.Join(left, " ")
	}
	for rules, want := range map[string]string{
		"":                                   all,
		"# a comment\n\n/secret.pem\n":       without("secret.pem"),
		"\xef\xbb\xbf**/*.pem":               without("secret.pem"),
		"*/b":                                without("a/b/"),
		"vendor\n!vendor/x/keep":             without("vendor/x/y.go"),
		"vendor\n!vendor/nothing":            without("vendor/"),
		"docs\nvendor\n!docs/README.md":      without("docs/other.md", "vendor/"),
		"**/*.md\n!**/README.md":             without("a/b/d.md", "docs/other.md"),
		"*\n!a\na/b\n!a/b/c.txt":             "a/ a/b/ a/b/c.txt a/e.txt a/link",
		"*":                                  "",
		"a/link":                             without("a/link"),
		"../outside\n..":                     all,
		"!docs\ndocs":                        without("docs/"),
		"a/*\nvendor/**/keep\n  main.go  \n": without("a/b/", "a/e.txt", "a/link", "vendor/x/keep/", "main.go"),
	} {
		got, err := sent(t, dir, rules)
		if err != nil || !reflect.DeepEqual(strings.Join(got, " "), want) {
			t.Errorf("%q:\n got %s\nwant %s\n%v", rules, strings.Join(got, " "), want, err)
		}
	}
	for _, rules := range []string{"[", "!", "a[b", "[^]"} {
		if got, err := sent(t, dir, rules); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %q, %v", rules, got, err)
		}
	}
	if _, err := InspectContext(t.Context(), filepath.Join(dir, "main.go"), nil); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
		t.Errorf("a file: %v", err)
	}
	if _, err := InspectContext(t.Context(), filepath.Join(dir, "missing"), nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}
}

// What is left out need not be readable, and what is not sent anyway is said.
func TestInspectContextUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "db"), 0), os.WriteFile(filepath.Join(dir, "x"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := sent(t, dir, "db"); err != nil || !reflect.DeepEqual(got, []string{"x"}) {
		t.Errorf("left out: %q, %v", got, err)
	}
	if got, err := sent(t, dir, ""); !errors.Is(err, errdefs.ErrPermission) {
		t.Errorf("%q, %v", got, err)
	}
}
