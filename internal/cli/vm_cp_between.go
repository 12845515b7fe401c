package cli

import (
	"context"
	"io"
	"path"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/workspace"
)

// between copies a file or a directory from one VM into another, or within one. Nothing of it
// comes to lie on this host.
func (k *copier) between(ctx context.Context, src, dst end) error {
	p, contents := contentsOf(src.path)
	src.path = p
	from, err := k.stat(ctx, src)
	switch {
	case err != nil:
		return err
	case from == nil:
		return errdefs.NotFound("copy: %s does not exist in vm %q", src.path, src.vm).
			WithHint("look around: banger exec %s -- ls -la %s", src.vm, guestDir(src.path))
	case contents && !from.IsDir:
		return errdefs.Invalid("copy: %s in vm %q is not a directory", src.path, src.vm).
			WithHint("only a directory has contents: leave the /. away")
	}
	there, err := k.stat(ctx, dst)
	if err != nil {
		return err
	}
	if err := k.checkInside(ctx, src, dst, from.IsDir); err != nil {
		return err
	}
	in, opts := guest.CopyIn{Dest: dst.path}, workspace.TransferOptions{One: !from.IsDir, Keep: k.opts.archive}
	switch {
	case !from.IsDir:
		if there == nil && strings.HasSuffix(dst.path, "/") {
			return errdefs.NotFound("copy: the directory %s does not exist in vm %q", dst.path, dst.vm).
				WithHint("make it: banger exec %s -- mkdir -p %s", dst.vm, dst.path)
		}
		in.File, opts.Rename = true, guestBase(src.path)
	case there != nil && !there.IsDir:
		return errdefs.Invalid("copy: %s in vm %q is a directory, but %s in vm %q is not", src.path, src.vm, dst.path, dst.vm).
			WithHint("name a directory there, or a path where nothing is yet")
	case there != nil && !contents:
		opts.Rename = guestBase(src.path)
	default:
		in.Mkdir, opts.Strip = true, true
	}
	if in.User, err = k.owner(ctx, dst.vm); err != nil {
		return err
	}
	total := int64(0)
	if !from.IsDir {
		total = from.Size
	}
	opts.Progress = k.progress(total)
	return k.send(ctx, dst.vm, in, func(w io.Writer) error {
		return k.receive(ctx, src, func(r io.Reader) error { return workspace.Transfer(ctx, r, w, opts) })
	})
}

// checkInside refuses to copy a directory into itself, which would never end.
func (k *copier) checkInside(ctx context.Context, src, dst end, isDir bool) error {
	if !isDir {
		return nil
	}
	vms, err := k.client.ListVMs(ctx)
	if err != nil {
		return err
	}
	if resolve(vms, src.vm) != resolve(vms, dst.vm) || path.IsAbs(src.path) != path.IsAbs(dst.path) {
		return nil
	}
	from, to := path.Clean(src.path), path.Clean(dst.path)
	if to == from || from == "/" || from == "." || strings.HasPrefix(to, from+"/") {
		return errdefs.Invalid("copy: %s is in %s, in the same vm %q", dst.path, src.path, src.vm).
			WithHint("name a place outside of the directory")
	}
	return nil
}
