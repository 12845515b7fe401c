//go:build e2e

package e2e_test

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/ocitest"
)

// hostFile is a program of the host in an image.
func hostFile(t *testing.T, name, from string) tar.Header {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	h := file(name, string(raw))
	h.Mode = 0o755
	return h
}

// layout makes an image in a layout, and has it removed when the test ends.
func layout(t *testing.T, w *world, config v1.Config, layers ...[]tar.Header) (ref string) {
	t.Helper()
	var packed [][]byte
	for _, entries := range layers {
		packed = append(packed, layer(t, entries...))
	}
	at := t.TempDir()
	ocitest.WriteLayout(t, at, map[string]ocitest.Made{"v1": ocitest.Make(t, ocitest.Image{Layers: packed, Config: config}, nil)})
	ref = "oci:" + at + ":v1"
	t.Cleanup(func() { w.run(t, "image", "rm", ref) })
	return ref
}

// An image of one static Go program, as distroless ones are: no shell, no libraries, no
// directory but what the program is in.
func TestImageDistroless(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := s.main
	ref := layout(t, w, v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{walkArg}}, []tar.Header{hostFile(t, "app", self)})
	all, err := parseInodes(w.ok(t, "vm", "run", "--rm", "--net", "none", "--image", ref))
	if err != nil || !strings.HasPrefix(all["app"], "100755 0:0 ") {
		t.Errorf("%v, %v", all, err)
	}
	w.fails(t, 127, []string{"sh"}, "vm", "run", "--rm", "--net", "none", "--image", ref, "--entrypoint", "", "--", "sh")
}

// hello tells what a program has to do with its C library to run at all.
const hello = `#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
	struct passwd *p = getpwuid(getuid());
	char dir[99];
	printf("%s %s %s %s\n", argv[argc - 1], p ? p->pw_name : "?", getenv("FROM"), getcwd(dir, sizeof dir));
	return 7;
}
`

// Programs that are linked to musl or to glibc run in images that have only that.
func TestImagesByLibrary(t *testing.T) {
	w := s.main
	source := filepath.Join(t.TempDir(), "hello.c")
	write(t, source, hello)
	for library, compiler := range map[string]string{"musl": "musl-gcc", "glibc": "gcc"} {
		t.Run(library, func(t *testing.T) {
			if _, err := exec.LookPath(compiler); err != nil {
				t.Skip(err)
			}
			program := filepath.Join(t.TempDir(), "hello")
			says(t, compiler, "-o", program, source)
			entries := []tar.Header{dir("bin"), hostFile(t, "bin/hello", program), dir("etc"), dir("srv"), file("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n")}
			loaders := regexp.MustCompile(`/\S+`).FindAllString(libraries(t, program), -1)
			if !slices.ContainsFunc(loaders, func(p string) bool {
				return strings.Contains(p, map[string]string{"musl": "ld-musl", "glibc": "ld-linux"}[library])
			}) {
				t.Fatalf("hello is linked to %q", loaders)
			}
			for _, name := range loaders {
				entries = append(entries, hostFile(t, strings.TrimPrefix(name, "/"), name))
			}
			ref := layout(t, w, v1.Config{User: "web", WorkingDir: "/srv", Env: []string{"FROM=image"}, Entrypoint: []string{"hello"}}, entries)
			r := w.run(t, "vm", "run", "--rm", "--net", "none", "--image", ref, "--", library)
			if want := library + " web image /srv\n"; r.code != 7 || r.stdout != want {
				t.Errorf("%s, want %q", r, want)
			}
		})
	}
}

// libraries prints where a program's loader and what it loads are.
func libraries(t *testing.T, program string) string {
	t.Helper()
	interp := says(t, "readelf", "--program-headers", "--wide", program)
	if m := regexp.MustCompile(`interpreter: (/\S*musl\S*)\]`).FindStringSubmatch(interp); m != nil {
		return m[1] // which is all of it
	}
	return says(t, "ldd", program)
}
