// Package minisig checks signatures made by minisign: of catalogs, and of bundles that
// come as files.
package minisig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"

	"banger/internal/errdefs"
)

// MaxSize bounds a signature file, in bytes. Minisign's have some 300.
const MaxSize = 4 << 10

// Key is a public key that signatures are checked with.
type Key struct{ public minisign.PublicKey }

// ParseKey reads a public key: what minisign writes to its .pub file, or the second
// line of that alone, "RW…". Anything else is an error of class invalid_argument.
func ParseKey(text string) (Key, error) {
	var k Key
	text = strings.TrimSpace(text)
	if len(text) > MaxSize {
		return k, errdefs.Invalid("it is too long for a public key of minisign")
	}
	if err := k.public.UnmarshalText([]byte(text)); err != nil {
		return k, errdefs.Invalid("it is no public key of minisign").WithHint(`give the line "RW…" of minisign's .pub file`)
	}
	return k, nil
}

// ID is the name that minisign gives the key: 16 hex digits.
func (k Key) ID() string { return fmt.Sprintf("%016X", k.public.ID()) }

// Signed is what a signature says besides being right.
type Signed struct {
	Key  string    // id of the key
	Time time.Time // of signing, by the signer's clock; zero if the trusted comment has none
}

// Verify checks the signature of message. Nothing of either is believed before it
// returns without an error, whose class is permission.
func (k Key) Verify(message, signature []byte) (Signed, error) {
	s, err := k.parse(signature)
	if err != nil {
		return Signed{}, err
	}
	if !minisign.Verify(k.public, message, signature) {
		return Signed{}, k.wrong()
	}
	return k.signed(s), nil
}

// VerifyReader checks the signature of all that comes from r, which is hashed and not
// kept. Only signatures of the hash can be checked so, as minisign has made them by
// default since 0.8. Errors of r are returned as they are.
func (k Key) VerifyReader(ctx context.Context, r io.Reader, signature []byte) (Signed, error) {
	s, err := k.parse(signature)
	if err != nil {
		return Signed{}, err
	}
	if s.Algorithm != minisign.HashEdDSA {
		return Signed{}, errdefs.Permission("the signature is of minisign's old kind, which hashes nothing").
			WithHint("sign with minisign -H, or a newer minisign")
	}
	hashing := minisign.NewReader(r)
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return Signed{}, context.Cause(ctx)
		}
		if _, err := hashing.Read(buf); err == io.EOF {
			break
		} else if err != nil {
			return Signed{}, err
		}
	}
	if !hashing.Verify(k.public, signature) {
		return Signed{}, k.wrong()
	}
	return k.signed(s), nil
}

func (k Key) wrong() error {
	return errdefs.Permission("the signature is wrong: this is not what the owner of key %s has signed", k.ID())
}

func (k Key) parse(signature []byte) (s minisign.Signature, err error) {
	if len(signature) > MaxSize || bytes.IndexByte(signature, 0) >= 0 || s.UnmarshalText(signature) != nil {
		return s, errdefs.Permission("there is no signature of minisign's where one should be")
	}
	if s.KeyID != k.public.ID() {
		return s, errdefs.Permission("it is signed by key %016X instead of %s", s.KeyID, k.ID())
	}
	return s, nil
}

// signed reads the trusted comment: "timestamp:SECONDS", then fields after tabs.
func (k Key) signed(s minisign.Signature) Signed {
	out := Signed{Key: k.ID()}
	for _, field := range strings.Split(s.TrustedComment, "\t") {
		if text, ok := strings.CutPrefix(field, "timestamp:"); ok {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
				out.Time = time.Unix(n, 0)
			}
			break
		}
	}
	return out
}
