package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"banger/internal/api/bangerv1"
)

// status draws progress on a terminal: one line that is rewritten, with finished
// lines above it. On anything else it does nothing.
type status struct {
	w     *os.File
	on    bool
	mu    sync.Mutex // guards what follows; errors may be printed by other goroutines
	drawn bool       // the rewritten line is on the screen
	last  time.Time
}

func newStatus(w *os.File, on bool) *status { return &status{w: w, on: on} }

// clear takes the rewritten line off the screen.
func (s *status) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
}

func (s *status) clearLocked() {
	if s.drawn {
		_, _ = io.WriteString(s.w, "\r\x1b[K")
		s.drawn = false
	}
}

// draw shows text in place of what was drawn before, cut to the terminal's width.
func (s *status) draw(text string) {
	if !s.on {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if width, _, err := term.GetSize(int(s.w.Fd())); err == nil && width > 1 {
		text = cutTo(text, width-1)
	}
	_, _ = io.WriteString(s.w, "\r\x1b[K"+text)
	s.drawn = true
}

// drawSometimes is draw for what changes faster than anybody reads.
func (s *status) drawSometimes(text func() string) {
	if !s.on || time.Since(s.last) < 80*time.Millisecond {
		return
	}
	s.last = time.Now()
	s.draw(text())
}

// line writes a line that stays.
func (s *status) line(text string) {
	if !s.on {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
	_, _ = io.WriteString(s.w, text+"\n")
}

func cutTo(s string, columns int) string {
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns])
}

// follow returns an observer of one operation that draws its stages.
func (a *app) follow() func(*bangerv1.Operation) {
	if !a.status.on {
		return nil
	}
	shown := 0
	return func(op *bangerv1.Operation) {
		stages := op.GetStages()
		for ; shown < len(stages) && stages[shown].GetEndedAt() != nil; shown++ {
			st := stages[shown]
			took := st.GetEndedAt().AsTime().Sub(st.GetStartedAt().AsTime())
			a.stageDone(st.GetName(), took)
		}
		if shown == len(stages) || op.GetState() != "running" {
			a.status.clear()
			return
		}
		a.status.draw(stageText(stages[shown]))
	}
}

// Stages that took less leave no line.
const worthALine = 20 * time.Millisecond

// stageDone leaves the line of a stage that ended, or none.
func (a *app) stageDone(name string, took time.Duration) {
	if took < worthALine {
		a.status.clear()
		return
	}
	a.status.line(fmt.Sprintf("  %-12s %s", oneLine(name), a.paint(dim, humanDuration(took))))
}

func stageText(st *bangerv1.Stage) string {
	text := "  " + fmt.Sprintf("%-12s", oneLine(st.GetName()))
	if p := progressText(st.GetDone(), st.GetTotal(), st.GetUnit()); p != "" {
		text += " " + p
	}
	if st.GetDetail() != "" {
		text += " " + oneLine(st.GetDetail())
	}
	return text
}

// progressText is "12 of 80 packages", "3.1 MiB of 20 MiB (15%)", or nothing.
func progressText(done, total int64, unit string) string {
	show := func(n int64) string {
		if unit == "bytes" {
			return humanBytes(n)
		}
		return fmt.Sprint(n)
	}
	tail := ""
	if unit != "" && unit != "bytes" {
		tail = " " + oneLine(unit)
	}
	switch {
	case total > 0 && unit == "bytes":
		return fmt.Sprintf("%s of %s (%d%%)", show(done), show(total), min(100, done*100/total))
	case total > 0:
		return show(done) + " of " + show(total) + tail
	case done > 0:
		return show(done) + tail
	}
	return ""
}

// humanBytes prints a size for people: "512 MiB", "1.5 GiB".
func humanBytes(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if v < 10 && v != float64(int64(v)) {
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// humanDuration prints how long something took.
func humanDuration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// humanAge prints how long ago something was, in its largest unit.
func humanAge(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}
