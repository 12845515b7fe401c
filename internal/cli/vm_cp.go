package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/workspace"
)

type cpOpts struct {
	src, dst string
	user     string
	archive  bool
}

func newCpCmd(a *app) *cobra.Command {
	opts := cpOpts{}
	c := &cobra.Command{
		Use:   "cp SRC VM:DST | cp VM:SRC DST | cp VM:SRC VM:DST",
		Short: "Copy files into a VM, out of it, or between VMs",
		Long: `Cp copies a file or a directory, with modes and times, between this host and a
running VM. Relative paths in a VM start at its working directory.

  SRC a file        DST an existing directory: goes into it; else DST is its name
  SRC a directory   DST an existing directory: goes into it; else DST is made of it
  SRC ends in /.    the contents of the directory go into DST
  -                 a tar stream on stdin or stdout takes the place of a host path

A symlink given as SRC is followed; links below it are copied as links.
Files copied in belong to the VM's user, or keep their numeric owner with --archive.
Files copied out belong to you; set-id bits are dropped and devices refused. So it is
between VMs, where files pass through this host and are not kept on it; with --archive
the VM they come from is believed.`,
		Example: `  banger cp ./data calm-otter:/srv
  banger cp calm-otter:/workspace/dist ./dist
  banger cp calm-otter:/var/log/. ./logs
  tar c src | banger cp - calm-otter:/tmp
  banger cp calm-otter:/etc - | tar t
  banger cp calm-otter:/workspace/dist brave-fox:/srv`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageErr(cmd, "%q needs a source and a destination", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeCp,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.src, opts.dst = args[0], args[1]
			from, to := parseEnd(opts.src), parseEnd(opts.dst)
			switch {
			case from.vm == "" && to.vm == "":
				return usageErr(cmd, "neither %q nor %q is in a VM: write VM:PATH", opts.src, opts.dst)
			case from.path == "" || to.path == "":
				return usageErr(cmd, "a path is empty")
			case opts.archive && opts.user != "":
				return usageErr(cmd, "--archive and --user exclude each other")
			case to.vm == "" && (opts.archive || opts.user != ""):
				return usageErr(cmd, "--archive and --user are for copying into a VM")
			}
			return runCp(cmd.Context(), a, opts, from, to)
		},
	}
	c.Flags().StringVarP(&opts.user, "user", "u", "", "`user` who owns what is copied in (default: the VM's)")
	c.Flags().BoolVarP(&opts.archive, "archive", "a", false, "keep numeric owners of what is copied in")
	return c
}

// end is one end of a copy: a path in a VM, or one on the host when vm is empty.
type end struct{ vm, path string }

// parseEnd reads VM:PATH. As with scp, a slash before the colon makes it a host
// path, so ./a:b is one.
func parseEnd(s string) end {
	vm, p, ok := strings.Cut(s, ":")
	if !ok || vm == "" || strings.ContainsAny(vm, "/.") {
		return end{path: s}
	}
	return end{vm, p}
}

// contentsOf reports whether p ends in "/.", and p without it.
func contentsOf(p string) (string, bool) {
	if p == "." {
		return p, true
	}
	trimmed, ok := strings.CutSuffix(strings.TrimRight(p, "/"), "/.")
	if ok && trimmed == "" {
		trimmed = "/"
	}
	if !ok {
		return p, false
	}
	return trimmed, true
}

func runCp(ctx context.Context, a *app, opts cpOpts, from, to end) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	k := &copier{app: a, client: c, opts: opts}
	switch {
	case to.vm != "" && from.vm != "":
		err = k.between(ctx, from, to)
	case to.vm != "" && from.path == "-":
		err = k.streamIn(ctx, to)
	case to.vm != "":
		err = k.in(ctx, from.path, to)
	case to.path == "-":
		err = k.streamOut(ctx, from)
	default:
		err = k.out(ctx, from, to.path)
	}
	a.status.clear()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return interrupted(err)
}

type copier struct {
	app    *app
	client *client.Client
	opts   cpOpts
}

// owner is who owns what is copied in; empty keeps the numbers.
func (k *copier) owner(ctx context.Context, vm string) (string, error) {
	if k.opts.archive || k.opts.user != "" {
		return k.opts.user, nil
	}
	return defaultUser(ctx, k.client, vm)
}

