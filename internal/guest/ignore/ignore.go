// Package ignore decides by rules of the form of .gitignore which files of a tree are
// left out: https://git-scm.com/docs/gitignore. It asks nobody, because most guests have
// no git, and host directories that are no repositories have such rules too.
package ignore

import (
	"bytes"
	"strings"
)

// Rules are those of one file.
type Rules struct{ patterns []pattern }

// pattern is one line.
type pattern struct {
	text     string
	negated  bool // takes back in what an earlier one leaves out
	dirOnly  bool
	anchored bool // against the whole path below the rules, not the last element alone
	plain    bool // no character of text means anything else
	suffix   bool // "*" and then a plain text, which text is without the star
}

// Parse reads rules. No text is wrong: what git does not understand matches nothing.
func Parse(text []byte) *Rules {
	r := &Rules{}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for line := range bytes.Lines(text) {
		s := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		if p, ok := parse(s); ok {
			r.patterns = append(r.patterns, p)
		}
	}
	return r
}

func parse(s string) (p pattern, ok bool) {
	if s == "" || s[0] == '#' {
		return p, false
	}
	s = trimSpaces(s)
	if rest, found := strings.CutPrefix(s, "!"); found {
		p.negated, s = true, rest
	}
	if rest, found := strings.CutSuffix(s, "/"); found {
		p.dirOnly, s = true, rest
	}
	if s == "" {
		return p, false
	}
	p.anchored = strings.Contains(s, "/")
	s = strings.TrimPrefix(s, "/")
	p.text, p.plain = s, !strings.ContainsAny(s, `*?[\`)
	if rest, found := strings.CutPrefix(s, "*"); found && !p.anchored && !strings.ContainsAny(rest, `*?[\`) {
		p.text, p.suffix = rest, true
	}
	return p, true
}

// trimSpaces takes spaces off the end that no backslash keeps.
func trimSpaces(s string) string {
	end := len(s)
	for end > 0 && s[end-1] == ' ' {
		end--
	}
	if end == len(s) {
		return s
	}
	slashes := 0
	for end-slashes > 0 && s[end-slashes-1] == '\\' {
		slashes++
	}
	if slashes%2 == 1 {
		end++ // the first space is meant
	}
	return s[:end]
}

// verdict is what rules say of a name.
type verdict int

const (
	silent verdict = iota
	out
	in
)

// say returns what the last rule that concerns the file says. rel is its path below the
// directory of the rules, base the last element of that.
func (r *Rules) say(rel, base string, isDir bool) verdict {
	for i := len(r.patterns) - 1; i >= 0; i-- {
		p := &r.patterns[i]
		if p.dirOnly && !isDir || !p.matches(rel, base) {
			continue
		}
		if p.negated {
			return in
		}
		return out
	}
	return silent
}

func (p *pattern) matches(rel, base string) bool {
	subject := base
	if p.anchored {
		subject = rel
	}
	switch {
	case p.plain:
		return p.text == subject
	case p.suffix:
		return strings.HasSuffix(subject, p.text)
	}
	return wild(p.text, subject, true)
}

// Stack is the rules that count in one directory of a tree: those of the directories
// above it, the outer ones first. The zero value ignores nothing.
type Stack struct{ levels []level }

type level struct {
	dir   string // empty: the root of the tree
	rules *Rules
}

// Push adds rules of a directory, which count for what is below it. Those that are
// pushed later count more.
func (s *Stack) Push(dir string, r *Rules) { s.levels = append(s.levels, level{dir, r}) }

// Len is how many rules were pushed.
func (s *Stack) Len() int { return len(s.levels) }

// Cut takes back what was pushed after there were n.
func (s *Stack) Cut(n int) { s.levels = s.levels[:n] }

// Ignored reports whether a file or directory is left out, whose directory is not. A
// directory that is left out is so with all that is in it.
func (s *Stack) Ignored(name string, isDir bool) bool {
	base := name[strings.LastIndexByte(name, '/')+1:]
	for i := len(s.levels) - 1; i >= 0; i-- {
		l := &s.levels[i]
		rel := name
		if l.dir != "" {
			var below bool
			if rel, below = strings.CutPrefix(name, l.dir+"/"); !below {
				continue
			}
		}
		switch l.rules.say(rel, base, isDir) {
		case out:
			return true
		case in:
			return false
		}
	}
	return false
}

// Match reports whether a path, or one of the directories above it, matches a glob, in
// which a star matches no slash and two between slashes any number of directories.
func Match(glob, name string) bool {
	glob = strings.Trim(glob, "/")
	for {
		if wild(glob, name, true) {
			return true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}

// MayContain reports whether something in a directory could match a glob.
func MayContain(glob, dir string) bool {
	glob = strings.Trim(glob, "/")
	for i := 0; i <= len(glob); i++ {
		if i < len(glob) && glob[i] != '/' {
			continue
		}
		if head := glob[:i]; head == "**" || strings.HasSuffix(head, "/**") || wild(head, dir, true) {
			return true
		}
	}
	return false
}
