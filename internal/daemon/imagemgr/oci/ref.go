package oci

import (
	"net/url"
	"regexp"
	"strings"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Kind is the sort of place an image comes from.
type Kind string

// The kinds. All but Registry are the prefix of a reference, as written by users.
const (
	Registry      Kind = "registry"
	Layout        Kind = "oci"            // a directory in OCI image layout
	LayoutArchive Kind = "oci-archive"    // a tar file of one
	DockerArchive Kind = "docker-archive" // what `docker save` writes
	DockerDaemon  Kind = "docker-daemon"  // the images of Docker's or Podman's daemon
	RootTar       Kind = "tar"            // a root file system as a tar file
)

const (
	dockerHub   = "docker.io"
	defaultTag  = "latest"
	maxRef      = 4096
	maxRepo     = 255
	refHint     = "write it as NAME[:TAG], HOST/NAME[:TAG][@sha256:DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker-daemon:REF or tar:FILE"
	schemesHint = "leave the scheme away; for a registry without TLS, use --insecure"
)

// Reference says where an image is.
type Reference struct {
	Kind       Kind
	Host       string       // of a registry: HOST[:PORT]; docker.io for Docker Hub
	Repository string       // on the registry, or in Docker; with library/ where that goes without saying
	Tag        string       // also the image in an archive or layout; "" where there is no choice, or a digest
	Digest     blobs.Digest // "" unless it was given
	Path       string       // of a directory or file
	ID         string       // of an image of a Docker daemon: hexadecimal digits, or their beginning
}

var (
	hostExp = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	repoExp = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagExp  = regexp.MustCompile(`^\w[\w.-]{0,127}$`)
	idExp   = regexp.MustCompile(`^(?:sha256:)?([a-f0-9]{12,64})$`)
)

// Parse reads a reference as users write it.
func Parse(s string) (Reference, error) {
	if s == "" || len(s) > maxRef || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Reference{}, errdefs.Invalid("image reference %.100q is empty, too long or unprintable", s).WithHint(refHint)
	}
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseName(rest)
	}
	prefix, rest, found := strings.Cut(s, ":")
	if !found {
		return parseName(s)
	}
	switch kind := Kind(prefix); kind {
	case Layout, LayoutArchive, DockerArchive:
		path, image, chosen := strings.Cut(rest, ":")
		if path == "" || chosen && image == "" {
			return Reference{}, errdefs.Invalid("image reference %q names no %s", s, map[bool]string{true: "file", false: "image"}[path == ""]).WithHint(refHint)
		}
		r := Reference{Kind: kind, Path: path, Tag: image}
		if kind == DockerArchive && chosen {
			named, err := parseName(image)
			if err != nil {
				return Reference{}, err
			}
			r.Tag = named.Familiar()
		}
		return r, nil
	case RootTar:
		if rest == "" {
			return Reference{}, errdefs.Invalid("image reference %q names no file", s).WithHint(refHint)
		}
		return Reference{Kind: RootTar, Path: rest}, nil
	case DockerDaemon:
		if m := idExp.FindStringSubmatch(rest); m != nil {
			return Reference{Kind: DockerDaemon, ID: m[1]}, nil
		}
		r, err := parseName(rest)
		r.Kind = DockerDaemon
		return r, err
	}
	if strings.HasPrefix(rest, "//") {
		return Reference{}, errdefs.Invalid("image reference %q is a URL", s).WithHint(schemesHint)
	}
	return parseName(s)
}

// parseName reads [HOST/]NAME[:TAG][@DIGEST]. What comes before the first slash is a
// host when it could not be the beginning of a name.
func parseName(s string) (Reference, error) {
	r := Reference{Kind: Registry, Host: dockerHub}
	bad := func(why string) (Reference, error) {
		return Reference{}, errdefs.Invalid("image reference %q: %s", s, why).WithHint(refHint)
	}
	rest, digest, pinned := strings.Cut(s, "@")
	if pinned {
		d, err := blobs.ParseDigest(digest)
		if err != nil {
			return bad(err.Error())
		}
		r.Digest = d
	}
	if first, after, found := strings.Cut(rest, "/"); found && (strings.ContainsAny(first, ".:") || first == "localhost") {
		r.Host, rest = first, after
	}
	if r.Host == "index.docker.io" || r.Host == "registry-1.docker.io" {
		r.Host = dockerHub
	}
	if u, err := url.Parse("//" + r.Host); err != nil || u.Host != r.Host || !hostExp.MatchString(r.Host) {
		return bad("no host is called " + r.Host)
	}
	repo, tag, tagged := strings.Cut(rest, ":")
	if tagged && !tagExp.MatchString(tag) {
		return bad("a tag has up to 128 letters, digits and _ . -")
	}
	if !repoExp.MatchString(repo) || len(repo) > maxRepo {
		if strings.ToLower(repo) != repo {
			return bad("names are in lower case")
		}
		return bad("a name has up to 255 letters, digits, . _ - and /")
	}
	if r.Host == dockerHub && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	if !tagged && !pinned {
		tag = defaultTag
	}
	r.Repository, r.Tag = repo, tag
	return r, nil
}

// String is the reference in full: parsing it gives the same again.
func (r Reference) String() string {
	switch r.Kind {
	case Registry:
		return r.Host + "/" + r.Repository + r.suffix()
	case DockerDaemon:
		if r.ID != "" {
			return string(DockerDaemon) + ":sha256:" + r.ID
		}
		return string(DockerDaemon) + ":" + r.Host + "/" + r.Repository + r.suffix()
	}
	s := string(r.Kind) + ":" + r.Path
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	return s
}

func (r Reference) suffix() string {
	s := ""
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// Familiar is the reference as users write it: without what goes without saying.
func (r Reference) Familiar() string {
	if r.Repository == "" {
		return r.String()
	}
	name := r.Repository
	if r.Host != dockerHub {
		name = r.Host + "/" + name
	} else if short := strings.TrimPrefix(name, "library/"); !strings.Contains(short, "/") {
		name = short
	}
	name += r.suffix()
	if r.Kind == DockerDaemon {
		return string(DockerDaemon) + ":" + name
	}
	return name
}

// Local reports whether the image is on this host.
func (r Reference) Local() bool { return r.Kind != Registry }
