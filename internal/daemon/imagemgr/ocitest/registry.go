package ocitest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/sysexec"
)

// Need skips a test on a host without a program, e.g. of the Debian package of that name.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := sysexec.Look(p); err != nil {
			t.Skip(err)
		}
	}
}

// Run runs a program and returns what it prints.
func Run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{Path: name, Args: args})
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out
}

// Registry is a registry as Debian has it, with TLS and a password: "secret", of "me".
type Registry struct {
	Host  string // HOST:PORT
	Certs string // a directory with ca.crt, as skopeo wants it
	Pool  *x509.CertPool
	Data  string // where it keeps everything

	key      *ecdsa.PrivateKey
	cert     []byte // DER
	certFile string
}

// StartRegistry starts docker-registry; it ends with the test.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	Need(t, "docker-registry", "skopeo", "htpasswd")
	d := newRegistry(t)
	passwords := write(t, filepath.Join(d.Certs, "htpasswd"), Run(t, "htpasswd", "-Bbn", "-C", "4", "me", "secret"))
	d.serve(t, fmt.Sprintf("htpasswd: {realm: x, path: %s}", passwords))
	return d
}

func newRegistry(t testing.TB) *Registry {
	t.Helper()
	dir := t.TempDir()
	d := &Registry{Certs: filepath.Join(dir, "certs"), Pool: x509.NewCertPool(), Data: filepath.Join(dir, "data")}
	var err error
	if d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if d.cert, err = x509.CreateCertificate(rand.Reader, template, template, &d.key.PublicKey, d.key); err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.cert})
	d.Pool.AppendCertsFromPEM(cert)
	d.certFile = write(t, filepath.Join(d.Certs, "ca.crt"), cert)
	return d
}

// serve starts the program; auth says in its configuration who may do what.
func (d *Registry) serve(t testing.TB, auth string) {
	t.Helper()
	dir := t.TempDir()
	keyDER, err := x509.MarshalPKCS8PrivateKey(d.key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	config := write(t, filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `
version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:0", tls: {certificate: %s, key: %s}}
auth: {%s}
`, d.Data, d.certFile, keyFile, auth))
	out, in := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := sysexec.Run(ctx, sysexec.Cmd{
			Path: "docker-registry", Args: []string{"serve", config}, Stderr: in, Attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
		})
		_ = in.CloseWithError(err)
	}()
	t.Cleanup(func() {
		cancel()
		_ = out.Close()
		<-ended
	})
	lines := bufio.NewScanner(out)
	var said strings.Builder
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		var line struct{ Msg string }
		_ = json.Unmarshal(lines.Bytes(), &line)
		if rest, ok := strings.CutPrefix(line.Msg, "listening on "); ok {
			d.Host, _, _ = strings.Cut(rest, ",")
			go func() {
				for lines.Scan() { // so that it never waits for us
				}
			}()
			return
		}
	}
	t.Fatalf("docker-registry does not start:\n%s", said.String())
}

// Skopeo runs skopeo and returns what it prints.
func (d *Registry) Skopeo(t testing.TB, args ...string) []byte {
	t.Helper()
	return Run(t, "skopeo", append([]string{"--insecure-policy"}, args...)...)
}

// Push copies an image, as skopeo names it, to a name and tag on the registry.
func (d *Registry) Push(t testing.TB, from, to string, args ...string) {
	t.Helper()
	d.Skopeo(t, append([]string{"copy", "--dest-creds=me:secret", "--dest-cert-dir=" + d.Certs, from, "docker://" + d.Host + "/" + to}, args...)...)
}
