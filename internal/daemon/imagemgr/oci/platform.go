package oci

import (
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/errdefs"
)

const (
	platformHint = "write it as OS/ARCHITECTURE[/VARIANT], e.g. linux/arm64"
	maxPlatform  = 100 // bytes
)

// Platform is what an image runs on.
type Platform struct{ OS, Architecture, Variant string }

// HostPlatform is Linux on this host's processor.
func HostPlatform() Platform {
	return Platform{OS: "linux", Architecture: runtime.GOARCH}.normal()
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT]. The names other tools have for
// architectures count as well.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	if len(s) > maxPlatform || len(parts) < 2 || len(parts) > 3 || strings.Trim(strings.Join(parts, ""), "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return Platform{}, errdefs.Invalid("%.100q is no platform", s).WithHint(platformHint)
	}
	for _, p := range parts {
		if p == "" {
			return Platform{}, errdefs.Invalid("platform %.100q has an empty part", s).WithHint(platformHint)
		}
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p.normal(), nil
}

// normal is the one of several names for the same.
func (p Platform) normal() Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386", "i686", "x86":
		p.Architecture = "386"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "8" || p.Variant == "v8"),
		p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "arm" && !strings.HasPrefix(p.Variant, "v"):
		p.Variant = "v" + p.Variant
	}
	return p
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// runs says how well p runs what was made for q: 0 is not at all, more is better. A
// variant that was not asked for is taken where there is nothing else, but for that of
// a newer processor.
func (p Platform) runs(q Platform) int {
	p, q = p.normal(), q.normal()
	if p.OS != q.OS || p.Architecture != q.Architecture {
		return 0
	}
	if p.Variant == q.Variant {
		return 100
	}
	number := func(v string) int {
		if len(v) == 2 && v[0] == 'v' && v[1] >= '1' && v[1] <= '9' {
			return int(v[1] - '0')
		}
		return 0
	}
	mine, its := number(p.Variant), number(q.Variant)
	if q.Variant == "" {
		return 50
	}
	if its == 0 || its > mine {
		return 0
	}
	return its
}

func platformOf(p *v1.Platform) Platform {
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.normal()
}
