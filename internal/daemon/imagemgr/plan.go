package imagemgr

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Pull says which image to make.
type Pull struct {
	From     string   // what it is made from: "debian", "debian:SUITE", "catalog:NAME", or what oci.Parse takes, with absolute paths
	As       string   // its name; empty: From, without what goes without saying
	Include  []string // of Debian: packages to install besides the usual ones; As is needed then
	Platform string   // of others: OS/ARCHITECTURE[/VARIANT]; empty: as configured
	Insecure bool     // of others: allow http, and TLS that cannot be verified, for the registry
	Force    bool     // make it again although it is there
}

// recipe is what an image of Debian's packages is made by.
type recipe struct {
	suite   string // "": the default one
	include []string
}

// plan is a Pull that has been checked.
type plan struct {
	Pull
	name string // of the image

	// One of these says what to make it from; neither, that its name does not.
	debian *recipe
	offer  string // what a catalog calls it
	ref    *oci.Reference

	platform oci.Platform
	source   string // of the image, for people; empty: the reference
	look     bool   // find out whether it has changed where it comes from
	gentle   bool   // leave another image alone that has the name
}

// known reports whether the plan says what to make the image from.
func (p plan) known() bool { return p.debian != nil || p.offer != "" || p.ref != nil }

// moves reports whether what the name leads to may be another thing by now.
func (p plan) moves() bool { return p.offer != "" || p.ref != nil }

// names are those under which the image may be here: as it was asked for, and as it is
// called when it is pulled.
func (p plan) names() []string {
	if p.As != "" || p.From == p.name {
		return []string{p.name}
	}
	return []string{p.From, p.name}
}

// key tells work on one image from that on others.
func (p plan) key() string {
	if !p.moves() {
		return p.name
	}
	key := fmt.Sprintf("%s from %s", p.name, p.From)
	if p.ref != nil {
		key = fmt.Sprintf("%s from %s for %s", p.name, p.ref, p.platform)
	}
	if p.Insecure {
		key += ", insecure"
	}
	if p.Force {
		key += ", again"
	}
	if p.gentle {
		key += ", if the name is free"
	}
	return key
}

// plan checks a Pull.
func (s *Service) plan(p Pull) (plan, error) {
	pl := plan{Pull: p, name: p.From}
	suite, isDebian, err := suiteOf(p.From)
	if err != nil {
		return pl, err
	}
	offer, isOffered := offered(p.From)
	switch {
	case isDebian:
		pl.debian = &recipe{suite, p.Include}
		err = p.checkDebian()
	case isOffered:
		pl.offer = offer
		err = p.checkOffer(offer)
	case p.From == builderImage():
		pl.debian = &recipe{"", slices.Concat(builderPackages, p.Include)}
		err = p.checkDebian()
	case isBuilder(p.From): // of another version, which nobody can make here
	default:
		err = s.planRef(&pl)
	}
	if err == nil && p.As != "" && p.As != p.From {
		pl.name = p.As
		if err = model.CheckArtifactName("image", p.As); err == nil {
			err = ownName("image", p.As)
		}
	}
	return pl, err
}

func (p Pull) checkDebian() error {
	if err := debian.CheckPackages(p.Include); err != nil {
		return err
	}
	if p.As == "" && len(p.Include) > 0 {
		return errdefs.Invalid("an image with other packages than %q has needs a name of its own", p.From).
			WithHint("say which: banger image pull %s --name mine --include …", p.From)
	}
	if p.Platform != "" || p.Insecure {
		return errdefs.Invalid("image %q is made here, of Debian's packages: it has no other platform and no registry", p.From).
			WithHint("leave the flags out; for Docker's image of that name: docker.io/library/%s", p.From)
	}
	return nil
}

func (p Pull) checkOffer(offer string) error {
	if err := bundle.CheckName(offer); err != nil {
		return errdefs.Wrap(err, "image %q", p.From)
	}
	if len(p.Include) > 0 || p.Platform != "" || p.Insecure {
		return errdefs.Invalid("image %q is made by whoever signs the catalog: it has no other packages, platform or registry", p.From).
			WithHint("leave the flags out; for Docker's image of that name: docker.io/library/%s", p.From)
	}
	return nil
}

// planRef plans an image from elsewhere. A name that is no reference is one that only an
// image of the user's can have.
func (s *Service) planRef(pl *plan) error {
	p := pl.Pull
	ref, err := oci.Parse(p.From)
	if err != nil {
		if model.CheckArtifactName("image", p.From) == nil && len(p.Include) == 0 {
			return nil
		}
		return err
	}
	if len(p.Include) > 0 {
		return errdefs.Invalid("packages can be added to Debian's image only, not to %q", p.From).
			WithHint("leave --include out, or make yours: banger image pull debian --name mine --include …")
	}
	if ref.Path != "" {
		if err := checkAbsolute(ref.Path); err != nil {
			return err
		}
	}
	pl.platform = s.Sources.Platform
	if p.Platform != "" {
		if pl.platform, err = oci.ParsePlatform(p.Platform); err != nil {
			return err
		}
	}
	if pl.platform == (oci.Platform{}) {
		pl.platform = oci.HostPlatform()
	}
	pl.Insecure = p.Insecure || slices.Contains(s.Sources.Insecure, ref.Host)
	pl.ref, pl.name = &ref, imageNameOf(ref)
	return model.CheckArtifactName("image", pl.name)
}

// checkAbsolute refuses a path that is not the same for user and daemon.
func checkAbsolute(path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return errdefs.Invalid("path %q is not absolute", path).
		WithHint("write the whole path: the daemon works in another directory")
}

// imageNameOf is what an image is called that is pulled by a reference: what Docker's
// users call it, but in full where that would be a name of what is made of Debian's
// packages, or of what a catalog has.
func imageNameOf(ref oci.Reference) string {
	short := func(name string) string {
		if ref.Digest == "" && ref.Repository != "" {
			return strings.TrimSuffix(name, ":latest")
		}
		return name
	}
	name := short(ref.Familiar())
	if saysWhat(name) {
		return short(ref.String())
	}
	return name
}
