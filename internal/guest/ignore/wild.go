package ignore

import "strings"

// wild reports whether text matches a pattern as git has them: a star and a question
// mark match no slash, two stars between slashes match any number of directories.
// first says that the pattern begins at the start of a path element.
func wild(p, text string, first bool) bool {
	for p != "" {
		switch p[0] {
		case '*':
			return star(p, text, first)
		case '?':
			if text == "" || text[0] == '/' {
				return false
			}
			p = p[1:]
		case '[':
			if text == "" || text[0] == '/' {
				return false
			}
			ok, rest := class(p, text[0])
			if !ok {
				return false
			}
			p = rest
		case '\\':
			if len(p) < 2 || text == "" || p[1] != text[0] {
				return false
			}
			p = p[2:]
		default:
			if text == "" || p[0] != text[0] {
				return false
			}
			p = p[1:]
		}
		first = text[0] == '/'
		text = text[1:]
	}
	return text == ""
}

// star matches a pattern that begins with one.
func star(p, text string, first bool) bool {
	rest := strings.TrimLeft(p, "*")
	if len(p)-len(rest) == 2 && first {
		if rest == "" {
			return true
		}
		if rest[0] == '/' {
			for {
				if wild(rest[1:], text, true) {
					return true
				}
				i := strings.IndexByte(text, '/')
				if i < 0 {
					return false
				}
				text = text[i+1:]
			}
		}
	}
	for {
		if wild(rest, text, false) {
			return true
		}
		if text == "" || text[0] == '/' {
			return false
		}
		text = text[1:]
	}
}

// class matches a byte against the set that p begins with, and returns what follows it.
// A set without an end matches nothing.
func class(p string, c byte) (ok bool, rest string) {
	p = p[1:]
	negated := false
	if p != "" && (p[0] == '!' || p[0] == '^') {
		negated, p = true, p[1:]
	}
	found := false
	for first := true; ; first = false {
		if p == "" {
			return false, ""
		}
		if p[0] == ']' && !first {
			return found != negated, p[1:]
		}
		if strings.HasPrefix(p, "[:") {
			name, after, closed := strings.Cut(p[2:], ":]")
			if closed && !strings.Contains(name, "]") {
				found, p = found || named(name, c), after
				continue
			}
		}
		low, after, ended := char(p)
		if ended {
			return false, ""
		}
		p = after
		high := low
		if len(p) >= 2 && p[0] == '-' && p[1] != ']' {
			if high, p, ended = char(p[1:]); ended {
				return false, ""
			}
		}
		found = found || low <= c && c <= high
	}
}

// char is one character of a set.
func char(p string) (c byte, rest string, ended bool) {
	if p[0] == '\\' {
		if p = p[1:]; p == "" {
			return 0, "", true
		}
	}
	return p[0], p[1:], false
}

// named is whether c is in one of the sets with names, of ASCII.
func named(name string, c byte) bool {
	lower, upper, digit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
	switch name {
	case "alpha":
		return lower || upper
	case "digit":
		return digit
	case "alnum":
		return lower || upper || digit
	case "lower":
		return lower
	case "upper":
		return upper
	case "space":
		return c == ' ' || '\t' <= c && c <= '\r'
	case "blank":
		return c == ' ' || c == '\t'
	case "xdigit":
		return digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
	case "punct":
		return '!' <= c && c <= '~' && !lower && !upper && !digit
	case "print":
		return ' ' <= c && c <= '~'
	case "graph":
		return '!' <= c && c <= '~'
	case "cntrl":
		return c < ' ' || c == 0x7f
	}
	return false
}
