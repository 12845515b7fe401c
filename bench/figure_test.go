package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   samples
		want float64
	}{
		{samples{3}, 3}, {samples{9, 1, 5}, 5}, {samples{4, 1, 2, 100}, 3},
	} {
		if got := c.in.median(); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
}

func TestFigureIsJudgedOnWhatItsLimitIsOn(t *testing.T) {
	for _, c := range []struct {
		value, floor samples
		limit        float64
		on           string
		pass         bool
	}{
		{samples{140}, samples{100}, 1.4, onRatio, true},
		{samples{141}, samples{100}, 1.4, onRatio, false},
		{samples{60}, samples{1}, 60, onValue, true},
		{samples{61}, samples{100}, 60, onValue, false},
		{samples{0}, samples{12}, 0, onValue, true},
		{samples{1}, samples{12}, 0, onValue, false},
		{samples{1}, samples{12}, 0, onNothing, true},
	} {
		f := figure("x", "ms", c.value, c.floor, c.limit, c.on)
		if f.Pass != c.pass {
			t.Errorf("%v against %v, limit %v on %s: pass is %v", c.value, c.floor, c.limit, c.on, f.Pass)
		}
	}
}

func TestReport(t *testing.T) {
	r := Report{Figures: []Figure{
		figure("good", "ms", samples{1, 2, 3}, samples{4}, 1, onRatio),
		figure("bad", "ms", samples{80}, samples{4}, 60, onValue),
		figure("free", "ms", samples{80}, samples{4}, 0, onNothing),
	}}
	if !r.missed() {
		t.Error("a missed limit is not noticed")
	}
	var table bytes.Buffer
	r.print(&table)
	for line, want := range map[string]string{"good": "pass", "bad": "MISSED", "free": "told"} {
		found := false
		for l := range strings.Lines(table.String()) {
			found = found || strings.HasPrefix(l, line) && strings.Contains(l, want)
		}
		if !found {
			t.Errorf("no line of %q says %q:\n%s", line, want, table.String())
		}
	}
	file := filepath.Join(t.TempDir(), "sub", "results.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back struct{ Figures []map[string]any }
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"name", "value", "unit", "floor", "ratio", "limit", "pass"} {
		if _, ok := back.Figures[0][key]; !ok {
			t.Errorf("results.json has no %q", key)
		}
	}
}

func TestChoose(t *testing.T) {
	all, err := choose("")
	if err != nil || len(all) != len(measurements) {
		t.Errorf("no choice means %d figures, %v", len(all), err)
	}
	some, err := choose("exec,run")
	if err != nil || len(some) != 2 || some[0].name != "run" {
		t.Errorf("chose %v, %v", some, err)
	}
	if _, err := choose("run,fly"); err == nil {
		t.Error("an unknown figure is accepted")
	}
}

func TestDescriptorsGetTheirNamesBack(t *testing.T) {
	root := `{"driver":"qcow2","node-name":"disk0","file":{"driver":"file","filename":"root.qcow2"},` +
		`"backing":{"driver":"raw","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/3","read-only":true}}}`
	modules := `{"driver":"raw","node-name":"disk1","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/4","read-only":true}}`
	for in, wanted := range map[string][]string{root: {`"root.qcow2"`, `"/img"`}, modules: {`"/mod"`}} {
		out, err := named(in, "/img", "/mod")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wanted {
			if !strings.Contains(out, want) {
				t.Errorf("%s is not in %s", want, out)
			}
		}
		if strings.Contains(out, descriptorSet) {
			t.Errorf("a descriptor is left in %s", out)
		}
	}
}
