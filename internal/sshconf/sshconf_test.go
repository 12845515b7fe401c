package sshconf

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/paths"
)

func open(t *testing.T, base string) Dir {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", base)
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// OpenSSH reads the configuration as it is meant, wherever things lie.
func TestConfigIsUnderstood(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("no OpenSSH client")
	}
	base := filepath.Join(t.TempDir(), "a b%c'd")
	d := open(t, base)
	marker := filepath.Join(t.TempDir(), "called")
	program := filepath.Join(base, "it's 100% x;y")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf '%s|' \"$0\" \"$@\" >"+marker+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Write([]string{program, "--socket", "a$b", ""}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("ssh", "-F", d.Config(), "-G", "box.vm").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"user banger", "stricthostkeychecking true", "identitiesonly yes", "hostkeyalgorithms ssh-ed25519"} {
		if !strings.Contains(string(out), "\n"+want+"\n") && !strings.HasPrefix(string(out), want+"\n") {
			t.Errorf("not said: %s\n%s", want, out)
		}
	}
	other, err := exec.Command("ssh", "-F", d.Config(), "-G", "box.vm.example.org").CombinedOutput()
	if err != nil || strings.Contains(string(other), "user banger\n") || strings.Contains(string(other), base) {
		t.Errorf("another host is concerned: %v %s", err, other)
	}
	_ = exec.Command("ssh", "-F", d.Config(), "box.vm").Run() // fails when the program ends
	if got, err := os.ReadFile(marker); string(got) != program+"|--socket|a$b||box.vm|" {
		t.Errorf("called as %q, %v", got, err)
	}
	if err := d.Pin("box.vm", "ssh-ed25519 AAAA", func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
}

func TestPin(t *testing.T) {
	d := open(t, t.TempDir())
	known := map[string]bool{}
	for i := range 30 {
		known[fmt.Sprintf("vm%d.vm", i)] = true
	}
	var wg sync.WaitGroup
	for host := range known {
		for range 3 {
			wg.Go(func() {
				if err := d.Pin(host, "key-of-"+host, func(h string) bool { return known[h] }); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	lines, err := d.knownHosts()
	if err != nil || len(lines) != len(known) {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	// Another key takes the place of the first, and what is no VM any more goes.
	delete(known, "vm7.vm")
	if err := d.Pin("vm3.vm", "another", func(h string) bool { return known[h] }); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.file(paths.SSHKnownHosts))
	if err != nil || strings.Contains(string(text), "vm7") || strings.Contains(string(text), "key-of-vm3.vm") || !strings.Contains(string(text), "vm3.vm another\n") {
		t.Errorf("%v: %s", err, text)
	}
	if err := d.Forget(func(h string) bool { return h == "vm3.vm" }); err != nil {
		t.Fatal(err)
	}
	if lines, _ = d.knownHosts(); len(lines) != 28 {
		t.Errorf("%d lines are left", len(lines))
	}
}

// What is installed into a configuration and taken out again leaves it as it was.
func FuzzInstall(f *testing.F) {
	f.Add([]byte("Host a\n\tUser b\n"))
	f.Add([]byte(""))
	f.Add([]byte("\r\n\x00\xff no end"))
	f.Add([]byte(endMark + "\nHost *"))
	dir := f.TempDir()
	d := Dir(filepath.Join(dir, "ssh"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.Contains(text, []byte(beginMark)) {
			t.Skip()
		}
		config := filepath.Join(dir, "config")
		if err := os.WriteFile(config, text, 0o640); err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{true, false} {
			if changed, err := d.Install(config); err != nil || changed != want {
				t.Fatalf("install %d: %v, %v", i, changed, err)
			}
		}
		if !d.Installed(config) {
			t.Error("it is not found")
		}
		for i, want := range []bool{true, false} {
			if changed, err := Uninstall(config); err != nil || changed != want {
				t.Fatalf("uninstall %d: %v, %v", i, changed, err)
			}
		}
		got, err := os.ReadFile(config)
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("%q became %q, %v", text, got, err)
		}
	})
}
