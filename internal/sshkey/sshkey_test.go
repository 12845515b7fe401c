package sshkey

import (
	"crypto/ed25519"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/errdefs"
)

func TestEnsure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	keys := make([]ed25519.PrivateKey, 20)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := Ensure(file)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, k := range keys {
		if !k.Equal(keys[0]) {
			t.Fatal("not all have the same key")
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	public, err := Public(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("no ssh-keygen, which judges the key")
	}
	out, err := exec.Command("ssh-keygen", "-y", "-f", file).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != public {
		t.Errorf("ssh-keygen says %q, %v; want %q", got, err, public)
	}
}

// A file that holds something else is not replaced: it may be somebody's.
func TestEnsureRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "noise": "noise",
		"another type": "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2\nOF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r\n1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G\n-----END PRIVATE KEY-----\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Ensure(file); !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(file); string(got) != content {
			t.Errorf("%s: now %q, %v", name, got, err)
		}
	}
	if _, err := Ensure(filepath.Join(dir, "no", "such", "directory")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}
