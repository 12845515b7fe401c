package script_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The start of an id that several VMs have names none, and they are listed.
func TestAmbiguousPrefix(t *testing.T) {
	r := newRig(t)
	// Of seventeen VMs two have the same first digit at the latest; mostly a handful do.
	first := map[byte]string{}
	for i := range 17 {
		name := fmt.Sprintf("box-%d", i)
		r.ok("vm", "create", "--name", name)
		ids := strings.Fields(r.ok("vm", "list", "-q"))
		id := ids[len(ids)-1]
		other, ok := first[id[0]]
		if !ok {
			first[id[0]] = fmt.Sprintf("%s (%s)", name, id)
			continue
		}
		out, err := r.cmd("vm", "stop", id[:1]).CombinedOutput()
		if err == nil {
			t.Fatalf("the prefix %s of two ids stopped a VM", id[:1])
		}
		for _, want := range []string{`"` + id[:1] + `" is ambiguous`, other, fmt.Sprintf("%s (%s)", name, id), "try: "} {
			if !strings.Contains(string(out), want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
		if out := r.ok("vm", "rename", id, "whole"); out != "whole\n" {
			t.Errorf("the whole id: %q", out)
		}
		return
	}
	t.Fatal("no two ids begin alike")
}

// What the VMM says is followed like the console, until the VM stops.
func TestFollowVMMLog(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	id := strings.TrimSpace(r.ok("vm", "list", "-q"))
	f, err := os.OpenFile(filepath.Join(r.state, "vms", id, "vmm.log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	say := func(line string) {
		t.Helper()
		if _, err := f.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	say("before")
	p := r.start("logs", "-f", "--vmm", "--tail", "7", "box")
	p.line("before")
	say("meanwhile")
	p.line("meanwhile")
	r.ok("vm", "stop", "box")
	p.ends(0)
}