// stat describes a path in a VM; nil when there is nothing.
func (k *copier) stat(ctx context.Context, at end) (*guest.FileStat, error) {
	conn, err := k.client.OpenStream(ctx, api.StreamPath(at.vm))
	if err != nil {
		return nil, err
	}
	got, err := guest.Call(ctx, conn, guest.Request{Kind: guest.KindStat, Stat: &guest.StatPath{Path: at.path}})
	switch {
	case err != nil && errdefs.ClassOf(err) == errdefs.ClassNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	case got.Stat == nil:
		return nil, errdefs.Invalid("the VM did not say what %s is", at.path).WithHint("see what it does say: banger vm logs %s", at.vm)
	}
	return got.Stat, nil
}

// send opens a copy-in and writes its stream.
func (k *copier) send(ctx context.Context, vm string, in guest.CopyIn, pack func(io.Writer) error) error {
	conn, err := k.client.OpenStream(ctx, api.StreamPath(vm))
	if err != nil {
		return err
	}
	return guest.SendTar(ctx, conn, guest.Request{Kind: guest.KindCopyIn, CopyIn: &in}, pack)
}

// in copies a file or a directory into a VM.
func (k *copier) in(ctx context.Context, src string, dst end) error {
	src, contents := contentsOf(src)
	if _, err := os.Stat(src); err != nil {
		return fileErr("copy", src, err)
	}
	there, err := k.stat(ctx, dst)
	if err != nil {
		return err
	}
	user, err := k.owner(ctx, dst.vm)
	if err != nil {
		return err
	}
	tree, err := workspace.InspectCopy(ctx, src)
	if err != nil {
		return err
	}
	for _, n := range tree.Notices {
		k.app.warn("%s", n)
	}
	in := guest.CopyIn{Dest: dst.path, User: user}
	options := workspace.WriteOptions{
		Progress: k.progress(tree.Bytes),
		Changed:  func(path string) { k.app.warn("%s changed while it was read", path) },
	}
	base, err := baseName(src)
	if err != nil {
		return err
	}
	switch {
	case tree.IsFile() && contents:
		return errdefs.Invalid("copy: %s is not a directory", src).WithHint("only a directory has contents: leave the /. away")
	case tree.IsFile():
		if there == nil && strings.HasSuffix(dst.path, "/") {
			return errdefs.NotFound("copy: the directory %s does not exist in vm %q", dst.path, dst.vm).
				WithHint("make it: banger exec %s -- mkdir -p %s", dst.vm, dst.path)
		}
		in.File, options.Prefix = true, base
	case there != nil && !there.IsDir:
		return errdefs.Invalid("copy: %s is a directory, but %s in vm %q is not", src, dst.path, dst.vm).
			WithHint("name a directory there, or a path where nothing is yet")
	case there != nil && !contents:
		options.Prefix = base
	default:
		in.Mkdir = true
	}
	return k.send(ctx, dst.vm, in, func(w io.Writer) error { return tree.WriteTar(ctx, w, options) })
}

// baseName is the last element of the place a path names, so that "." has one too.
func baseName(p string) (string, error) {
	abs, err := absolute(p)
	if err == nil && abs == "/" {
		return "root", nil
	}
	return filepath.Base(abs), err
}

// streamIn unpacks the tar stream on stdin in a VM.
func (k *copier) streamIn(ctx context.Context, dst end) error {
	if k.app.inTTY {
		return usageTry("tar c FILES | banger cp - VM:DIR", "stdin is a terminal, not a tar stream")
	}
	there, err := k.stat(ctx, dst)
	switch {
	case err != nil:
		return err
	case there == nil:
		return errdefs.NotFound("copy: %s does not exist in vm %q", dst.path, dst.vm).
			WithHint("make it: banger exec %s -- mkdir -p %s", dst.vm, dst.path)
	case !there.IsDir:
		return errdefs.Invalid("copy: %s in vm %q is not a directory", dst.path, dst.vm).
			WithHint("name the directory that the files of the stream go into")
	}
	user, err := k.owner(ctx, dst.vm)
	if err != nil {
		return err
	}
	return k.send(ctx, dst.vm, guest.CopyIn{Dest: dst.path, User: user}, func(w io.Writer) error {
		buf := make([]byte, 256<<10)
		_, err := io.CopyBuffer(w, struct{ io.Reader }{k.app.in}, buf)
		return err
	})
}

