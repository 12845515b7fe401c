// Package bundle reads and writes bundles: a kernel, or the disk of an image, in one
// file that can be signed and fetched.
//
// A bundle is a tar archive in one zstd stream. Its first entry is manifest.json, which
// lists the others with size and SHA-256; they follow in that order, and nothing else
// does. Entries are regular files without paths, links, or extended headers. An image
// is rootfs.ext4. A kernel is vmlinux or bzImage or both, and perhaps config and
// modules.tar, which holds lib/modules/RELEASE.
package bundle

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// Kinds of bundles.
const (
	Image  = "image"
	Kernel = "kernel"
)

// Arch is the only architecture there are guests of, as Go and OCI name it.
const Arch = "amd64"

// SignatureSuffix is appended to the name of what is signed.
const SignatureSuffix = ".minisig"

// Files that bundles hold.
const (
	ManifestFile = "manifest.json"
	Rootfs       = paths.RootfsFile
	Vmlinux      = "vmlinux"
	BzImage      = "bzImage"
	Config       = "config"
	Modules      = "modules.tar"
)

// Bounds of bundles, in bytes.
const (
	maxManifest = 256 << 10
	maxWindow   = 8 << 20   // what a decoder has to keep
	MaxUnpacked = 128 << 30 // of all files together
	maxKernel   = 4 << 30   // the same, of a kernel
	maxPadding  = 1 << 20   // zeros after the archive's end
)

// format is the version of the manifest; another one is refused.
const format = 1

// may lists what a bundle of a kind may hold.
var may = map[string][]string{
	Image:  {Rootfs},
	Kernel: {Vmlinux, BzImage, Config, Modules},
}

// Manifest says what a bundle is.
type Manifest struct {
	Format  int                `json:"format"`
	Kind    string             `json:"kind"`    // image or kernel
	Name    string             `json:"name"`    // as it is pulled by
	Arch    string             `json:"arch"`    // amd64
	Version string             `json:"version"` // for people; of a kernel what uname -r says
	Config  *model.ImageConfig `json:"config,omitempty"`
	Files   []File             `json:"files"` // in the order in which they follow
}

// File is one file of a bundle.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // in bytes
	SHA256 string `json:"sha256"` // 64 hex digits
}

var (
	hexSum  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	version = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.+~_:-]{0,127}$`)
)

// Unpacked is the size of all files, in bytes.
func (m Manifest) Unpacked() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Has reports whether there is a file of that name.
func (m Manifest) Has(name string) bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == name })
}

// DecodeManifest reads a manifest. What it does not know, or finds twice, it refuses,
// with class invalid_argument.
func DecodeManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := Strict(data, maxManifest, &m); err != nil {
		return Manifest{}, errdefs.Invalid("manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, errdefs.Wrap(err, "manifest")
	}
	return m, nil
}

func (m Manifest) check() error {
	if m.Format != format {
		return errdefs.Unsupported("it is of format %d, and known is %d", m.Format, format).WithHint("it takes a newer version of banger")
	}
	allowed, known := may[m.Kind]
	if !known {
		return errdefs.Invalid("kind %q is neither image nor kernel", m.Kind)
	}
	if err := CheckName(m.Name); err != nil {
		return err
	}
	if m.Arch != Arch {
		return errdefs.Unsupported("it is for %q, and guests are %s", m.Arch, Arch)
	}
	if !version.MatchString(m.Version) {
		return errdefs.Invalid("version %q is not allowed", m.Version)
	}
	if err := m.checkConfig(); err != nil {
		return err
	}
	seen, total := map[string]bool{}, int64(0)
	for _, f := range m.Files {
		switch {
		case !slices.Contains(allowed, f.Name):
			return errdefs.Invalid("file %q has no place in a bundle of kind %s", f.Name, m.Kind)
		case seen[f.Name]:
			return errdefs.Invalid("file %q is there twice", f.Name)
		case !hexSum.MatchString(f.SHA256):
			return errdefs.Invalid("file %q: SHA-256 %q is none", f.Name, f.SHA256)
		case f.Size <= 0 || f.Size > MaxUnpacked:
			return errdefs.Exhausted("file %q has %d bytes; allowed are 1 to %d", f.Name, f.Size, int64(MaxUnpacked))
		}
		seen[f.Name] = true
		total += f.Size // of at most four
	}
	limit := int64(MaxUnpacked)
	if m.Kind == Kernel {
		limit = maxKernel
	}
	if total > limit {
		return errdefs.Exhausted("its files have %d bytes, more than %d", total, limit)
	}
	if m.Kind == Image && !seen[Rootfs] || m.Kind == Kernel && !seen[Vmlinux] && !seen[BzImage] {
		return errdefs.Invalid("the %s itself is missing: it names no %s", m.Kind, allowed[0])
	}
	return nil
}

// CheckName reports whether something in a catalog can have that name: a plain one,
// perhaps with a version after a colon. It says nothing of where it comes from, so those
// of images are no references either.
func CheckName(name string) error { return model.CheckArtifactName("bundle", name) }

// checkConfig refuses a config that no process could be started by. The manifest's size
// bounds what is in it.
func (m Manifest) checkConfig() error {
	c := m.Config
	if c == nil {
		return nil
	}
	if m.Kind != Image {
		return errdefs.Invalid("a kernel has a config for commands")
	}
	if c.Platform != "" {
		return errdefs.Unsupported("its programs are for %.100q, and those of a bundle are for what it is for", c.Platform)
	}
	words := slices.Concat([]string{c.User, c.Workdir, c.StopSignal}, c.Env, c.Entrypoint, c.Cmd, c.ExposedPorts, c.Volumes)
	for _, w := range words {
		if strings.ContainsRune(w, 0) {
			return errdefs.Invalid("%.100q in its config has a zero byte", w)
		}
	}
	return nil
}

// Strict decodes JSON of at most limit bytes into v, which must be all there is. Fields
// that v does not have, and names that stand twice in an object, are errors: what two
// readers could understand differently is understood by none.
func Strict(data []byte, limit int, v any) error {
	if len(data) > limit {
		return errdefs.Exhausted("it has more than %d bytes", limit)
	}
	if !utf8.Valid(data) {
		return errdefs.Invalid("it is not UTF-8")
	}
	if err := once(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errdefs.Invalid("%w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errdefs.Invalid("something follows the JSON")
	}
	return nil
}

// maxDepth is how deep JSON may be nested here.
const maxDepth = 16

// once refuses objects with a name that stands there twice, and deep nesting.
func once(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	type level struct {
		names map[string]bool // nil: an array
		value bool            // a name was read, its value comes
	}
	var stack []*level
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errdefs.Invalid("%w", err)
		}
		delim, isDelim := tok.(json.Delim)
		if isDelim && (delim == '}' || delim == ']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if len(stack) > 0 {
			top := stack[len(stack)-1]
			if name, ok := tok.(string); ok && top.names != nil && !top.value {
				if top.names[name] {
					return errdefs.Invalid("%q is there twice", name)
				}
				top.names[name], top.value = true, true
				continue
			}
			top.value = false
		}
		if isDelim {
			if len(stack) == maxDepth {
				return errdefs.Invalid("it is nested deeper than %d", maxDepth)
			}
			next := &level{}
			if delim == '{' {
				next.names = map[string]bool{}
			}
			stack = append(stack, next)
		}
	}
}
