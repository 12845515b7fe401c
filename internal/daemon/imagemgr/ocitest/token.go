package ocitest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Tokens gives out what lets one into a registry, as large ones have it: it is asked with a
// password, and the registry believes what it signs.
type Tokens struct {
	mu    sync.Mutex // guards asked
	asked []string
}

// Asked returns the scopes that tokens were asked for, in order.
func (s *Tokens) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// StartTokenRegistry starts docker-registry, which lets in who has a token; "me" gets one
// for everything with the password "secret", and others get one for nothing.
func StartTokenRegistry(t testing.TB) (*Registry, *Tokens) {
	t.Helper()
	Need(t, "docker-registry", "skopeo")
	d, s := newRegistry(t), &Tokens{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		scopes := req.URL.Query()["scope"]
		s.mu.Lock()
		s.asked = append(s.asked, scopes...)
		s.mu.Unlock()
		user, password, _ := req.BasicAuth()
		if user != "" && (user != "me" || password != "secret") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if user == "" {
			scopes = nil
		}
		token, err := d.sign(req.URL.Query().Get("service"), scopes)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{d.cert}, PrivateKey: d.key}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	// By a name: the library for registries goes to no private address for tokens.
	realm := strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/token"
	d.serve(t, fmt.Sprintf("token: {realm: %q, service: registry, issuer: somebody, rootcertbundle: %s}", realm, d.certFile))
	return d, s
}

// sign makes a token: https://distribution.github.io/distribution/spec/auth/jwt/
func (d *Registry) sign(service string, scopes []string) (string, error) {
	access := []map[string]any{}
	for _, scope := range scopes {
		kind, rest, _ := strings.Cut(scope, ":")
		name, actions, ok := strings.Cut(rest, ":")
		if !ok {
			return "", fmt.Errorf("scope %q", scope)
		}
		access = append(access, map[string]any{"type": kind, "name": name, "actions": strings.Split(actions, ",")})
	}
	now := time.Now()
	var parts []string
	for _, part := range []any{
		map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(d.cert)}},
		map[string]any{
			"iss": "somebody", "sub": "me", "aud": service, "jti": fmt.Sprint(now.UnixNano()), "access": access,
			"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		},
	} {
		data, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(data))
	}
	text := strings.Join(parts, ".")
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, d.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
