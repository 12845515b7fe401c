package flatten

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"banger/internal/errdefs"
)

// maxWindow is what a zstd decoder may need, in bytes; zstd's own tool allows as much.
const maxWindow = 128 << 20

// mediaTypes are those of layers, up to how they are compressed. Layers that must not be
// distributed are layers like others to those who have them.
var mediaTypes = []string{
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

// compressions are what may follow the media type, and how such streams begin. What
// begins with neither magic number is a plain tar.
var compressions = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b\x08"},
	{"zstd", "\x28\xb5\x2f\xfd"},
}

// CheckMediaType returns an error if layers of the media type cannot be read.
func CheckMediaType(mediaType string) error {
	_, err := declared(mediaType)
	return err
}

// declared returns the name of the compression that a media type has, "" for none.
func declared(mediaType string) (string, error) {
	for _, m := range mediaTypes {
		rest, ok := strings.CutPrefix(mediaType, m)
		if !ok {
			continue
		}
		if rest == "" {
			return "", nil
		}
		for _, c := range compressions {
			if rest == "+"+c.name || rest == "."+c.name {
				return c.name, nil
			}
		}
	}
	return "", errdefs.Invalid("media type %s is none of a layer's", clip(mediaType))
}

// decompress returns the plain content of r, which is compressed as the media type
// says; a stream that is something else is refused.
func decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	found := ""
	for _, c := range compressions {
		// zstd's skippable frames may come before the first of its own.
		if bytes.HasPrefix(head, []byte(c.magic)) || c.name == "zstd" && skippable(head) {
			found = c.name
		}
	}
	if mediaType != "" {
		want, err := declared(mediaType)
		if err != nil {
			return nil, err
		}
		if want != found {
			return nil, errdefs.Invalid("media type %s, but the content is %s", clip(mediaType), cmp.Or(found, "not compressed"))
		}
	}
	switch found {
	case "gzip":
		return gzip.NewReader(br)
	case "zstd":
		// How much comes out is bounded by who reads it.
		d, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<63-1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

func skippable(head []byte) bool {
	return len(head) == 4 && head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18"
}