// receive runs a copy-out and hands the stream to use.
func (k *copier) receive(ctx context.Context, src end, use func(io.Reader) error) error {
	conn, err := k.client.OpenStream(ctx, api.StreamPath(src.vm))
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	used := make(chan error, 1)
	go func() {
		err := use(r)
		_ = r.CloseWithError(errUnwanted)
		used <- err
	}()
	err = guest.RecvTar(ctx, conn, guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: src.path}}, w)
	if err != nil && !errors.Is(err, errUnwanted) {
		_ = w.CloseWithError(err)
		<-used
		return err
	}
	_ = w.Close()
	return <-used
}

// errUnwanted ends a stream that its reader has given up on.
var errUnwanted = errors.New("the rest of the stream is not wanted")

// out copies a file or a directory out of a VM.
func (k *copier) out(ctx context.Context, src end, dst string) (err error) {
	path, contents := contentsOf(src.path)
	src.path = path
	st, err := k.stat(ctx, src)
	switch {
	case err != nil:
		return err
	case st == nil:
		return errdefs.NotFound("copy: %s does not exist in vm %q", src.path, src.vm).
			WithHint("look around: banger exec %s -- ls -la %s", src.vm, guestDir(src.path))
	case contents && !st.IsDir:
		return errdefs.Invalid("copy: %s in vm %q is not a directory", src.path, src.vm).
			WithHint("only a directory has contents: leave the /. away")
	}
	info, err := os.Stat(dst)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileErr("copy to", dst, err)
	}
	isDir := info != nil && info.IsDir()
	opts := workspace.ExtractOptions{One: !st.IsDir}
	into := dst
	switch {
	case st.IsDir && info != nil && !isDir:
		return errdefs.Invalid("copy: %s in vm %q is a directory, but %s is not", src.path, src.vm, dst).
			WithHint("name a directory, or a path where nothing is yet")
	case st.IsDir && isDir && !contents:
		opts.Rename = guestBase(src.path)
	case st.IsDir: // becomes dst, or goes into it
		opts.Strip = true
		if !isDir {
			if err := os.Mkdir(dst, 0o777); err != nil {
				return fileErr("copy: make", dst, err)
			}
			defer func() {
				if err != nil {
					_ = os.Remove(dst) // which leaves it when something has arrived
				}
			}()
		}
	case isDir:
		opts.Rename = guestBase(src.path)
	case strings.HasSuffix(dst, "/"):
		return errdefs.NotFound("copy: the directory %s does not exist", dst).WithHint("make it: mkdir -p %s", dst)
	default:
		into, opts.Rename = filepath.Dir(dst), filepath.Base(dst)
	}
	total := int64(0)
	if !st.IsDir {
		total = st.Size
	}
	opts.Progress = k.progress(total)
	return k.receive(ctx, src, func(r io.Reader) error { return workspace.Extract(ctx, r, into, opts) })
}

// guestBase names what is copied by the last element of its path, not by what the
// guest says; a path without one gets a name all the same.
func guestBase(p string) string {
	base := path.Base(path.Clean(p))
	if base == "/" || base == "." || base == ".." {
		return "root"
	}
	return base
}

func guestDir(p string) string {
	if p == "/" {
		return p
	}
	return path.Dir(strings.TrimRight(p, "/"))
}

// streamOut writes what is in a VM as a tar stream to stdout.
func (k *copier) streamOut(ctx context.Context, src end) error {
	if k.app.outTTY {
		return usageTry("banger cp VM:PATH - | tar t", "stdout is a terminal, not a place for a tar stream")
	}
	src.path, _ = contentsOf(src.path)
	conn, err := k.client.OpenStream(ctx, api.StreamPath(src.vm))
	if err != nil {
		return err
	}
	return guest.RecvTar(ctx, conn, guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: src.path}}, k.app.out)
}

// progress draws how far a copy is.
func (k *copier) progress(total int64) func(int64) {
	if !k.app.status.on {
		return nil
	}
	return func(done int64) {
		k.app.status.drawSometimes(func() string { return fmt.Sprintf("  %s", progressText(done, total, "bytes")) })
	}
}

// completeCp completes running VMs as "name:", and leaves host paths to the shell.
func (a *app) completeCp(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 || strings.ContainsAny(word, "/:.") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names, directive := a.completeVMs("running")(cmd, args, word)
	if len(names) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	for i := range names {
		names[i] += ":"
	}
	return names, directive&^cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
