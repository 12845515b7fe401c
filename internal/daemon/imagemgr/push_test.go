package imagemgr

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

func (w *world) push(name, to string, insecure bool) (string, error) {
	return w.s.Push(w.t.Context(), PushImage{Name: name, To: to, Insecure: insecure}, nobody{})
}

func TestPushToRealRegistry(t *testing.T) {
	d := ocitest.StartRegistry(t)
	auth := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(auth, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, d.Host, base64.StdEncoding.EncodeToString([]byte("me:secret"))), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	i := w.registered("mine", "there")
	before := w.files()
	ref := d.Host + "/some/where:1"
	if _, err := w.push("mine", ref, false); err == nil || errdefs.HintOf(err) == "" {
		t.Errorf("without its certificate: %v", err)
	}
	if _, err := w.push("mine", ref, true); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "log in") {
		t.Errorf("without a password: %v (%s)", err, errdefs.HintOf(err))
	}
	w.s.Sources.Keychain = oci.Files{Paths: []string{auth}}
	insecure, err := w.push("mine", ref, true)
	if err != nil {
		t.Fatal(err)
	}
	w.s.Sources.Transport.TLSClientConfig = &tls.Config{RootCAs: d.Pool}
	w.tag("mine", ref, false)
	digest, err := w.push(ref, "", false)
	if err != nil || digest != insecure {
		t.Fatalf("%s, %v; was %s", digest, err, insecure)
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
	var judge struct{ Digest string }
	if err := json.Unmarshal(d.Skopeo(t, "inspect", "--creds=me:secret", "--cert-dir="+d.Certs, "docker://"+ref), &judge); err != nil || judge.Digest != digest {
		t.Errorf("skopeo says %+v, %v", judge, err)
	}
	back := w.pull(d.Host + "/some/where@" + digest)
	w.says(back, "there")
	if !reflect.DeepEqual(back.Config, i.Config) {
		t.Errorf("config %+v, was %+v", back.Config, i.Config)
	}
}

func TestPushRefuses(t *testing.T) {
	w := newWorld(t)
	w.registered("mine", "there")
	before := w.files()
	for what, c := range map[string]struct {
		name, to string
		class    errdefs.Class
	}{
		"nowhere":     {"mine", "", errdefs.ClassInvalidArgument},
		"debian":      {"debian", "", errdefs.ClassInvalidArgument},
		"a directory": {"mine", "oci:/x", errdefs.ClassInvalidArgument},
		"a digest":    {"mine", "localhost:1/x@sha256:" + strings.Repeat("0", 64), errdefs.ClassInvalidArgument},
		"nonsense":    {"mine", "a b", errdefs.ClassInvalidArgument},
		"unknown":     {"nothing", "localhost:1/x", errdefs.ClassNotFound},
		"nobody":      {"mine", "127.0.0.1:1/x", errdefs.ClassUnavailable},
	} {
		if got, err := w.push(c.name, c.to, false); errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %q, %v (%s; %s)", what, got, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
	}
	if got := w.files(); got != before {
		t.Errorf("left %s, before %s", got, before)
	}
}
