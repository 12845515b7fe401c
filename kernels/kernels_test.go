package kernels

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tools makes a PATH with these programs of the host's and these scripts.
func tools(t *testing.T, programs []string, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

var usual = []string{"bash", "nproc", "dirname", "realpath", "mkdir", "uname"}

func TestWhatIsMissingIsNamed(t *testing.T) {
	tools(t, append(usual, "perl"), map[string]string{"gcc": ""})
	var log bytes.Buffer
	err := Build(t.Context(), t.TempDir(), Options{Work: t.TempDir(), Log: &log})
	if err == nil {
		t.Fatal("it was built without a compiler")
	}
	if said := log.String(); !strings.Contains(said, "missing: make flex bison") || !strings.Contains(said, "build-essential") || strings.Contains(said, "perl") {
		t.Errorf("it says %q", said)
	}
}

// lines tells when a line comes.
type lines struct{ came chan string }

func (l lines) Write(p []byte) (int, error) {
	l.came <- string(p)
	return len(p), nil
}

// The end of the context ends what the build has started, too: it holds the log.
func TestBuildIsEnded(t *testing.T) {
	scripts := map[string]string{"apt-cache": "echo '  Depends: linux-source-6.1'", "apt-get": "echo asked >&2\nexec sleep 1000"}
	for _, name := range []string{"gcc", "make", "flex", "bison", "bc", "ld", "objcopy", "xz", "zstd", "perl", "dpkg-deb"} {
		scripts[name] = ""
	}
	tools(t, append(usual, "sleep", "awk"), scripts)
	ctx, cancel := context.WithCancelCause(t.Context())
	log := lines{make(chan string, 100)}
	done := make(chan error, 1)
	go func() { done <- Build(ctx, t.TempDir(), Options{Work: t.TempDir(), Log: log}) }()
	for said := ""; !strings.Contains(said, "asked"); {
		select {
		case line := <-log.came:
			said += line
		case err := <-done:
			t.Fatalf("it ended with %v and said %q", err, said)
		}
	}
	over := errors.New("over")
	cancel(over)
	if err := <-done; !errors.Is(err, over) {
		t.Errorf("it ended with %v", err)
	}
}
