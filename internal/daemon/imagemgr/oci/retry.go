package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/errdefs"
)

// statusError is an answer that is none.
type statusError struct {
	code   int
	after  time.Duration // when to come again; 0: not said
	detail string        // what the registry says; printable
	web    bool          // it is no registry that says so
}

func (e *statusError) Error() string {
	who := "registry"
	if e.web {
		who = "server"
	}
	s := fmt.Sprintf("the %s says %d %s", who, e.code, http.StatusText(e.code))
	if e.detail != "" {
		s += fmt.Sprintf(" (%q)", e.detail)
	}
	return s
}

func newStatusError(resp *http.Response) error {
	defer resp.Body.Close()
	e := &statusError{code: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err == nil && json.Unmarshal(raw, &body) == nil && len(body.Errors) > 0 {
		e.detail = strings.ToValidUTF8(body.Errors[0].Message, "")
		if len(e.detail) > 200 {
			e.detail = strings.ToValidUTF8(e.detail[:200], "")
		}
	}
	return e
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// passing are the answers that may be other ones soon.
var passing = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// temporary reports whether a request that failed is worth repeating, and after how
// long the server wants it to be.
func temporary(err error) (bool, time.Duration) {
	var se *statusError
	if errors.As(err, &se) {
		return slices.Contains(passing, se.code), se.after
	}
	var te *transport.Error // of the handshake
	if errors.As(err, &te) {
		return slices.Contains(passing, te.StatusCode), 0
	}
	var (
		classed *errdefs.Error
		local   *localError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		dns     *net.DNSError
	)
	switch {
	case errors.Is(err, errRefused), errors.As(err, &classed), errors.As(err, &local), errors.As(err, &cert), errors.As(err, &record), plainAnswer(err):
		return false, 0
	case errors.As(err, &dns) && dns.IsNotFound:
		return false, 0
	case errors.Is(err, errRead):
		return true, 0
	}
	var ne net.Error // everything that http.Client returns is one
	return errors.As(err, &ne), 0
}

// plainAnswer reports whether a server has answered TLS without. Package http has no
// other name for this than its text.
func plainAnswer(err error) bool {
	return strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// again repeats do until it succeeds, fails for good, or has failed r.Attempts times
// without getting further, which do reports.
func (r Retry) again(ctx context.Context, do func() (further bool, err error)) error {
	for failed := 0; ; {
		further, err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if further {
			failed = 0
		}
		failed++
		retry, after := temporary(err)
		if !retry || failed >= r.Attempts || after > 10*r.MaxPause {
			return err
		}
		pause := min(r.MaxPause, r.Pause<<min(failed-1, 20))
		pause += time.Duration(rand.Int64N(int64(pause)+1)) - pause/2 // so that not all come again at once
		select {
		case <-time.After(max(pause, after)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tamed is an error with words of a registry's or an archive's in it: some of them, and
// none that a terminal would act upon.
type tamed struct{ error }

const maxWords = 500 // bytes

func (e *tamed) Error() string {
	s := e.error.Error()
	if len(s) > maxWords {
		s = s[:maxWords] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return ' '
		}
		if !strconv.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

func (e *tamed) Unwrap() error { return e.error }

// explain gives an error of a registry its class and a hint.
func (e *endpoint) explain(err error) error {
	if err == nil {
		return nil
	}
	var classed *errdefs.Error
	if errors.As(err, &classed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code := 0
	var (
		se   *statusError
		te   *transport.Error
		cert *tls.CertificateVerificationError
		auth x509.UnknownAuthorityError
	)
	noTLS := errors.As(err, &cert) || errors.As(err, &auth) || plainAnswer(err) || errors.Is(err, errRefused) && strings.Contains(err.Error(), "without encryption")
	if errors.As(err, &se) {
		code = se.code
	} else if noTLS {
		// What came of trying it without does not matter.
	} else if errors.As(err, &te) {
		code = te.StatusCode
		err = &statusError{code: code} // its own text is as long as the server likes
	}
	err = fmt.Errorf("%s: %w", e.host, &tamed{err})
	hint := hints[e.pushing]
	switch {
	case code == http.StatusNotFound:
		return errdefs.NotFound("%w", err).WithHint("check name and tag")
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		if why := e.keyErr.Load(); why != nil {
			err = fmt.Errorf("%w; there are no credentials: %s", err, why)
		}
		return errdefs.Permission("%w", err).WithHint("%[1]s: docker login %[2]s, or podman login %[2]s", hint.denied, e.keyHost)
	case code == http.StatusTooManyRequests:
		return errdefs.Unavailable("%w", err).WithHint("wait; those who have logged in may %[1]s more often: docker login %[2]s, or podman login %[2]s", hint.verb, e.keyHost)
	case noTLS:
		return errdefs.Unavailable("%w", err).WithHint("if you trust this registry and the network to it: --insecure")
	}
	return errdefs.Unavailable("%w", err).WithHint("check the network and the proxy (HTTPS_PROXY), and %s again: %s", hint.verb, hint.kept)
}

// hints are what is to be tried, by whether it was a push that failed.
var hints = map[bool]struct{ verb, kept, denied string }{
	false: {"pull", "what was fetched is kept", "check the name: registries say this of images that do not exist, too; for a private one, log in"},
	true:  {"push", "what is there is not sent again", "check the name, and log in as somebody who may write there"},
}
