package debian

import (
	"regexp"
	"strconv"
	"strings"
)

var (
	newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)
	aptIndex       = regexp.MustCompile(` (?:InRelease|Release|Release\.gpg|Packages|Translation-\S+) \[`)
	fetching       = regexp.MustCompile(`^Get:\d+ \S+ (\S+) (?:\S+ )?(\S+) (\S+) (\S+)`)
)

// tracker turns what apt and dpkg print into stages and counts. mmdebstrap
// installs in two rounds, so totals add up.
type tracker struct {
	p       Progress
	stage   string
	total   int64
	fetched int64
	done    int64
}

func (t *tracker) enter(stage string) {
	if t.stage != stage {
		t.stage = stage
		t.p.Stage(stage)
	}
}

// line is called for one line of output at a time.
func (t *tracker) line(s string) {
	if m := newlyInstalled.FindStringSubmatch(s); m != nil {
		n, _ := strconv.ParseInt(m[1], 10, 32)
		t.total += n
	}
	switch {
	case strings.HasPrefix(s, "Get:"):
		if aptIndex.MatchString(s) {
			t.enter("resolve")
			t.p.Detail(s)
			return
		}
		if t.stage != "install" { // the second round downloads in between
			t.enter("download")
		}
		t.fetched++
		if m := fetching.FindStringSubmatch(s); m != nil {
			t.p.Detail(m[3])
		}
		if t.stage == "download" {
			t.p.Count(t.fetched, max(t.total, t.fetched), "packages")
		}
	case strings.HasPrefix(s, "Unpacking "), strings.HasPrefix(s, "Setting up "):
		t.enter("install")
		t.p.Detail(s)
		if strings.HasPrefix(s, "Setting up ") {
			t.done++
			t.p.Count(min(t.done, max(t.total, t.fetched)), max(t.total, t.fetched), "packages")
		}
	case strings.HasPrefix(s, "I: running apt-get update"):
		t.enter("resolve")
	}
}
