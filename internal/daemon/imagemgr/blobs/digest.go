package blobs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Digest names content by its SHA-256: "sha256:" and 64 hexadecimal digits in lower
// case. One that came from ParseDigest or Of can be part of a file's name.
type Digest string

const algorithm = "sha256:"

// ErrAlgorithm says that a digest is of another kind than SHA-256.
var ErrAlgorithm = errors.New("only sha256 is supported")

// ParseDigest checks a digest. One of another algorithm is ErrAlgorithm.
func ParseDigest(s string) (Digest, error) {
	digits, ok := strings.CutPrefix(s, algorithm)
	if !ok {
		if name, rest, found := strings.Cut(s, ":"); found && name != "" && rest != "" {
			return "", fmt.Errorf("digest %.100q: %w", s, ErrAlgorithm)
		}
		return "", fmt.Errorf("%.100q is no digest", s)
	}
	if len(digits) != hex.EncodedLen(sha256.Size) || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%.100q is no digest: it takes 64 digits of 0-9 and a-f", s)
	}
	return Digest(s), nil
}

// Of returns the digest of data.
func Of(data []byte) Digest {
	sum := sha256.Sum256(data)
	return fromSum(sum[:])
}

func fromSum(sum []byte) Digest { return Digest(algorithm + hex.EncodeToString(sum)) }

// Hex is the digest without its algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), algorithm) }

// Short is enough of the digest for people.
func (d Digest) Short() string { return d.Hex()[:min(12, len(d.Hex()))] }
