package imagemgr

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// builderName is the name, without a tag, of the image that Dockerfiles are built in.
const builderName = "banger-builder"

// builderPackages are what it has besides Debian's usual packages.
var builderPackages = []string{"buildah"}

// builderImage is its whole name. The tag says what is in it: with other packages it is
// another image.
func builderImage() string {
	key := sha256.Sum256([]byte(strings.Join(builderPackages, " ")))
	return builderName + ":" + hex.EncodeToString(key[:])[:12]
}

// isBuilder reports whether a name is that of a builder image, this one or an older one.
func isBuilder(name string) bool {
	base, _, _ := strings.Cut(name, ":")
	return base == builderName
}

// registriesConf says in the format of containers-registries.conf(5), version 2, how
// images are pulled here: what a name without a host means, mirrors, and where http will
// do. All of it was checked with the configuration.
func registriesConf(mirrors map[string][]string, insecure []string) string {
	var b strings.Builder
	b.WriteString("unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"disabled\"\n")
	hosts := slices.Sorted(maps.Keys(mirrors))
	for _, host := range insecure {
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	place := func(table, location string, plain bool) {
		host, _, _ := strings.Cut(location, "/")
		fmt.Fprintf(&b, "\n[[%s]]\nlocation = %q\ninsecure = %t\n", table, location, plain || slices.Contains(insecure, host))
	}
	for _, host := range hosts {
		place("registry", host, false)
		for _, mirror := range mirrors[host] {
			at, plain := strings.CutPrefix(strings.TrimSuffix(mirror, "/"), "http://")
			place("registry.mirror", strings.TrimPrefix(at, "https://"), plain)
		}
	}
	return b.String()
}
