package oci

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// verifier reads content of a known size and digest, and ends with io.EOF only if it is
// that.
type verifier struct {
	r    io.Reader
	want blobs.Digest
	left int64
	hash hash.Hash
}

func newVerifier(r io.Reader, d blobs.Digest, size int64) *verifier {
	return &verifier{r: r, want: d, left: size, hash: sha256.New()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if v.left == 0 {
		return 0, v.end()
	}
	n, err := v.r.Read(p[:min(int64(len(p)), v.left)])
	v.hash.Write(p[:n])
	v.left -= int64(n)
	if err == io.EOF {
		if err = nil; v.left > 0 {
			err = fmt.Errorf("%s ends %d bytes early: %w", v.want.Short(), v.left, io.ErrUnexpectedEOF)
		}
	}
	return n, err
}

func (v *verifier) end() error {
	if got := sum(v.hash); got != v.want {
		return errdefs.Invalid("%s: %w, it is %s", v.want.Short(), blobs.ErrDigest, got)
	}
	return io.EOF
}

func hashOf(d blobs.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

const copyBuffer = 256 << 10
