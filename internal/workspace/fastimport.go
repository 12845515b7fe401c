package workspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// importer makes commits in the export's repository, through one git process. The first
// error counts, and is what end returns.
type importer struct {
	w    *bufio.Writer
	pipe *io.PipeWriter
	done chan error
	who  string
	err  error
}

func (x *Export) importer(ctx context.Context) *importer {
	r, w := io.Pipe()
	im := &importer{w: bufio.NewWriterSize(w, 256<<10), pipe: w, done: make(chan error, 1), who: x.identity(ctx)}
	go func() {
		cmd := gitCmd(x.dir, ownRepo, "fast-import", "--quiet", "--force", "--done", "--date-format=raw-permissive")
		cmd.Stdin = r
		err := sysexec.Run(ctx, cmd)
		_ = r.CloseWithError(cmpErr(err, io.ErrClosedPipe))
		im.done <- err
	}()
	return im
}

func (im *importer) say(format string, args ...any) {
	if im.err == nil {
		_, im.err = fmt.Fprintf(im.w, format, args...)
	}
}

// commit begins a commit on a reference; parent may be empty. Its files are those of the
// parent, or of the tree, if one is given.
func (im *importer) commit(ref, parent, tree, message string) {
	who := im.who
	if strings.HasSuffix(who, " now") {
		who = strings.TrimSuffix(who, " now") + " 0 +0000"
	}
	im.say("commit %s\ncommitter %s\ndata %d\n%s\n", ref, who, len(message)+1, message+"\n")
	if parent != "" {
		im.say("from %s\n", parent)
	}
	if tree != "" {
		im.say("deleteall\nM 040000 %s \"\"\n", tree)
	}
}

// quotePath is a path as fast-import reads it.
func quotePath(name string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(name) {
		switch c := name[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, "\\%03o", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func (im *importer) gone(name string) { im.say("D %s\n", quotePath(name)) }

func (im *importer) object(name, mode, oid string) {
	im.say("M %s %s %s\n", mode, oid, quotePath(name))
}

// open adds a file with what it opens; what is not there is an error.
func (im *importer) open(name string, open func() (mode string, size int64, r io.ReadCloser, err error)) {
	if im.err != nil {
		return
	}
	mode, size, r, err := open()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		im.err = errdefs.Precondition("%q has gone from the VM while it was read", name).WithHint("try again when nothing writes to the workspace")
	case err != nil:
		im.err = errdefs.Wrap(err, "read %q", name)
	default:
		im.file(name, mode, size, func() (io.ReadCloser, error) { return r, nil })
	}
}

// file adds a file.
func (im *importer) file(name, mode string, size int64, open func() (io.ReadCloser, error)) {
	if im.err != nil {
		return
	}
	r, err := open()
	if err != nil {
		im.err = errdefs.Wrap(err, "read %q", name)
		return
	}
	defer func() { _ = r.Close() }()
	im.say("M %s inline %s\ndata %d\n", mode, quotePath(name), size)
	if im.err != nil {
		return
	}
	n, err := io.Copy(im.w, io.LimitReader(r, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		im.err = errdefs.Wrap(err, "read %q", name)
		return
	}
	im.say("\n")
}

// end ends the process. After an error it has made nothing.
func (im *importer) end() error {
	im.say("done\n")
	if im.err == nil {
		im.err = im.w.Flush()
	}
	_ = im.pipe.CloseWithError(cmpErr(im.err, io.EOF))
	err := <-im.done
	var e *sysexec.Error
	if errors.As(err, &e) && (im.err == nil || errors.Is(im.err, io.ErrClosedPipe) || errors.As(im.err, &e)) {
		first, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(e.Stderr), "fatal: "), "\n")
		return errdefs.Precondition("git cannot take in what is in the VM: %s", first)
	}
	if im.err != nil {
		return im.err
	}
	return err
}
