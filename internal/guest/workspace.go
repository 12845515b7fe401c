package guest

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
)

// maxConflicts bounds what a guest may say of conflicts, in bytes and in files.
const (
	maxConflictBytes = 16 << 20
	maxConflicts     = 1 << 20
)

// PutWorkspace runs a workspace-put request: plan writes the entries of the plan, pack
// the tar stream. conflicts names what the guest has changed of what would be
// overwritten, with the mode of what it has; the error is then of class
// failed_precondition unless the request has Force. pack is not called before the guest
// has agreed. It owns conn, as all calls do.
func PutWorkspace(ctx context.Context, conn net.Conn, r WorkspacePut, plan func(*manifest.Writer) error, pack func(io.Writer) error) (conflicts []manifest.Entry, err error) {
	defer guard(ctx, conn)()
	w := NewFrameWriter(conn)
	if err := w.Request(Request{Kind: KindWorkspacePut, WorkspacePut: &r}); err != nil {
		return nil, lost(ctx, err)
	}
	out := &stdinWriter{w: w}
	err = sendList(out, plan, out.flush)
	if err != nil && !out.failed {
		return nil, err
	}
	// Whatever became of the writing, the guest may have said why.
	in := NewFrameReader(conn)
	var named bytes.Buffer
	answer := awaitStart(ctx, in, &named)
	if named.Len() > 0 {
		listErr := manifest.All(bufio.NewReader(&named), maxConflicts, func(e manifest.Entry) error {
			conflicts = append(conflicts, e)
			return nil
		})
		if listErr != nil {
			return nil, errdefs.Invalid("read what the VM says of conflicts: %w", listErr)
		}
	}
	switch {
	case answer != nil:
		return conflicts, answer
	case err != nil:
		return conflicts, lost(ctx, err)
	}
	return conflicts, feed(ctx, conn, in, pack)
}

// sendList sends a section of a manifest, and what is left of it by end.
func sendList(out *stdinWriter, fill func(*manifest.Writer) error, end func() error) error {
	list := manifest.NewWriter(out)
	if err := fill(list); err != nil {
		return err
	}
	if err := list.End(); err != nil {
		return err
	}
	return end()
}

// awaitStart reads up to the frame that says that the request goes on, or fails.
func awaitStart(ctx context.Context, r *FrameReader, out *bytes.Buffer) error {
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return lost(ctx, err)
		}
		if channel != ChanStdout {
			_, err := agreed(channel, payload)
			return err
		}
		if out.Len()+len(payload) > maxConflictBytes {
			return errdefs.Exhausted("the VM names more conflicts than fit into %d bytes", maxConflictBytes)
		}
		out.Write(payload)
	}
}

// ReceiveChanges runs a workspace-changes request: also writes the files that are wanted
// in any case, and the tar stream goes to w.
func ReceiveChanges(ctx context.Context, conn net.Conn, r WorkspaceChanges, also func(*manifest.Writer) error, w io.Writer) error {
	defer guard(ctx, conn)()
	frames := NewFrameWriter(conn)
	if err := frames.Request(Request{Kind: KindWorkspaceChanges, WorkspaceChanges: &r}); err != nil {
		return lost(ctx, err)
	}
	out := &stdinWriter{w: frames}
	err := sendList(out, also, out.end)
	if err != nil && !out.failed {
		return err
	}
	_, err = await(ctx, NewFrameReader(conn), w)
	return err
}
