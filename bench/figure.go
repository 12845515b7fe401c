package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// Figure is one result.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"` // the median
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor"` // the median of what it is compared with
	Ratio float64 `json:"ratio"` // value / floor
	Limit float64 `json:"limit"`
	On    string  `json:"limit_on"` // "ratio", "value" or "nothing"
	Pass  bool    `json:"pass"`

	What     string  `json:"what"`
	FloorIs  string  `json:"floor_is"`
	Runs     int     `json:"runs"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	FloorMin float64 `json:"floor_min"`
	FloorMax float64 `json:"floor_max"`
	Notes    string  `json:"notes,omitempty"`
}

// What a limit is on.
const (
	onRatio   = "ratio"
	onValue   = "value"
	onNothing = "nothing" // it is told, and passes
)

// samples are measured values of one thing, in one unit.
type samples []float64

func (s *samples) add(d time.Duration, unit time.Duration) {
	*s = append(*s, float64(d)/float64(unit))
}

// inTurns measures one thing and its floor n times, in turns, after a few times that
// count for nothing: they fill caches.
func inTurns(warm, n int, unit time.Duration, one, other func() (time.Duration, error)) (value, floor samples, err error) {
	for i := range warm + n {
		took, err := one()
		if err != nil {
			return nil, nil, err
		}
		least, err := other()
		if err != nil {
			return nil, nil, err
		}
		if i >= warm {
			value.add(took, unit)
			floor.add(least, unit)
		}
	}
	return value, floor, nil
}

// median is the p50; of an even number, the mean of the two in the middle.
func (s samples) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// figure makes a figure of two series and judges it.
func figure(name, unit string, value, floor samples, limit float64, on string) Figure {
	f := Figure{
		Name: name, Unit: unit, Runs: len(value), Limit: limit, On: on,
		Value: value.median(), Min: slices.Min(value), Max: slices.Max(value),
		Floor: floor.median(), FloorMin: slices.Min(floor), FloorMax: slices.Max(floor),
	}
	if f.Floor != 0 {
		f.Ratio = f.Value / f.Floor
	}
	switch on {
	case onRatio:
		f.Pass = f.Ratio <= limit
	case onValue:
		f.Pass = f.Value <= limit
	case onNothing:
		f.Pass = true
	}
	return f
}

// Report is what results.json holds.
type Report struct {
	Machine Machine  `json:"machine"`
	Figures []Figure `json:"figures"`
}

func (r Report) missed() bool {
	return slices.ContainsFunc(r.Figures, func(f Figure) bool { return !f.Pass })
}

// print writes the table.
func (r Report) print(w io.Writer) {
	r.Machine.print(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FIGURE\tVALUE\tMIN–MAX\tFLOOR\tMIN–MAX\tRATIO\tLIMIT\t\tRUNS\tFLOOR IS")
	for _, f := range r.Figures {
		verdict := "pass"
		if !f.Pass {
			verdict = "MISSED"
		}
		ratio, limit := "-", number(f.Limit)+" "+f.Unit
		if f.Floor != 0 {
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		switch f.On {
		case onRatio:
			limit = "× " + number(f.Limit)
		case onNothing:
			limit, verdict = "-", "told"
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s–%s\t%s %s\t%s–%s\t%s\t%s\t%s\t%d\t%s\n", f.Name, number(f.Value), f.Unit,
			number(f.Min), number(f.Max), number(f.Floor), f.Unit, number(f.FloorMin), number(f.FloorMax),
			ratio, limit, verdict, f.Runs, f.FloorIs)
	}
	_ = t.Flush()
	for _, f := range r.Figures {
		if f.Notes != "" {
			fmt.Fprintf(w, "%s: %s\n", f.Name, f.Notes)
		}
	}
}

// number prints three digits that matter.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r Report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}
