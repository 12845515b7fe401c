package oci_test

import (
	"errors"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func TestReferences(t *testing.T) {
	for in, want := range map[string]struct{ full, familiar string }{
		"debian":                            {"docker.io/library/debian:latest", "debian:latest"},
		"debian:12":                         {"docker.io/library/debian:12", "debian:12"},
		"docker://debian:12":                {"docker.io/library/debian:12", "debian:12"},
		"user/name":                         {"docker.io/user/name:latest", "user/name:latest"},
		"docker.io/debian":                  {"docker.io/library/debian:latest", "debian:latest"},
		"index.docker.io/a/b/c":             {"docker.io/a/b/c:latest", "a/b/c:latest"},
		"ghcr.io/x/y:tag@" + zeros:          {"ghcr.io/x/y:tag@" + zeros, "ghcr.io/x/y:tag@" + zeros},
		"x@" + zeros:                        {"docker.io/library/x@" + zeros, "x@" + zeros},
		"localhost:5000/x":                  {"localhost:5000/x:latest", "localhost:5000/x:latest"},
		"localhost/x":                       {"localhost/x:latest", "localhost/x:latest"},
		"[::1]:5000/x/y:1":                  {"[::1]:5000/x/y:1", "[::1]:5000/x/y:1"},
		"oci:x:1":                           {"oci:x:1", "oci:x:1"},
		"oci:/a/b":                          {"oci:/a/b", "oci:/a/b"},
		"oci-archive:/a.tar:docker.io/x:1":  {"oci-archive:/a.tar:docker.io/x:1", "oci-archive:/a.tar:docker.io/x:1"},
		"docker-archive:/a.tar":             {"docker-archive:/a.tar", "docker-archive:/a.tar"},
		"docker-archive:/a.tar:debian":      {"docker-archive:/a.tar:debian:latest", "docker-archive:/a.tar:debian:latest"},
		"docker-daemon:debian":              {"docker-daemon:docker.io/library/debian:latest", "docker-daemon:debian:latest"},
		"docker-daemon:" + zeros:            {"docker-daemon:" + zeros, "docker-daemon:" + zeros},
		"docker-daemon:0123456789ab":        {"docker-daemon:sha256:0123456789ab", "docker-daemon:sha256:0123456789ab"},
		"tar:/a:b.tar":                      {"tar:/a:b.tar", "tar:/a:b.tar"},
		"a.b__c--d/e-f":                     {"a.b__c--d/e-f:latest", ""},
		"oci":                               {"docker.io/library/oci:latest", "oci:latest"},
		"registry.example.com:443/x/y/z:_1": {"registry.example.com:443/x/y/z:_1", "registry.example.com:443/x/y/z:_1"},
	} {
		r, err := oci.Parse(in)
		if in == "a.b__c--d/e-f" { // what has a dot is a host, and no host has an underscore
			if err == nil {
				t.Errorf("%s: %s", in, r)
			}
			continue
		}
		if err != nil || r.String() != want.full || r.Familiar() != want.familiar {
			t.Errorf("%s: %q, %q, %v; want %q", in, r.String(), r.Familiar(), err, want)
			continue
		}
		if r.Local() != (strings.Contains(in, "oci:") || strings.Contains(in, "archive:") || strings.Contains(in, "daemon:") || strings.Contains(in, "tar:")) {
			t.Errorf("%s: local %v", in, r.Local())
		}
	}
	for _, bad := range []string{
		"", "Debian", "debian:", "debian:-x", "debian:" + strings.Repeat("x", 129), "https://docker.io/debian", "a//b", "../b", "x/../y", "a/../../b",
		"ghcr.io/", "ghcr.io/x@sha256:12", "ghcr.io/x@sha512:" + strings.Repeat("0", 128), "host:99999999/x", "user@host/x", "ho st.x/y", "exa_mple.com/x",
		"x/" + strings.Repeat("y", 255), "oci:", "oci:x:", "tar:", "docker-archive:x:Y", "docker-daemon:", "docker-daemon:X", "a\x00b", "a\nb", strings.Repeat("a", 5000),
		"docker://", "x:1:2", "x/y/", "/x", "-x/y", "h.x:/y",
	} {
		if r, err := oci.Parse(bad); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %q, %v", bad, r, err)
		}
	}
}

// FuzzParse looks for a reference that is not itself again, or that could be more than
// a name in a URL.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"debian", "localhost:5000/x/y:1@" + zeros, "oci:a:b", "docker-daemon:x", "docker-archive:a:b:c", "tar:x", "[::1]:1/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := oci.Parse(s)
		if err != nil {
			return
		}
		again, err := oci.Parse(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, that is %q, and that %+v, %v", s, r, r, again, err)
		}
		if r.Kind == oci.Registry && (strings.ContainsAny(r.Repository, "?#%\\ ") || strings.Contains("/"+r.Repository+"/", "/../") || r.Repository == "") {
			t.Errorf("%q has the repository %q", s, r.Repository)
		}
	})
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "Linux/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/aarch64": "linux/arm64",
		"linux/arm": "linux/arm/v7", "linux/armel": "linux/arm/v6", "linux/arm/5": "linux/arm/v5", "linux/amd64/v1": "linux/amd64", "linux/amd64/v3": "linux/amd64/v3",
	} {
		if p, err := oci.ParsePlatform(in); err != nil || p.String() != want {
			t.Errorf("%s: %s, %v", in, p, err)
		}
	}
	for _, bad := range []string{"", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/a b", "linux/\x00"} {
		if p, err := oci.ParsePlatform(bad); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %s, %v", bad, p, err)
		}
	}
	if p := oci.HostPlatform(); p.OS != "linux" || p.Architecture == "" {
		t.Error(p)
	}
}
