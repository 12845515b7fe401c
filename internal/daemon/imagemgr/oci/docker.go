package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// docker is an image in the format of `docker save`.
type docker struct {
	stored
	doc document
}

// dockerImage is one entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func openDocker(ctx context.Context, ref Reference, o Options) (source, error) {
	var f *os.File
	var err error
	if ref.Kind == DockerDaemon {
		f, err = save(ctx, ref, o)
	} else {
		f, _, err = openFile(ref.Path)
	}
	if err != nil {
		return nil, err
	}
	a, err := openArchive(ctx, f, o)
	if err != nil {
		return nil, err
	}
	d := &docker{stored: stored{fs: a, names: map[blobs.Digest]string{}}}
	if err := d.read(ctx, ref, o); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return d, nil
}

// read makes a manifest of what manifest.json says.
func (d *docker) read(ctx context.Context, ref Reference, o Options) error {
	all, err := readDocker(d.fs)
	if err != nil {
		return err
	}
	img, err := chooseDocker(all, ref)
	if err != nil {
		return err
	}
	config, err := readFile(d.fs, img.Config, maxConfig)
	if err != nil {
		return err
	}
	if len(img.Layers) > o.Limits.Layers {
		return errdefs.Invalid("the image has %d layers, more than %d", len(img.Layers), o.Limits.Layers)
	}
	c, err := parseConfig(config, len(img.Layers), o.Platform)
	if err != nil {
		return err
	}
	d.names[blobs.Of(config)] = img.Config
	var layers []v1.Descriptor
	for i, name := range img.Layers {
		l, err := d.layer(ctx, name, blobs.Digest(c.RootFS.DiffIDs[i].String()))
		if err != nil {
			return err
		}
		d.names[blobs.Digest(l.Digest.String())] = name
		layers = append(layers, l)
	}
	d.doc, err = madeUp(config, layers)
	return err
}

// layer describes a layer. One that is not compressed has the digest that the config
// gives; of others, which `docker save` makes since it can keep images as they came,
// the name says it or they have to be read.
func (d *docker) layer(ctx context.Context, name string, diffID blobs.Digest) (v1.Descriptor, error) {
	f, size, err := d.fs.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	l := v1.Descriptor{Size: size, Digest: hashOf(diffID), MediaType: types.DockerUncompressedLayer}
	compressed, err := packed(f)
	if err != nil || !compressed {
		return l, err
	}
	l.MediaType = types.DockerLayer
	if digest, err := blobs.ParseDigest("sha256:" + filepath.Base(name)); err == nil && strings.HasPrefix(name, "blobs/sha256/") {
		l.Digest = hashOf(digest)
		return l, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return l, err
	}
	digest, err := digestOf(blobs.Until(ctx, f))
	l.Digest = hashOf(digest)
	return l, err
}

func chooseDocker(all []dockerImage, ref Reference) (dockerImage, error) {
	if len(all) == 0 {
		return dockerImage{}, errdefs.NotFound("the archive has no image")
	}
	if len(all) == 1 && (ref.Kind == DockerDaemon || ref.Tag == "") {
		return all[0], nil
	}
	var names []string
	for _, img := range all {
		for _, t := range img.RepoTags {
			named, err := parseName(t)
			if err != nil {
				continue
			}
			if ref.Tag != "" && named.Familiar() == ref.Tag {
				return img, nil
			}
			if n := named.Familiar(); len(n) <= maxListed && len(names) < 20 && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	if ref.Kind == DockerDaemon || ref.Tag == "" {
		return dockerImage{}, errdefs.Invalid("the archive has several images, %q", names).WithHint("say which one: docker-archive:FILE:NAME")
	}
	return dockerImage{}, errdefs.NotFound("the archive has no image %q, but %q", ref.Tag, names)
}

func (d *docker) document(_ context.Context, want blobs.Digest) (document, error) {
	if want != "" && want != blobs.Of(d.doc.raw) {
		return document{}, errdefs.NotFound("an archive of docker save knows no digests of manifests").WithHint("name it by its tag")
	}
	return d.doc, nil
}

// DefaultSockets returns where Docker's and Podman's daemons listen for a user whose
// environment getenv reads.
func DefaultSockets(getenv func(string) string) []string {
	var all []string
	if path, ok := strings.CutPrefix(getenv("DOCKER_HOST"), "unix://"); ok {
		all = append(all, path)
	}
	all = append(all, "/var/run/docker.sock")
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		all = append(all, filepath.Join(dir, "docker.sock"), filepath.Join(dir, "podman", "podman.sock"))
	}
	return append(all, "/run/podman/podman.sock")
}

// save has Docker's or Podman's daemon write an image to a scratch file. Of several
// daemons the first that has the image counts.
func save(ctx context.Context, ref Reference, o Options) (*os.File, error) {
	sockets := o.Sockets
	if sockets == nil {
		sockets = DefaultSockets(os.Getenv)
	}
	name := ref.ID
	if name == "" {
		name = strings.TrimPrefix(ref.Familiar(), string(DockerDaemon)+":")
	}
	var missing error
	for _, socket := range sockets {
		f, err := saveFrom(ctx, socket, name, o)
		var op *net.OpError
		switch {
		case err == nil:
			return f, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, os.ErrPermission):
			continue // nobody listens there
		case missing == nil || errors.Is(missing, errdefs.ErrNotFound):
			missing = err
		}
	}
	if missing != nil {
		return nil, missing
	}
	return nil, errdefs.Unavailable("no daemon of Docker or Podman listens on %s", strings.Join(sockets, ", ")).
		WithHint("start it (podman: systemctl --user start podman.socket), or write the image to a file: docker save, then docker-archive:FILE")
}

func saveFrom(ctx context.Context, socket, name string, o Options) (*os.File, error) {
	ctx, quiet := withSilence(ctx, 10*o.Retry.Silence) // it packs before it speaks
	defer quiet.stop()
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeaders,
	}
	u := url.URL{Scheme: "http", Host: "docker", Path: "/images/" + name + "/get"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", o.UserAgent)
	resp, err := t.RoundTrip(req)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, errdefs.Permission("ask %s: %w", socket, err).WithHint("the daemon of banger needs access to this socket")
		}
		return nil, fmt.Errorf("ask %s: %w", socket, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		f, err := spool(quiet.reader(resp.Body), o)
		if errors.Is(err, errSource) && !errors.Is(err, context.Canceled) {
			err = errdefs.Unavailable("%w", err).WithHint("try again; or write the image to a file: docker save, then docker-archive:FILE")
		}
		return f, errdefs.Wrap(err, "get the image from %s", socket)
	case http.StatusNotFound:
		return nil, errdefs.NotFound("%s has no image %s", socket, name).WithHint("list them: docker images, or podman images")
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	var said struct{ Message string }
	_ = json.Unmarshal(raw, &said)
	return nil, errdefs.Unavailable("%s says %d %s (%.200q)", socket, resp.StatusCode, http.StatusText(resp.StatusCode), said.Message)
}
