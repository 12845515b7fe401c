package ignore_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/guest/ignore"
)

func TestIgnored(t *testing.T) {
	for _, tc := range []struct {
		rules, name string
		dir, want   bool
	}{
		{"*.o", "a/b.o", false, true},
		{"*.o\n!keep.o", "a/keep.o", false, false},
		{"!keep.o\n*.o", "keep.o", false, true},
		{"/build", "build", true, true},
		{"/build", "sub/build", true, false},
		{"build/", "build", false, false},
		{"build/", "sub/build", true, true},
		{"a/*/c", "a/b/c", false, true},
		{"a/*/c", "a/b/d/c", false, false},
		{"a/**/c", "a/b/d/c", false, true},
		{"a/**/c", "a/c", false, true},
		{"**/c", "c", false, true},
		{"a/**", "a/b", false, true},
		{"a/**", "a", true, false},
		{"a**b", "axxb", false, true},
		{"[a-c]?", "b1", false, true},
		{"[!a-c]?", "b1", false, false},
		{"[[:digit:]]", "7", false, true},
		{"[", "[", false, false},
		{`\!a`, "!a", false, true},
		{`\#a`, "#a", false, true},
		{"#a", "#a", false, false},
		{"a  ", "a", false, true},
		{`a\ `, "a ", false, true},
		{"a\r\n", "a", false, true},
		{"\xef\xbb\xbfa", "a", false, true},
		{"", "a", false, false},
		{"/", "a", true, false},
	} {
		var s ignore.Stack
		s.Push("", ignore.Parse([]byte(tc.rules)))
		if got := s.Ignored(tc.name, tc.dir); got != tc.want {
			t.Errorf("%q, %q (directory: %v): %v", tc.rules, tc.name, tc.dir, got)
		}
	}
}

// walk lists the files of a tree that its .gitignore files do not leave out.
func walk(t *testing.T, root, dir string, s *ignore.Stack, found *[]string) {
	t.Helper()
	n := s.Len()
	defer s.Cut(n)
	if text, err := os.ReadFile(filepath.Join(root, dir, ".gitignore")); err == nil {
		s.Push(dir, ignore.Parse(text))
	}
	children, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		name := path.Join(dir, c.Name())
		switch {
		case name == ".git" || s.Ignored(name, c.IsDir()):
		case c.IsDir():
			walk(t, root, name, s, found)
		default:
			*found = append(*found, name)
		}
	}
}

// TestAgainstGit compares with git on random trees and rules.
func TestAgainstGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "ab", "a.o", "b.o", "[x]", "a b", "c"}
	parts := []string{"a", "b", "*", "**", "?", ".o", "/", "/", "!", "[ab]", "[!a]", `\`, "[", "]", " ", "c", "x", "-", "[[:alpha:]]"}
	for round := range 30 {
		dir := t.TempDir()
		if out, err := exec.Command("git", "init", "-q", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for range 40 {
			p := dir
			for range 1 + r.IntN(4) {
				p = filepath.Join(p, names[r.IntN(len(names))])
			}
			if os.MkdirAll(filepath.Dir(p), 0o755) == nil {
				_ = os.WriteFile(p, nil, 0o644) // unless it is a directory
			}
		}
		rules := ""
		for i := range 3 {
			text := ""
			for range 1 + r.IntN(4) {
				for range 1 + r.IntN(5) {
					text += parts[r.IntN(len(parts))]
				}
				text += "\n"
			}
			where := filepath.Join(dir, names[r.IntN(len(names))], ".gitignore")
			if i == 0 {
				where = filepath.Join(dir, ".gitignore")
			}
			if os.WriteFile(where, []byte(text), 0o644) == nil {
				rules += fmt.Sprintf("%s: %q\n", where, text)
			}
		}
		cmd := exec.Command("git", "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
		cmd.Dir = dir
		listed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := []string{}
		for name := range bytes.SplitSeq(bytes.TrimSuffix(listed, []byte{0}), []byte{0}) {
			if len(name) > 0 {
				want = append(want, string(name))
			}
		}
		got := []string{}
		walk(t, dir, "", &ignore.Stack{}, &got)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d, round %d\n%sgot  %q\ngit: %q", seed, round, rules, got, strings.Join(want, " "))
		}
	}
}
