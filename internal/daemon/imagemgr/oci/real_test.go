package oci_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

// need skips a test on a host without a program, e.g. of the Debian package of that name.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// distribution is a registry as Debian has it, with TLS and passwords.
type distribution struct {
	host  string
	certs string // a directory with ca.crt, as skopeo wants it
	pool  *x509.CertPool
	data  string
}

// startRegistry starts docker-registry; it ends with the test.
func startRegistry(t testing.TB) *distribution {
	t.Helper()
	need(t, "docker-registry", "skopeo", "htpasswd")
	dir := t.TempDir()
	d := &distribution{certs: filepath.Join(dir, "certs"), pool: x509.NewCertPool(), data: filepath.Join(dir, "data")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	d.pool.AppendCertsFromPEM(cert)
	certFile := writeFile(t, filepath.Join(d.certs, "ca.crt"), cert)
	keyFile := writeFile(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	passwords := writeFile(t, filepath.Join(dir, "htpasswd"), run(t, "htpasswd", "-Bbn", "-C", "4", "me", "secret"))
	config := writeFile(t, filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `
version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:0", tls: {certificate: %s, key: %s}}
auth: {htpasswd: {realm: x, path: %s}}
`, d.data, certFile, keyFile, passwords))
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	var said strings.Builder
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		var line struct{ Msg string }
		_ = json.Unmarshal(lines.Bytes(), &line)
		if rest, ok := strings.CutPrefix(line.Msg, "listening on "); ok {
			d.host, _, _ = strings.Cut(rest, ",")
			go func() {
				for lines.Scan() { // so that it never waits for us
				}
			}()
			return d
		}
	}
	t.Fatalf("docker-registry does not start:\n%s", said.String())
	return nil
}

func (d *distribution) skopeo(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

func (d *distribution) push(t testing.TB, from, to string, args ...string) {
	t.Helper()
	d.skopeo(t, append([]string{"copy", "--dest-creds=me:secret", "--dest-cert-dir=" + d.certs, from, "docker://" + d.host + "/" + to}, args...)...)
}

func (d *distribution) options(t testing.TB) oci.Options {
	t.Helper()
	auth := writeFile(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`,
		d.host, base64.StdEncoding.EncodeToString([]byte("me:secret"))))
	return oci.Options{
		Cache: openCache(t, t.TempDir()), Platform: amd64, Keychain: oci.Files{Paths: []string{auth}},
		Transport: &http.Transport{TLSClientConfig: tlsConfig(d.pool)},
		Retry:     oci.Retry{Attempts: 2, Pause: time.Millisecond},
	}
}

// writeLayout writes images as an OCI layout, and returns its directory.
func writeLayout(t testing.TB, images map[string]*made) string {
	t.Helper()
	dir := t.TempDir()
	var entries []map[string]any
	for tag, m := range images {
		for d, data := range m.blobs {
			writeFile(t, filepath.Join(dir, "blobs/sha256", d.Hex()), data)
		}
		writeFile(t, filepath.Join(dir, "blobs/sha256", blobs.Of(m.manifest).Hex()), m.manifest)
		e := map[string]any{"mediaType": m.media, "digest": blobs.Of(m.manifest), "size": len(m.manifest)}
		if tag != "" {
			e["annotations"] = map[string]string{"org.opencontainers.image.ref.name": tag}
		}
		entries = append(entries, e)
	}
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	writeFile(t, filepath.Join(dir, "index.json"), toJSON(t, map[string]any{"schemaVersion": 2, "manifests": entries}))
	return dir
}

// inspect is what skopeo says of an image.
type inspect struct {
	Digest blobs.Digest
	Layers []blobs.Digest
}

func TestRealRegistry(t *testing.T) {
	d := startRegistry(t)
	m := makeImage(t, amd64, 80, 1_000_000, 10, 300_000)
	dir := writeLayout(t, map[string]*made{"1": m})
	for _, format := range []string{"oci", "v2s2"} {
		t.Run(format, func(t *testing.T) {
			to := "some/where:" + format
			d.push(t, "oci:"+dir+":1", to, "--format="+format)
			o := d.options(t)
			img := resolve(t, d.host+"/"+to, o)
			if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			nothingWrong(t, o.Cache)
			var judge inspect
			if err := json.Unmarshal(d.skopeo(t, "inspect", "--creds=me:secret", "--cert-dir="+d.certs, "docker://"+d.host+"/"+to), &judge); err != nil {
				t.Fatal(err)
			}
			if judge.Digest != img.Digest || len(judge.Layers) != len(img.Layers) {
				t.Fatalf("%+v, skopeo says %+v", img, judge)
			}
			for i, l := range img.Layers {
				if judge.Layers[i] != l.Digest {
					t.Errorf("layer %d: %s, skopeo says %s", i, l.Digest, judge.Layers[i])
				}
			}
			// What skopeo copies is what lies in the cache.
			copied := t.TempDir()
			d.skopeo(t, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.certs, "docker://"+d.host+"/"+to, "dir:"+copied)
			for _, dg := range img.Digests()[2:] {
				want, err := os.ReadFile(filepath.Join(copied, dg.Hex()))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := o.Cache.ReadAll(dg, 1<<30); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v", dg, err)
				}
			}
			if format == "oci" {
				check(t, img, o.Cache, m)
			}
			resolve(t, d.host+"/"+to, o) // which HEAD answers

			o.Keychain = keychain{d.host: "somebody"}
			for _, k := range []oci.Keychain{nil, keychain{d.host: "somebody"}} {
				o.Keychain, o.Cache = k, openCache(t, t.TempDir())
				if _, err := oci.Resolve(t.Context(), parse(t, d.host+"/"+to), o); !errors.Is(err, errdefs.ErrPermission) || errdefs.HintOf(err) == "" {
					t.Errorf("with other credentials: %v", err)
				}
			}
			o = d.options(t)
			if _, err := oci.Resolve(t.Context(), parse(t, d.host+"/nothing/there"), o); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%v", err)
			}
			// An interrupted layer goes on there, too.
			ctx, cancel := context.WithCancel(t.Context())
			img = resolve(t, d.host+"/"+to, o)
			_ = img.Fetch(ctx, o.Cache, 1, func(oci.Progress) { cancel() })
			if err := img.Fetch(t.Context(), o.Cache, 1, nil); err != nil {
				t.Error(err)
			}
			nothingWrong(t, o.Cache)
		})
	}
	t.Run("umoci", func(t *testing.T) {
		need(t, "umoci")
		img := filepath.Join(t.TempDir(), "img")
		run(t, "umoci", "init", "--layout", img)
		run(t, "umoci", "new", "--image", img+":new")
		run(t, "umoci", "config", "--image", img+":new", "--architecture", "amd64", "--os", "linux", "--config.user", "me:you", "--config.env", "A=b", "--config.exposedports", "80/tcp")
		run(t, "umoci", "insert", "--rootless", "--image", img+":new", img+"/oci-layout", "/etc/layout")
		d.push(t, "oci:"+img+":new", "umoci:1")
		for _, ref := range []string{"oci:" + img + ":new", d.host + "/umoci:1"} {
			o := d.options(t)
			i := resolve(t, ref, o)
			if c := i.Config.Config; c.User != "me:you" || len(i.Layers) != 1 || c.Env[0] != "A=b" {
				t.Errorf("%s: %+v", ref, i)
			}
			if err := i.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Error(err)
			}
		}
	})
}
