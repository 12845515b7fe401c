package oci_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

func TestUserFiles(t *testing.T) {
	env := map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}
	files := oci.UserFiles(func(k string) string { return env[k] })
	if want := []string{"/run/user/7/containers/auth.json", "/home/u/.config/containers/auth.json", "/home/u/.docker/config.json"}; !slices.Equal(files.Paths, want) {
		t.Errorf("%q", files.Paths)
	}
	env = map[string]string{"HOME": "relative", "REGISTRY_AUTH_FILE": "/auth", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"}
	files = oci.UserFiles(func(k string) string { return env[k] })
	if want := []string{"/auth", "/c/containers/auth.json", "/d/config.json"}; !slices.Equal(files.Paths, want) {
		t.Errorf("%q", files.Paths)
	}
}

func TestKeychainFiles(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	bin := t.TempDir()
	asked := filepath.Join(bin, "asked")
	for name, script := range map[string]string{
		"good":  `echo '{"ServerURL":"x","Username":"h","Secret":"s"}'`,
		"token": `echo '{"Username":"<token>","Secret":"t"}'`,
		"none":  `echo credentials not found in native keychain; exit 1`,
		"bad":   `echo no idea >&2; exit 1`,
		"noise": `echo nonsense`,
	} {
		file := writeFile(t, filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\ncat >"+asked+"\n"+script+"\n"))
		if err := os.Chmod(file, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	podman := writeFile(t, filepath.Join(dir, "auth.json"), fmt.Appendf(nil,
		`{"auths":{"quay.io/team":{"auth":%q},"quay.io":{"auth":%q},"https://index.docker.io/v1/":{"auth":%q},"broken.io":{"auth":"x"}}}`,
		b64("team:1"), b64("all:2:3"), b64("hub:4")))
	docker := writeFile(t, filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{"id.io":{"identitytoken":"i","auth":%q},"store.io":{"auth":%q}},
		"credHelpers":{"good.io":"good","bad.io":"bad","noise.io":"noise","gone.io":"not-there","path.io":"../../bin/x"},"credsStore":"none"}`, b64("u:"), b64("s:5")))
	token := writeFile(t, filepath.Join(dir, "token.json"), []byte(`{"credsStore":"token","auths":{"token.io":{}}}`))
	f := oci.Files{Paths: []string{filepath.Join(dir, "absent"), podman, docker, token}}
	for _, c := range []struct {
		host, repo string
		want       oci.Credentials
	}{
		{"quay.io", "team/x", oci.Credentials{Username: "team", Password: "1"}},
		{"quay.io", "teams/x", oci.Credentials{Username: "all", Password: "2:3"}},
		{"docker.io", "library/debian", oci.Credentials{Username: "hub", Password: "4"}},
		{"good.io", "x", oci.Credentials{Username: "h", Password: "s"}},
		{"id.io", "x", oci.Credentials{Username: "u", IdentityToken: "i"}},
		{"store.io", "x", oci.Credentials{Username: "s", Password: "5"}},
		{"token.io", "x", oci.Credentials{IdentityToken: "t"}},
	} {
		if got, err := f.Credentials(t.Context(), c.host, c.repo); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.host, got, err)
		}
	}
	if _, err := f.Credentials(t.Context(), "docker.io", "x"); err != nil {
		t.Error(err)
	}
	for host, says := range map[string]string{"bad.io": "no idea", "noise.io": "docker-credential-noise", "gone.io": "not installed", "path.io": "no name", "broken.io": "base64"} {
		got, err := f.Credentials(t.Context(), host, "x")
		if err == nil || !strings.Contains(err.Error(), says) || got != (oci.Credentials{}) {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	hub := oci.Files{Paths: []string{writeFile(t, filepath.Join(dir, "hub.json"), []byte(`{"credsStore":"good"}`))}}
	if _, err := hub.Credentials(t.Context(), "docker.io", "x/y"); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(asked); string(got) != "https://index.docker.io/v1/" {
		t.Errorf("the helper was asked for %q", got)
	}
	twice := oci.Files{Paths: []string{writeFile(t, filepath.Join(dir, "twice.json"), fmt.Appendf(nil,
		`{"auths":{"https://index.docker.io/v1/":{"auth":%q},"docker.io":{"auth":%q},"index.docker.io":{"auth":%q}}}`, b64("a:1"), b64("b:2"), b64("c:3")))}}
	for range 50 {
		if got, err := twice.Credentials(t.Context(), "docker.io", "x/y"); err != nil || got.Username != "b" {
			t.Fatalf("one of several spellings: %+v, %v", got, err)
		}
	}
	bad := oci.Files{Paths: []string{writeFile(t, filepath.Join(dir, "bad.json"), []byte(`{"auths":`))}}
	if _, err := bad.Credentials(t.Context(), "x.io", "y"); !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if none, err := (oci.Files{Paths: []string{writeFile(t, filepath.Join(dir, "empty.json"), nil)}}).Credentials(t.Context(), "x.io", "y"); err != nil || none != (oci.Credentials{}) {
		t.Errorf("%+v, %v", none, err)
	}
}
