package model

import (
	"regexp"
	"sort"
	"strings"
	"unicode/utf8"

	"banger/internal/errdefs"
)

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName reports whether name can name a VM: a DNS label, because it becomes
// a host name, a DNS record and part of paths. Nothing is rewritten.
func CheckName(name string) error { return checkLabel("VM", name) }

// CheckNetworkName reports whether name can name a network: a DNS label too, as
// the VMs on it have names below it.
func CheckNetworkName(name string) error { return checkLabel("network", name) }

func checkLabel(kind, name string) error {
	if dnsLabel.MatchString(name) {
		return nil
	}
	if better := strings.ToLower(strings.ReplaceAll(name, "_", "-")); strings.Contains(name, "_") && dnsLabel.MatchString(better) {
		// The likeliest mistake: many systems take it, and then some program does not.
		return errdefs.Invalid("%s name %q is not a DNS label: the name of a host has no underscore", kind, name).
			WithHint("call it %s", better)
	}
	return errdefs.Invalid("%s name %q is not a DNS label", kind, name).
		WithHint("use 1 to 63 of a-z, 0-9 and -, with no - at either end")
}

var artifactName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(:[a-z0-9][a-z0-9._-]*)?$`)

// imageName is what an image may be called besides: what can follow docker pull, with
// host, path, tag and digest, or a kind of place, a colon and a path on this host. Which of
// these lead to an image only who pulls it can say.
var imageName = regexp.MustCompile(`^(docker-daemon:)?([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?/)?` +
	`[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$`)

// placeName is the name of an image that was taken from a file or directory.
var placeName = regexp.MustCompile(`^(oci|oci-archive|docker-archive|tar):/\PC+$`)

// offeredName is the name of an image that a catalog has.
var offeredName = regexp.MustCompile(`^catalog:[a-z0-9][a-z0-9._-]{0,127}(:[a-z0-9][a-z0-9._-]{0,127})?$`)

// maxImageName is how long it may be, in bytes.
const maxImageName = 1024

// CheckArtifactName reports whether name can name an image or a kernel: a name,
// perhaps with a version after a colon ("debian:trixie"). An image's may also be a
// reference to it, as in "quay.io/a/b:tag@sha256:…" or "oci:/a/directory", or say that a
// catalog has it, as in "catalog:golden:2". No file is ever called by it.
func CheckArtifactName(kind, name string) error {
	if len(name) <= 128 && artifactName.MatchString(name) {
		return nil
	}
	if kind == "image" {
		offered := strings.HasPrefix(name, "catalog:") // and never a repository of that name
		switch {
		case len(name) > maxImageName:
		case offered && offeredName.MatchString(name), !offered && imageName.MatchString(name), utf8.ValidString(name) && placeName.MatchString(name):
			return nil
		}
		return errdefs.Invalid("image name %.1000q is not allowed", name).
			WithHint("use a-z, 0-9, '.', '_' and '-', starting with a letter or digit, with ':' and a version after it, or what docker pull takes: HOST/PATH/NAME:TAG")
	}
	return errdefs.Invalid("%s name %q is not allowed", kind, name).
		WithHint("use up to 128 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit; one ':' may set off a version")
}

// Near returns up to three of candidates that look like name, best first, for
// "did you mean" hints. Edit distance is bounded by a third of the name.
func Near(name string, candidates []string) []string {
	type scored struct {
		s string
		d int
	}
	var hits []scored
	limit := max(2, len(name)/3)
	for _, c := range candidates {
		if d := distance(name, c); d <= limit {
			hits = append(hits, scored{c, d})
		}
	}
	sort.Slice(hits, func(i, j int) bool {
		if hits[i].d != hits[j].d {
			return hits[i].d < hits[j].d
		}
		return hits[i].s < hits[j].s
	})
	var out []string
	for _, h := range hits[:min(3, len(hits))] {
		out = append(out, h.s)
	}
	return out
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
		}
		prev = cur
	}
	return prev[len(b)]
}

// NameTaken is the error for a VM's name that another has.
func NameTaken(name string) error {
	return errdefs.AlreadyExists("a VM named %q exists already", name).
		WithHint("choose another --name, or delete it: banger vm delete %s", name)
}
