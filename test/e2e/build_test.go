//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A Dockerfile becomes an image in a VM of its own, which goes whatever happens.
func TestImageBuild(t *testing.T) {
	w, dir := s.main, t.TempDir()
	t.Cleanup(func() { w.explain(t) })
	place(t, tool(t, "busybox"), filepath.Join(dir, "busybox"))
	write(t, filepath.Join(dir, ".dockerignore"), "secret\nsub/*\n!sub/kept\n")
	write(t, filepath.Join(dir, "secret"), "secret")
	write(t, filepath.Join(dir, "sub/kept"), "kept")
	write(t, filepath.Join(dir, "sub/left"), "left")
	write(t, filepath.Join(dir, "Dockerfile"), `FROM scratch AS first
COPY busybox /bin/busybox
COPY . /all
ARG WHO=nobody
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox find /all -type f | /bin/busybox sort > /list; echo $WHO >> /list; /bin/busybox --install -s /bin"]
FROM scratch AS second
COPY --from=first /bin /bin
COPY --from=first --chown=33:44 --chmod=640 /list /srv/list
WORKDIR /srv
RUN echo more >> list
ENV KEY=value
USER 33:44
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["id -u; echo $KEY; pwd; stat -c '%a %u:%g' list; cat list"]
FROM scratch
COPY secret /secret
`)
	vms := func() (all []vm) {
		for _, v := range w.list(t) {
			if strings.HasPrefix(v.Image, "banger-builder:") {
				all = append(all, v)
			}
		}
		return all
	}
	build := func(args ...string) []string { return append([]string{"image", "build", "--memory", "1G"}, args...) }
	if got := w.ok(t, build("-t", "e2e-built", "-t", "e2e-built:1", "--target", "second", "--build-arg", "WHO=me", dir)...); got != "e2e-built\ne2e-built:1" {
		t.Errorf("it printed %q", got)
	}
	want := "33\nvalue\n/srv\n640 33:44\n/all/.dockerignore\n/all/Dockerfile\n/all/busybox\n/all/sub/kept\nme\nmore"
	if got := w.ok(t, "vm", "run", "--rm", "--image", "e2e-built:1"); got != want {
		t.Errorf("the image prints\n%s\nwant\n%s", got, want)
	}

	// One that fails, of an image that is here and under no other name there.
	write(t, filepath.Join(dir, "fails"), "FROM base\nUSER 0\nRUN tail -n 1 list >&2; exit 7\n")
	fails := func(code int, texts []string, args ...string) {
		t.Helper()
		r := w.run(t, build(append(args, "-t", "e2e-none", dir)...)...)
		for _, text := range append(texts, fmt.Sprintf("error: the build failed: buildah ended with exit code %d\n", code)) {
			if r.code != code || !strings.Contains(r.stderr, text) {
				t.Errorf("want code %d and %q: %s", code, text, r)
			}
		}
	}
	fails(7, []string{"\nmore\n"}, "-f", filepath.Join(dir, "fails"), "--build-context", "base=e2e-built")
	fails(125, []string{`"/secret": no such file`}) // which is left out
	w.fails(t, 1, []string{`no image "e2e-none"`}, "image", "show", "e2e-none")
	if left := vms(); len(left) > 0 {
		t.Errorf("left behind: %+v", left)
	}

	write(t, filepath.Join(dir, "hangs"), "FROM scratch\nCOPY busybox /busybox\nRUN [\"/busybox\", \"sh\", \"-c\", \"echo now it $((20 + 1)); exec /busybox sleep 1000\"]\n")
	for what, end := range map[string]func(r *running){
		"interrupted":       func(r *running) { r.signal(t, syscall.SIGINT) },
		"killed":            func(r *running) { r.signal(t, syscall.SIGKILL) },
		"daemon was killed": func(*running) { w.killDaemon(t) },
	} {
		r := start(t, w.command(build("-t", "e2e-none", "-f", filepath.Join(dir, "hangs"), dir)...))
		r.err.expect(t, "now it 21\n")
		in := vms()
		if len(in) != 1 || !in[0].AutoRemove {
			t.Fatalf("it is built in %+v", in)
		}
		end(r)
		if code := r.wait(t); code == 0 || what == "interrupted" && code != 130 {
			t.Errorf("%s: code %d, stderr %q", what, code, r.err)
		}
		w.gone(t, in[0])
	}
	w.legal(t)
	entries, err := os.ReadDir(filepath.Join(w.state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left behind: images/%s", e.Name())
		}
	}
	w.ok(t, "image", "rm", "e2e-built", "e2e-built:1")
}
