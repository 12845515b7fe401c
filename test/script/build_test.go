package script_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Every page of the agent is read when a guest boots, and faulted in after a restore.
func TestAgentIsSmall(t *testing.T) {
	st, err := os.Stat(filepath.Join(programs, "banger-agent"))
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(8_000_000); st.Size() >= limit {
		t.Errorf("banger-agent has %d bytes, not less than %d", st.Size(), limit)
	}
}

// A build from a changed tree has a version of its own, or a running daemon would
// be taken for one of the same build.
func TestVersionOfAChangedTree(t *testing.T) {
	tree := t.TempDir()
	script, err := os.ReadFile("../../scripts/ldflags")
	if err != nil {
		t.Fatal(err)
	}
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
		return string(out)
	}
	version := func() string {
		t.Helper()
		_, rest, _ := strings.Cut(run("scripts/ldflags"), ".Version=")
		version, _, _ := strings.Cut(rest, " ")
		return version
	}
	put("scripts/ldflags", string(script))
	put("go.mod", "module m\n")
	put("internal/a.go", "package a\n")
	put(".gitignore", "ignored.go\n")
	run("git", "init", "-q")
	run("git", "add", ".")
	run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false", "commit", "-q", "-m", "first")
	clean := version()
	if strings.Contains(clean, "dirty") {
		t.Fatalf("a clean tree has version %s", clean)
	}
	// What programs are not built from changes nothing.
	put("README.md", "new\n")
	put("internal/a_test.go", "package a\n")
	put("internal/ignored.go", "package a\n")
	if now := version(); now != clean {
		t.Errorf("version %s, before %s", now, clean)
	}
	seen := map[string]string{clean: "the clean tree"}
	for _, change := range [][2]string{
		{"internal/a.go", "package a // changed\n"},
		{"internal/new file.go", "package a\n"},
		{"internal/new file.go", "package a // changed\n"},
		{"internal/migrations/2.sql", "-- new\n"},
		{"internal/api/new.proto", "// new\n"},
		{"go.sum", "new\n"},
	} {
		put(change[0], change[1])
		now := version()
		if before, ok := seen[now]; ok || !strings.HasPrefix(now, clean+"-dirty.") {
			t.Errorf("with %s: version %s, the same as %s", change[0], now, before)
		}
		seen[now] = change[0]
		if again := version(); again != now {
			t.Errorf("with %s: version %s, and then %s", change[0], now, again)
		}
	}
}
