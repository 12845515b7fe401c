package debian

import (
	"bytes"
	"strings"
	"sync"
)

// Bounds of what is kept of a tool's output.
const (
	keepLines = 200
	maxLine   = 4 << 10
)

// lines splits a tool's output into lines, hands them on and keeps the last.
// stdout and stderr both write to it.
type lines struct {
	each func(string)

	mu   sync.Mutex // a leaf; guards the fields below
	part []byte
	kept []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		i := bytes.IndexAny(rest, "\r\n")
		if i < 0 {
			if room := maxLine - len(l.part); room > 0 {
				l.part = append(l.part, rest[:min(room, len(rest))]...)
			}
			break
		}
		l.part = append(l.part, rest[:min(i, maxLine)]...)
		l.flush()
		rest = rest[i+1:]
	}
	return len(p), nil
}

// flush ends the current line; l.mu is held.
func (l *lines) flush() {
	line := strings.TrimSpace(strings.ToValidUTF8(string(l.part), "?"))
	l.part = l.part[:0]
	if line == "" {
		return
	}
	if len(l.kept) == keepLines {
		l.kept = append(l.kept[:0], l.kept[1:]...)
	}
	l.kept = append(l.kept, line)
	if l.each != nil {
		l.each(line)
	}
}

func (l *lines) last() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	return l.kept
}
