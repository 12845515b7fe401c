package cli

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net"
	"path"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/workspace"
)

// Where a build is in its VM, and what its result and the images that it uses are called
// there.
const (
	buildDir     = "/build"
	buildContext = buildDir + "/context"
	buildImages  = buildDir + "/images"
	buildArchive = buildDir + "/image.tar"
	buildResult  = "localhost/banger/result:latest"
	buildImage   = "localhost/banger/context-%d:latest"
)

// builder is one `image build`.
type builder struct {
	app    *app
	client *client.Client
	opts   buildOpts
	in     buildInput
	plan   *bangerv1.BuildPlan
	vm     made
}

// build builds and returns the names of the image, one a line. The VM lives as long as the
// stream that holds it, so it goes with us, whatever ends us.
func (b *builder) build(ctx context.Context) (names string, err error) {
	if err := b.prepare(ctx); err != nil {
		return "", err
	}
	if b.vm, err = b.app.create(ctx, b.client, b.opts.request); err != nil {
		return "", err
	}
	hold, err := b.hold(ctx)
	if err == nil {
		names, err = b.inVM(ctx)
		_ = hold.Close()
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cleanup := b.app.remove(ctx, b.client, b.vm.id)
	switch {
	case cleanup == nil:
	case err == nil: // the image is made
		b.app.printError(errdefs.Wrap(cleanup, "delete vm %q", b.vm.name))
	default:
		err = joinCleanup(interrupted(err), cleanup)
	}
	return names, err
}

// prepare asks what can be asked before there is a VM.
func (b *builder) prepare(ctx context.Context) (err error) {
	req := &bangerv1.PrepareBuildRequest{Names: b.opts.names, Force: b.opts.force}
	for _, i := range b.opts.images {
		req.Images = append(req.Images, i.image)
	}
	if b.plan, err = b.client.PrepareBuild(ctx, req); err != nil {
		return err
	}
	disk := b.plan.GetDiskBytes()
	if b.opts.request.DiskBytes != nil {
		disk = b.opts.request.GetDiskBytes()
	}
	if b.in.tree != nil && b.in.tree.Bytes > disk/2 {
		return errdefs.Exhausted("build: the context has %s, more than half of the VM's disk of %s", humanBytes(b.in.tree.Bytes), humanBytes(disk)).
			WithHint("leave out what the build does not need: put it into .dockerignore; or make the disk larger: --disk")
	}
	b.opts.request.Image, b.opts.request.User, b.opts.request.AutoRemove = b.plan.GetImage(), "root", true
	return nil
}

// hold opens the stream that the VM ends with.
func (b *builder) hold(ctx context.Context) (net.Conn, error) {
	conn, err := b.client.OpenStream(ctx, api.StreamPath(b.vm.id))
	if err != nil {
		return nil, err
	}
	if err := guest.NewFrameWriter(conn).Request(guest.Request{Kind: guest.KindPing, Ephemeral: true}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// inVM does what is done in the VM.
func (b *builder) inVM(ctx context.Context) (names string, err error) {
	if err := b.send(ctx); err != nil {
		return "", errdefs.Wrap(err, "send the context")
	}
	for n, i := range b.opts.images {
		op, err := b.client.SendImage(context.WithoutCancel(ctx), &bangerv1.SendImageRequest{
			Name: i.image, Vm: b.vm.id, Path: fmt.Sprintf("%s/%d.tar", buildImages, n), As: fmt.Sprintf(buildImage, n),
		})
		if err == nil {
			_, err = waitOrCancel(ctx, b.client, op, b.app.follow())
		}
		if err != nil {
			return "", err
		}
	}
	// Short names mean what they mean here: Debian's list has other ideas of some.
	const load = `set -e; rm -rf /etc/containers/registries.conf.d
for image in ` + buildImages + `/*.tar; do [ ! -e "$image" ] || { buildah pull --quiet "oci-archive:$image" && rm "$image"; }; done`
	if err := b.quietly(ctx, "prepare the build", "sh", "-c", load); err != nil {
		return "", err
	}
	b.app.status.clear()
	code, err := b.exec(ctx, b.command(), b.app.err)
	if err != nil {
		return "", err
	}
	if code != 0 {
		return "", buildFailed(code)
	}
	if err := b.quietly(ctx, "write the image", "buildah", "push", "--quiet", buildResult, "oci-archive:"+buildArchive); err != nil {
		return "", err
	}
	op, err := b.client.FinishBuild(context.WithoutCancel(ctx), &bangerv1.FinishBuildRequest{
		Vm: b.vm.id, Path: buildArchive, Names: b.opts.names, Force: b.opts.force,
	})
	if err == nil {
		op, err = waitOrCancel(ctx, b.client, op, b.app.follow())
	}
	return op.GetResult(), err
}

// buildFailed is the error of a build that buildah ended.
func buildFailed(code int) error {
	return &exitError{code, errdefs.Precondition("the build failed: buildah ended with exit code %d", code).
		WithHint("what it said last is why; for want of space or memory: --disk, --memory")}
}

// command is what builds. The VM is new: there is nothing that a cache, or an older image,
// could be taken from.
func (b *builder) command() []string {
	c := []string{
		"buildah", "build", "--isolation", "chroot", "--layers=false", "--pull=false", "--format", "oci", "--tag", buildResult,
		"--file", buildDir + "/Dockerfile", "--ignorefile", buildDir + "/ignore",
	}
	if b.opts.noCache {
		c = append(c, "--no-cache")
	}
	if b.opts.target != "" {
		c = append(c, "--target", b.opts.target)
	}
	for _, arg := range b.opts.buildArgs {
		c = append(c, "--build-arg", arg)
	}
	for n, i := range b.opts.images {
		c = append(c, "--build-context", i.name+"=container-image://"+fmt.Sprintf(buildImage, n))
	}
	return append(c, buildContext)
}

// exec runs a command in the VM and returns its exit code.
func (b *builder) exec(ctx context.Context, args []string, out io.Writer) (int, error) {
	conn, err := b.client.OpenStream(ctx, api.StreamPath(b.vm.id))
	if err != nil {
		return 0, err
	}
	status, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{
		Args: args, User: "root", Workdir: buildDir, Env: []string{"CONTAINERS_REGISTRIES_CONF=" + buildDir + "/registries.conf"},
	}}, guest.ExecIO{Stdout: out, Stderr: out})
	return status.Code, err
}

// quietly runs a command that is to succeed; what it says counts when it does not.
func (b *builder) quietly(ctx context.Context, what string, args ...string) error {
	began, said := time.Now(), &lastBytes{}
	b.app.status.draw(fmt.Sprintf("  %s", what))
	code, err := b.exec(ctx, args, said)
	if err != nil {
		return errdefs.Wrap(err, "%s", what)
	}
	if code != 0 {
		return errdefs.Internal("%s: %s ended with exit code %d: %s", what, args[0], code, said.line()).
			WithHint("if there was no space left: more with --disk; if its image is not as it was made: banger image pull --force %s", b.plan.GetImage())
	}
	b.app.stageDone(what, time.Since(began))
	return nil
}

// lastBytes keeps the end of what is written.
type lastBytes struct{ b []byte }

func (l *lastBytes) Write(p []byte) (int, error) {
	const most = 4 << 10
	l.b = append(l.b, p[max(0, len(p)-most):]...)
	l.b = l.b[max(0, len(l.b)-most):]
	return len(p), nil
}

// line is the last one that is not empty.
func (l *lastBytes) line() string {
	lines := strings.Split(strings.TrimSpace(string(l.b)), "\n")
	return lines[len(lines)-1]
}

// send copies the Dockerfile and the context into the VM.
func (b *builder) send(ctx context.Context) error {
	files := []struct{ name, content string }{
		{"Dockerfile", string(b.in.dockerfile)}, {"registries.conf", b.plan.GetRegistries()},
		{"ignore", ""}, // what is left out was left out here
	}
	err := b.copyIn(ctx, buildDir, func(w io.Writer) error {
		out := tar.NewWriter(w)
		for _, dir := range []string{buildContext, buildImages} {
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path.Base(dir) + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		for _, f := range files {
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
				return err
			}
			if _, err := io.WriteString(out, f.content); err != nil {
				return err
			}
		}
		return out.Close()
	})
	if err != nil || b.in.tree == nil {
		return err
	}
	began, tree := time.Now(), b.in.tree
	err = b.copyIn(ctx, buildContext, func(w io.Writer) error {
		return tree.WriteTar(ctx, w, workspace.WriteOptions{Progress: func(sent int64) {
			b.app.status.drawSometimes(func() string {
				return fmt.Sprintf("  %-12s %s", "context", progressText(sent, tree.Bytes, "bytes"))
			})
		}, Changed: func(path string) { b.app.warn("%s changed while it was read", path) }})
	})
	if err == nil {
		b.app.stageDone("context", time.Since(began))
	}
	return err
}

func (b *builder) copyIn(ctx context.Context, to string, pack func(io.Writer) error) error {
	conn, err := b.client.OpenStream(ctx, api.StreamPath(b.vm.id))
	if err != nil {
		return err
	}
	return guest.SendTar(ctx, conn, guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: to, User: "root", Mkdir: true}}, pack)
}
