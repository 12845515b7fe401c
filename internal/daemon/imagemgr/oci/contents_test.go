package oci_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

// What an archive says that its images are called is what somebody has written there.
func TestContents(t *testing.T) {
	index := func(annotations ...string) string {
		var all []string
		for _, a := range annotations {
			all = append(all, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:%064d","annotations":{%s}}`, 0, a))
		}
		return `{"schemaVersion":2,"manifests":[` + strings.Join(all, ",") + `]}`
	}
	ref := func(s string) string { return `"org.opencontainers.image.ref.name":"` + s + `"` }
	var many []string
	for n := range 101 {
		many = append(many, ref(fmt.Sprintf("a:%d", n)))
	}
	const head = `{"imageLayoutVersion":"1.0.0"}`
	for what, c := range map[string]struct {
		files map[string]string
		want  string // REFERENCE=NAME of each, without the path
		class errdefs.Class
	}{
		"a layout": {map[string]string{"oci-layout": head, "index.json": index(ref("b:2"), ref("a/b"), ref("1.0"))},
			"oci-archive:F:1.0= oci-archive:F:a/b=a/b:latest oci-archive:F:b:2=b:2", ""},
		"by containerd": {map[string]string{"oci-layout": head, "index.json": index(ref("1") + `,"io.containerd.image.name":"docker.io/library/a:1"`)},
			"oci-archive:F:docker.io/library/a:1=a:1", ""},
		"without a name": {map[string]string{"oci-layout": head, "index.json": index("")}, "oci-archive:F=", ""},
		"bad names": {map[string]string{"oci-layout": head, "index.json": index(ref(`a\u0001b:1`), ref(strings.Repeat("a", 300)+":1"), ref("../x:1"))},
			"oci-archive:F:../x:1=", ""},
		"a digest":  {map[string]string{"oci-layout": head, "index.json": index(ref("a@sha256:" + strings.Repeat("0", 64)))}, "oci-archive:F:a@sha256:" + strings.Repeat("0", 64) + "=", ""},
		"too many":  {map[string]string{"oci-layout": head, "index.json": index(many...)}, "", errdefs.ClassInvalidArgument},
		"no index":  {map[string]string{"oci-layout": head, "index.json": "[]"}, "", errdefs.ClassInvalidArgument},
		"docker's":  {map[string]string{"manifest.json": `[{"Config":"c","RepoTags":["a:1","docker.io/me/b","not a name"]}]`}, "docker-archive:F:a:1=a:1 docker-archive:F:me/b:latest=me/b:latest", ""},
		"nameless":  {map[string]string{"manifest.json": `[{"Config":"c"}]`}, "docker-archive:F=", ""},
		"empty":     {map[string]string{"manifest.json": `[]`}, "", errdefs.ClassNotFound},
		"deep":      {map[string]string{"manifest.json": strings.Repeat("[", 1000)}, "", errdefs.ClassInvalidArgument},
		"something": {map[string]string{"etc/passwd": "root"}, "", errdefs.ClassInvalidArgument},
		"both": {map[string]string{"oci-layout": head, "index.json": index(ref("a:1")), "manifest.json": `[{"Config":"c","RepoTags":["b:1"]}]`},
			"oci-archive:F:a:1=a:1", ""},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "archive")
			var members []member
			for name, data := range c.files {
				members = append(members, member{name: name, data: []byte(data)})
			}
			if err := os.WriteFile(path, tarOf(t, members...), 0o600); err != nil {
				t.Fatal(err)
			}
			all, err := oci.Contents(t.Context(), path, options(t))
			if c.class != "" {
				if errdefs.ClassOf(err) != c.class {
					t.Errorf("%+v, %v", all, err)
				}
				return
			}
			var got []string
			for _, f := range all {
				got = append(got, strings.Replace(f.Ref.String(), path, "F", 1)+"="+f.Name)
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
	if _, err := oci.Contents(t.Context(), filepath.Join(t.TempDir(), "missing"), options(t)); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
}
