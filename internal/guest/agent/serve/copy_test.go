package serve

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// A copy that fails before anything has arrived leaves no directory of those it made.
func TestFailedCopyLeavesNoDirectory(t *testing.T) {
	w := newWorld(t)
	dst := t.TempDir()
	there := filepath.Join(dst, "there")
	if err := os.Mkdir(there, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, into := range []string{filepath.Join(there, "new", "place"), there} {
		req := guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: into, Mkdir: true}}
		err := guest.SendTar(w.context(), w.dial(), req, func(out io.Writer) error {
			_, err := out.Write(make([]byte, 100)) // less than the header of an entry
			return err
		})
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("a stream that is cut: %v", err)
		}
	}
	if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
