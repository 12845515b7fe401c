package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
)

// stream is a tar stream of entries; files hold their own name.
func stream(t *testing.T, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = io.WriteString(w, h.Name)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// listing is what a stream holds, an entry a line.
func listing(t *testing.T, r io.Reader) string {
	t.Helper()
	var out strings.Builder
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(in)
		fmt.Fprintf(&out, "%c %s %o %d:%d %s %s\n", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, content)
	}
}

func TestTransfer(t *testing.T) {
	at := time.Unix(1_700_000_000, 123)
	long := strings.Repeat("long", 60)
	tree := []tar.Header{
		{Typeflag: tar.TypeDir, Name: "src/", Mode: 0o2755, Uid: 5, Gid: 6, ModTime: at},
		{Typeflag: tar.TypeReg, Name: "src/a", Mode: 0o4755, Uid: 7, Gid: 8, ModTime: at, Format: tar.FormatPAX},
		{Typeflag: tar.TypeLink, Name: "src/b", Linkname: "src/a"},
		{Typeflag: tar.TypeSymlink, Name: "src/c", Linkname: "/src/a"},
		{Typeflag: tar.TypeFifo, Name: "src/p", Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "src/" + long, Mode: 0o644},
	}
	for _, c := range []struct {
		opts TransferOptions
		want string
	}{
		{TransferOptions{Rename: "new"}, "5 new/ 755 5:6  \n0 new/a 755 7:8  src/a\n1 new/b 0 0:0 new/a \n2 new/c 0 0:0 /src/a \n0 new/" + long + " 644 0:0  src/" + long + "\n"},
		{TransferOptions{Strip: true, Keep: true}, "0 a 4755 7:8  src/a\n1 b 0 0:0 a \n2 c 0 0:0 /src/a \n6 p 600 0:0  \n0 " + long + " 644 0:0  src/" + long + "\n"},
	} {
		var out bytes.Buffer
		if err := Transfer(context.Background(), stream(t, tree...), &out, c.opts); err != nil {
			t.Fatal(err)
		}
		if got := listing(t, &out); got != c.want {
			t.Errorf("%+v: got\n%swant\n%s", c.opts, got, c.want)
		}
	}
}

// A VM sends what it likes; what would harm the other one does not pass.
func TestTransferHostile(t *testing.T) {
	for name, c := range map[string]struct {
		entries []tar.Header
		opts    TransferOptions
		class   error
	}{
		"up":         {[]tar.Header{{Typeflag: tar.TypeReg, Name: "a/../../b"}}, TransferOptions{}, errdefs.ErrInvalidArgument},
		"absolute":   {[]tar.Header{{Typeflag: tar.TypeReg, Name: "/etc/passwd"}}, TransferOptions{Rename: "x"}, errdefs.ErrInvalidArgument},
		"itself":     {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "src", Linkname: "/"}}, TransferOptions{Strip: true}, errdefs.ErrInvalidArgument},
		"a link up":  {[]tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "../b"}}, TransferOptions{}, errdefs.ErrInvalidArgument},
		"two files":  {[]tar.Header{{Typeflag: tar.TypeReg, Name: "a"}, {Typeflag: tar.TypeReg, Name: "b"}}, TransferOptions{One: true}, errdefs.ErrInvalidArgument},
		"no file":    {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}}, TransferOptions{One: true}, errdefs.ErrInvalidArgument},
		"a device":   {[]tar.Header{{Typeflag: tar.TypeBlock, Name: "a", Devmajor: 8}}, TransferOptions{}, errdefs.ErrPermission},
		"odd record": {[]tar.Header{{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"VENDOR.x": "y"}}}, TransferOptions{}, nil},
	} {
		err := Transfer(context.Background(), stream(t, c.entries...), io.Discard, c.opts)
		if c.class == nil && err != nil || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: %v", name, err)
		}
	}
	whole := stream(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644}).Bytes()
	for _, cut := range []int{1, 512} {
		if err := Transfer(context.Background(), bytes.NewReader(whole[:cut]), io.Discard, TransferOptions{}); err == nil {
			t.Errorf("a stream of %d bytes passes", cut)
		}
	}
}
