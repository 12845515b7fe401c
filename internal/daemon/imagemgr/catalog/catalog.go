// Package catalog knows which kernels and images can be had by a name as bundles: from
// the list that is built in, and from lists that somebody signs and publishes.
//
// Nothing of a catalog is parsed before its signature is right. Nor is one taken that
// was signed before the one that was seen last: whoever can put an old list in the place
// of a new one brings back the kernel that was replaced for a reason. That is what the
// time in minisign's trusted comment is for; a signature without is refused.
//
// Of two catalogs that have the same thing the one that the configuration names first
// counts, and the built-in list counts last. A catalog that is unreachable is replaced
// by what was last seen of it, and fails the lookup when there is none: going on to the
// next would give a name another meaning because of a network.
package catalog

import (
	_ "embed"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/errdefs"
	"banger/internal/model"
)

//go:embed builtin.json
var builtin []byte

// Bounds of a catalog.
const (
	maxCatalog     = 4 << 20 // bytes
	maxEntries     = 10_000
	maxBundle      = 64 << 30 // bytes
	maxDescription = 500      // bytes
	maxURL         = 2000     // bytes
)

// format is the version of catalogs; another one is refused.
const format = 1

// Entry is one bundle.
type Entry struct {
	Kind        string       `json:"kind"` // image or kernel
	Name        string       `json:"name"`
	Arch        string       `json:"arch"` // amd64; others are passed over
	Digest      blobs.Digest `json:"digest"`
	Size        int64        `json:"size"`             // of the bundle, in bytes
	Unpacked    int64        `json:"unpacked"`         // of the files in it, in bytes
	URL         string       `json:"url"`              // http, https, or relative to the catalog
	Description string       `json:"description"`      // one line
	Kernel      string       `json:"kernel,omitempty"` // of an image: the kernel it prefers, by name
}

// Want is what the entry says of its bundle.
func (e Entry) Want() bundle.Want {
	return bundle.Want{Digest: e.Digest, Size: e.Size, Kind: e.Kind, Name: e.Name, Unpacked: e.Unpacked}
}

type list struct {
	Format  int     `json:"format"`
	Entries []Entry `json:"entries"`
}

// Decode reads a catalog. What it does not know it refuses, with class invalid_argument,
// unsupported or exhausted, and the entry named.
func Decode(data []byte) ([]Entry, error) {
	var l list
	if err := bundle.Strict(data, maxCatalog, &l); err != nil {
		return nil, err
	}
	if l.Format != format {
		return nil, errdefs.Unsupported("it is of format %d, and known is %d", l.Format, format).WithHint("it takes a newer version of banger")
	}
	if len(l.Entries) > maxEntries {
		return nil, errdefs.Exhausted("it has %d entries, more than %d", len(l.Entries), maxEntries)
	}
	seen := map[string]bool{}
	for i, e := range l.Entries {
		if err := e.check(); err != nil {
			return nil, errdefs.Wrap(err, "entry %d, %q", i+1, clip(e.Name))
		}
		key := e.Kind + "/" + e.Arch + "/" + e.Name
		if seen[key] {
			return nil, errdefs.Invalid("entry %d: %s %q for %s is there twice", i+1, e.Kind, e.Name, e.Arch)
		}
		seen[key] = true
	}
	return l.Entries, nil
}

func (e Entry) check() error {
	if e.Kind != bundle.Image && e.Kind != bundle.Kernel {
		return errdefs.Invalid("kind %q is neither image nor kernel", clip(e.Kind))
	}
	if err := bundle.CheckName(e.Name); err != nil {
		return err
	}
	if e.Arch == "" || len(e.Arch) > 32 || strings.ContainsFunc(e.Arch, func(r rune) bool { return r != '_' && (r > 'z' || !unicode.IsLower(r) && !unicode.IsDigit(r)) }) {
		return errdefs.Invalid("architecture %q is none", clip(e.Arch))
	}
	if _, err := blobs.ParseDigest(string(e.Digest)); err != nil {
		return errdefs.Invalid("digest %q is none: it takes sha256: and 64 digits of 0-9 and a-f", clip(string(e.Digest)))
	}
	switch {
	case e.Size <= 0 || e.Size > maxBundle:
		return errdefs.Exhausted("it has %d bytes; allowed are 1 to %d", e.Size, int64(maxBundle))
	case e.Unpacked <= 0 || e.Unpacked > bundle.MaxUnpacked:
		return errdefs.Exhausted("it unpacks to %d bytes; allowed are 1 to %d", e.Unpacked, int64(bundle.MaxUnpacked))
	case len(e.Description) > maxDescription || strings.ContainsFunc(e.Description, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errdefs.Invalid("its description is no printable line of at most %d bytes", maxDescription)
	case e.Kernel != "" && e.Kind != bundle.Image:
		return errdefs.Invalid("a kernel prefers a kernel")
	}
	if e.Kernel != "" {
		if err := model.CheckArtifactName("kernel", e.Kernel); err != nil {
			return err
		}
	}
	u, err := parseURL(e.URL)
	if err != nil {
		return err
	}
	if u.Scheme != "" && !web(u) || u.Scheme == "" && (u.Host != "" || u.Path == "" || strings.HasPrefix(u.Path, "/") || !filepath.IsLocal(u.Path)) {
		return errdefs.Invalid("URL %q is neither http(s) nor a path below the catalog", clip(e.URL))
	}
	return nil
}

// clip shortens what somebody else wrote for an error; %q does the rest.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func parseURL(s string) (*url.URL, error) {
	if len(s) > maxURL {
		return nil, errdefs.Invalid("its URL has more than %d bytes", maxURL)
	}
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Fragment != "" {
		return nil, errdefs.Invalid("URL %q is none", clip(s))
	}
	return u, nil
}

func web(u *url.URL) bool {
	return slices.Contains([]string{"http", "https"}, u.Scheme) && u.Host != ""
}
