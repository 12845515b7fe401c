package oci

import (
	"context"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/errdefs"
)

// Found is an image in an archive.
type Found struct {
	Ref  Reference // leads to it
	Name string    // what it is called elsewhere, as in Familiar; "" where the archive does not say
}

const (
	maxFound  = 100 // images of an archive
	foundHint = "take those you want one by one: banger image pull --name NAME oci-archive:FILE:NAME"
)

// Contents says which images a file has that is an archive of an OCI layout or what
// `docker save` writes: which of these, is found out. One that is both counts as the first,
// which knows the digests of its manifests. Of several images those without a name are
// left out, as nothing leads to them. Of o the cache and the limits are needed.
func Contents(ctx context.Context, path string, o Options) ([]Found, error) {
	all, err := contents(ctx, path, o.withDefaults())
	return all, errdefs.Wrap(err, "look what is in %s", path)
}

func contents(ctx context.Context, path string, o Options) ([]Found, error) {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil, errdefs.Invalid("it is a directory").WithHint("for an OCI layout: banger image pull oci:%s", path)
	}
	f, _, err := openFile(path)
	if err != nil {
		return nil, err
	}
	a, err := openArchive(ctx, f, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.close() }()
	var names map[string]string
	var kind Kind
	switch {
	case a.has("oci-layout") && a.has("index.json"):
		kind = LayoutArchive
		names, err = layoutNames(a)
	case a.has("manifest.json"):
		kind = DockerArchive
		names, err = dockerNames(a)
	default:
		err = errdefs.Invalid("it is no archive of an image").
			WithHint("it has to be what docker save, podman save or skopeo write; for the files of a root file system: banger image pull --name NAME tar:%s", path)
	}
	if err != nil {
		return nil, err
	}
	if len(names) > maxFound {
		return nil, errdefs.Invalid("it has more than %d images", maxFound).WithHint(foundHint)
	}
	return found(kind, path, names)
}

// found makes references of the names in an archive.
func found(kind Kind, path string, names map[string]string) ([]Found, error) {
	all := []Found{}
	for inside, name := range names {
		ref, err := Parse(string(kind) + ":" + path + ":" + inside)
		if err == nil && ref.Path == path && ref.Tag == inside {
			all = append(all, Found{ref, name})
		}
	}
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(a.Ref.Tag, b.Ref.Tag) })
	if len(all) > 0 {
		return all, nil
	}
	ref, err := Parse(string(kind) + ":" + path)
	if err != nil || ref.Path != path {
		return nil, errdefs.Invalid("a colon in a path sets off the name of an image").WithHint("give the file another name")
	}
	return []Found{{Ref: ref}}, nil
}

func (a *archive) has(name string) bool {
	_, ok := a.members[name]
	return ok
}

// layoutNames returns the names in a layout, and what images are called by them: one that
// is only a tag names none.
func layoutNames(fs files) (map[string]string, error) {
	raw, err := readFile(fs, "index.json", maxManifest)
	if err != nil {
		return nil, err
	}
	top, err := newDocument(raw, "")
	if err != nil {
		return nil, err
	}
	var idx v1.IndexManifest
	if err := decode(top.raw, "index.json", &idx); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, m := range idx.Manifests {
		inside := m.Annotations[containerName]
		if inside == "" {
			inside = m.Annotations[refName]
		}
		if inside == "" || len(inside) > maxListed {
			continue
		}
		names[inside] = ""
		if ref, err := parseName(inside); err == nil && ref.Digest == "" && strings.ContainsAny(inside, ":/") {
			names[inside] = ref.Familiar()
		}
	}
	return names, nil
}

// dockerNames is the same for what docker save writes.
func dockerNames(fs files) (map[string]string, error) {
	all, err := readDocker(fs)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errdefs.NotFound("it has no image").WithHint("save it again")
	}
	names := map[string]string{}
	for _, img := range all {
		for _, t := range img.RepoTags {
			if ref, err := parseName(t); err == nil && ref.Digest == "" && len(t) <= maxListed {
				names[ref.Familiar()] = ref.Familiar()
			}
		}
	}
	return names, nil
}

// readDocker reads what an archive of docker save says of its images.
func readDocker(fs files) ([]dockerImage, error) {
	raw, err := readFile(fs, "manifest.json", maxManifest)
	if err != nil {
		return nil, err
	}
	if err := checkJSON(raw, maxManifest); err != nil {
		return nil, err
	}
	var all []dockerImage
	return all, decode(raw, "manifest.json", &all)
}
