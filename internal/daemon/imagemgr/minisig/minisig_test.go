package minisig_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"

	"banger/internal/daemon/imagemgr/minisig"
	"banger/internal/errdefs"
)

func pair(t *testing.T) (minisig.Key, minisign.PrivateKey) {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := minisig.ParseKey(public.String())
	if err != nil {
		t.Fatal(err)
	}
	return k, private
}

func hashed(private minisign.PrivateKey, message []byte) []byte {
	r := minisign.NewReader(bytes.NewReader(message))
	_, _ = bytes.NewBuffer(nil).ReadFrom(r)
	return r.Sign(private)
}

func TestVerify(t *testing.T) {
	k, private := pair(t)
	_, other := pair(t)
	message := bytes.Repeat([]byte("message "), 1<<18)
	good := hashed(private, message)
	for name, c := range map[string]struct {
		message, sig []byte
		ok           bool
	}{
		"hashed":          {message, good, true},
		"not hashed":      {message, minisign.SignWithComments(private, message, "timestamp:1700000000", "x"), true},
		"other message":   {message[1:], good, false},
		"other key":       {message, hashed(other, message), false},
		"empty":           {message, nil, false},
		"long":            {message, append(bytes.Clone(good), make([]byte, 8<<10)...), false},
		"comment changed": {message, bytes.Replace(good, []byte("timestamp:1"), []byte("timestamp:2"), 1), false},
		"cut":             {message, good[:len(good)-10], false},
	} {
		signed, err := k.Verify(c.message, c.sig)
		streamed, serr := k.VerifyReader(t.Context(), bytes.NewReader(c.message), c.sig)
		if c.ok {
			if err != nil || signed.Key != k.ID() || signed.Time.IsZero() {
				t.Errorf("%s: %+v, %v", name, signed, err)
			}
			if (serr == nil) != (name == "hashed") || serr == nil && streamed != signed {
				t.Errorf("%s, streamed: %+v, %v", name, streamed, serr)
			}
			continue
		}
		for _, err := range []error{err, serr} {
			if !errors.Is(err, errdefs.ErrPermission) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if signed != (minisig.Signed{}) || streamed != (minisig.Signed{}) {
			t.Errorf("%s: something is said of what is not to be believed", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.VerifyReader(ctx, bytes.NewReader(message), good); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestNoTime(t *testing.T) {
	k, private := pair(t)
	for _, comment := range []string{"", "file:x", "timestamp:", "timestamp:-5", "timestamp:x\ttimestamp:5"} {
		signed, err := k.Verify([]byte("m"), minisign.SignWithComments(private, []byte("m"), comment, "x"))
		if err != nil || !signed.Time.IsZero() {
			t.Errorf("%q: %v, %v", comment, signed.Time, err)
		}
	}
}

func TestParseKey(t *testing.T) {
	k, _ := pair(t)
	for _, bad := range []string{"", "RW", "untrusted comment: x", strings.Repeat("RW", 4000), k.ID()} {
		if _, err := minisig.ParseKey(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// What minisign itself has signed is right.
func TestWithMinisign(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("minisign", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "m"), []byte("message"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("-G", "-W", "-p", "k.pub", "-s", "k.key")
	run("-S", "-s", "k.key", "-m", "m")
	text, err := os.ReadFile(filepath.Join(dir, "k.pub"))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := os.ReadFile(filepath.Join(dir, "m.minisig"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := minisig.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := k.VerifyReader(t.Context(), strings.NewReader("message"), sig)
	if err != nil || signed.Time.IsZero() {
		t.Errorf("%+v, %v", signed, err)
	}
}
