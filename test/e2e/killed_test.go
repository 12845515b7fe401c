//go:build e2e

package e2e_test

import (
	"archive/tar"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The disk of a VM that was killed while it wrote is of use as it is: what its kernel had
// no time to write to its place is read from the journal.
func TestPromoteKilled(t *testing.T) {
	w := s.main
	ref := layout(t, w, v1.Config{}, []tar.Header{dir("bin"), hostFile(t, "bin/sh", tool(t, "busybox"))})
	w.ok(t, "image", "pull", ref)
	v := w.boot(t, "e2e-killed", "--image", ref, "--net", "none", "--memory", "192M")
	busy := start(t, w.command("exec", v.ID, "--", "sh", "-c", `mkdir /gone /kept; i=0
		while test $i -lt 400; do echo $i >/gone/$i; echo $i >/kept/$i; i=$((i+1)); done
		sync; rm -r /gone; mv /kept /stays; ln /stays/7 /seven; sync; echo ready
		while :; do echo $i >/late-$i; i=$((i+1)); done`))
	busy.out.expect(t, "ready\n")
	w.ok(t, "vm", "kill", v.ID)
	<-busy.done
	t.Cleanup(func() { w.run(t, "image", "rm", "e2e-promoted") })
	w.ok(t, "image", "promote", v.ID, "e2e-promoted")
	var made image
	w.decode(t, &made, "image", "show", "--json", "e2e-promoted")
	if head := says(t, "dumpe2fs", "-h", made.Path); !strings.Contains(head, "needs_recovery") {
		t.Errorf("there is nothing to replay:\n%s", head)
	}
	saved := "oci:" + filepath.Join(t.TempDir(), "saved") + ":v1"
	w.ok(t, "image", "save", "e2e-promoted", "-o", saved)
	t.Cleanup(func() { w.run(t, "image", "rm", saved) })
	const look = `cd /stays; ls | wc -l; cat * | sort -n | md5sum; stat -c %h /seven; ls -d /gone`
	r := w.run(t, "vm", "run", "--rm", "--net", "none", "--image", saved, "--", "sh", "-c", look+`; seq 0 399 | md5sum`)
	if f := strings.Fields(r.stdout); len(f) != 6 || f[0] != "400" || f[1] != f[4] || f[3] != "2" {
		t.Errorf("the saved image has %s", r)
	}
}
