package fcfetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// program is one that tells a version and does nothing else.
func program(name, version string) string {
	return fmt.Sprintf("#!/bin/sh\n[ \"$*\" = --version ] && echo '%s v%s' && echo more\n", name, version)
}

type entry struct {
	name, text string
	kind       byte
}

// release is what is in an archive of a release, with some more as upstream has it.
func release(version string) []entry {
	dir := "release-v" + version + "-x86_64/"
	return []entry{
		{dir + "LICENSE", "x", tar.TypeReg},
		{dir + "firecracker-v" + version + "-x86_64.debug", "x", tar.TypeReg},
		{dir + "firecracker-v" + version + "-x86_64", program("Firecracker", version), tar.TypeReg},
		{dir + "jailer-v" + version + "-x86_64", program("Jailer", version), tar.TypeReg},
	}
}

func pack(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o755, Size: int64(len(e.text))}
		if e.kind != tar.TypeReg {
			h.Size, h.Linkname, e.text = 0, e.text, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.text)); err != nil {
			t.Fatal(err)
		}
	}
	if w.Close() != nil || z.Close() != nil {
		t.Fatal("cannot pack")
	}
	return b.Bytes()
}

func sumOf(data []byte, name string) []byte {
	return fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(data), name)
}

// mirror serves releases, each with its checksum, as upstream lays them out.
type mirror map[string][]byte

func (m mirror) add(version string, archive []byte) {
	at := "/download/v" + version + "/" + archiveName(version)
	m[at], m[at+sumSuffix] = archive, sumOf(archive, archiveName(version))
}

func (m mirror) serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := m[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// files lists a directory's files with their modes and content.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s %s %s\n", e.Name(), info.Mode(), text)
	}
	return b.String()
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func installed(version string) string {
	return "firecracker -rwxr-xr-x " + program("Firecracker", version) + "\njailer -rwxr-xr-x " + program("Jailer", version) + "\n"
}

func TestFetch(t *testing.T) {
	archive := pack(t, release(DefaultVersion))
	m := mirror{}
	m.add(DefaultVersion, archive)
	m.add("1.8.0", pack(t, release("1.8.0")))
	at := m.serve(t)
	dir := t.TempDir()
	local := filepath.Join(dir, "some name.tgz")
	write(t, local, archive)
	write(t, local+sumSuffix, sumOf(archive, "as it was called"))
	alone := filepath.Join(dir, "alone.tgz")
	write(t, alone, archive)
	plain, named := filepath.Join(dir, "plain"), filepath.Join(dir, "na[m]ed")
	write(t, filepath.Join(plain, "firecracker"), []byte(program("Firecracker", "1.9.9")))
	write(t, filepath.Join(plain, "jailer"), []byte(program("Jailer", "1.9.9")))
	write(t, filepath.Join(named, "firecracker-v1.9.9-x86_64"), []byte(program("Firecracker", "1.9.9")))
	write(t, filepath.Join(named, "jailer-v1.9.9-x86_64"), []byte(program("Jailer", "1.9.9")))
	for name, c := range map[string]struct {
		r    Request
		want string
	}{
		"mirror":             {Request{From: at + "/"}, DefaultVersion},
		"another version":    {Request{From: at, Version: "1.8.0"}, "1.8.0"},
		"archive":            {Request{From: local}, DefaultVersion},
		"archive and sum":    {Request{From: alone, SHA256: fmt.Sprintf("%X", sha256.Sum256(archive))}, DefaultVersion},
		"directory":          {Request{From: plain}, "1.9.9"},
		"unpacked directory": {Request{From: named, Version: "1.9.9"}, "1.9.9"},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.Into = filepath.Join(t.TempDir(), "new", "bin")
			done := int64(0)
			c.r.Report = func(n, _ int64) { done = n }
			got, err := Fetch(t.Context(), c.r)
			if err != nil || got != (Result{c.want, true}) {
				t.Fatalf("%+v, %v (%s)", got, err, errdefs.HintOf(err))
			}
			if have := files(t, c.r.Into); have != installed(c.want) {
				t.Errorf("installed are\n%s", have)
			}
			if c.r.From == at && done == 0 {
				t.Error("nothing was reported")
			}
			if got, err := Fetch(t.Context(), c.r); err != nil || got.Changed {
				t.Errorf("again: %+v, %v", got, err)
			}
		})
	}
}

// Whatever is wrong with a release: the error says so, and what was installed stays.
func TestRefusals(t *testing.T) {
	const v = DefaultVersion
	dir := "release-v" + v + "-x86_64/"
	good := pack(t, release(v))
	archived := func(entries ...entry) mirror {
		m := mirror{}
		m.add(v, pack(t, entries))
		return m
	}
	with := func(e entry) mirror { return archived(append([]entry{e}, release(v)...)...) }
	raw := func(data []byte) mirror {
		m := mirror{}
		m.add(v, data)
		return m
	}
	path := "/download/v" + v + "/" + archiveName(v)
	changed := func(file string, data []byte) mirror {
		m := raw(good)
		if m[file] = data; data == nil {
			delete(m, file)
		}
		return m
	}
	late := bytes.Clone(good)
	late[len(late)-5] ^= 1 // the checksum of gzip's own
	many := make([]entry, maxEntries+1)
	for i := range many {
		many[i] = entry{dir + fmt.Sprint(i), "", tar.TypeReg}
	}
	const precondition, exhausted, notFound, unsupported = errdefs.ClassFailedPrecondition, errdefs.ClassExhausted, errdefs.ClassNotFound, errdefs.ClassUnsupported
	for name, c := range map[string]struct {
		m     mirror
		class errdefs.Class
	}{
		"nothing there":          {mirror{}, notFound},
		"no checksum":            {changed(path+sumSuffix, nil), notFound},
		"no archive":             {changed(path, nil), notFound},
		"cut off":                {changed(path, good[:len(good)-20]), precondition},
		"another archive":        {changed(path, pack(t, release("1.2.3"))), precondition},
		"no sum":                 {changed(path+sumSuffix, []byte("<html>not found</html>")), precondition},
		"sum of another":         {changed(path+sumSuffix, sumOf(good, "firecracker-v1.2.3-x86_64.tgz")), precondition},
		"long sum":               {changed(path+sumSuffix, bytes.Repeat([]byte("a"), maxSum*2)), precondition},
		"no gzip":                {raw([]byte("not packed at all")), precondition},
		"no tar":                 {raw(gzipped(t, []byte(strings.Repeat("x", 2000)))), precondition},
		"cut off, but so summed": {raw(good[:len(good)/2]), precondition},
		"damaged at its end":     {raw(late), precondition},
		"way out":                {with(entry{dir + "../../etc/x", "x", tar.TypeReg}), precondition},
		"absolute":               {with(entry{"/etc/x", "x", tar.TypeReg}), precondition},
		"link for a program":     {with(entry{dir + "jailer-v" + v + "-x86_64", "/bin/sh", tar.TypeSymlink}), precondition},
		"too large":              {with(entry{dir + "jailer-v" + v + "-x86_64", strings.Repeat("\x00", maxProgram+1), tar.TypeReg}), exhausted},
		"too many":               {archived(many...), exhausted},
		"no jailer":              {archived(release(v)[:3]...), precondition},
		"of another version":     {archived(release("1.2.3")...), precondition},
		"not what it is called":  {archived(release(v)[2], entry{dir + "jailer-v" + v + "-x86_64", program("Jailer", "1.2.3"), tar.TypeReg}), precondition},
		"another program":        {archived(release(v)[2], entry{dir + "jailer-v" + v + "-x86_64", program("Firecracker", v), tar.TypeReg}), unsupported},
		"not to run":             {archived(release(v)[2], entry{dir + "jailer-v" + v + "-x86_64", "\x7fELF", tar.TypeReg}), unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			into := t.TempDir()
			write(t, filepath.Join(into, Firecracker), []byte("old"))
			write(t, filepath.Join(into, "other"), []byte("other"))
			before := files(t, into)
			got, err := Fetch(t.Context(), Request{From: c.m.serve(t), Into: into})
			if err == nil || errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" {
				t.Errorf("%+v, %v (%s, %q)", got, err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			if after := files(t, into); after != before {
				t.Errorf("there are now\n%s\nbefore\n%s", after, before)
			}
		})
	}
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBadRequests(t *testing.T) {
	dir := t.TempDir()
	archive := pack(t, release(DefaultVersion))
	lonely := filepath.Join(dir, "lonely.tgz")
	write(t, lonely, archive)
	lying := filepath.Join(dir, "lying.tgz")
	write(t, lying, archive)
	write(t, lying+sumSuffix, sumOf([]byte("other"), "lying.tgz"))
	closed := httptest.NewServer(nil)
	closed.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	t.Cleanup(broken.Close)
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, sumSuffix) {
			_, _ = w.Write(sumOf(archive, archiveName(DefaultVersion)))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(archive)))
		_, _ = w.Write(archive[:10])
	}))
	t.Cleanup(cut.Close)
	for name, c := range map[string]struct {
		r     Request
		class errdefs.Class
	}{
		"version":             {Request{From: lonely, Version: "../../x"}, errdefs.ClassInvalidArgument},
		"sum":                 {Request{From: lonely, SHA256: "abc"}, errdefs.ClassInvalidArgument},
		"sum of a directory":  {Request{From: dir, SHA256: strings.Repeat("a", 64)}, errdefs.ClassInvalidArgument},
		"absent":              {Request{From: filepath.Join(dir, "nothing")}, errdefs.ClassNotFound},
		"device":              {Request{From: "/dev/null"}, errdefs.ClassInvalidArgument},
		"no sum beside it":    {Request{From: lonely}, errdefs.ClassNotFound},
		"wrong sum beside it": {Request{From: lying}, errdefs.ClassFailedPrecondition},
		"wrong sum":           {Request{From: lonely, SHA256: strings.Repeat("a", 64)}, errdefs.ClassFailedPrecondition},
		"directory without":   {Request{From: dir}, errdefs.ClassNotFound},
		"nobody there":        {Request{From: closed.URL}, errdefs.ClassUnavailable},
		"broken server":       {Request{From: broken.URL}, errdefs.ClassUnavailable},
		"cut off on the way":  {Request{From: cut.URL}, errdefs.ClassUnavailable},
		"no encryption":       {Request{From: "http://mirror.invalid"}, errdefs.ClassFailedPrecondition},
		"no URL":              {Request{From: "http://[::1/"}, errdefs.ClassInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.Into = t.TempDir()
			_, err := Fetch(t.Context(), c.r)
			if errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" && c.r.SHA256 == "" && name != "device" {
				t.Errorf("%v (%s, %q)", err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			if left := files(t, c.r.Into); left != "" {
				t.Errorf("left are\n%s", left)
			}
		})
	}
}

// Who is interrupted leaves nothing, and says nothing of the network.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	t.Cleanup(s.Close)
	into := t.TempDir()
	if _, err := Fetch(ctx, Request{From: s.URL, Into: into}); errdefs.ClassOf(err) != errdefs.ClassCanceled {
		t.Errorf("%v", err)
	}
	if left := files(t, into); left != "" {
		t.Errorf("left are\n%s", left)
	}
}

func TestRedirects(t *testing.T) {
	request := func(at string) *http.Request {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		return &http.Request{URL: u}
	}
	secure, plain := request("https://a/x"), request("http://b/x")
	if checkRedirect(plain, []*http.Request{secure}) == nil {
		t.Error("encryption is given up")
	}
	for _, to := range []*http.Request{secure, plain} {
		if err := checkRedirect(to, []*http.Request{plain}); err != nil {
			t.Error(err)
		}
	}
	if checkRedirect(secure, make10(secure)) == nil {
		t.Error("redirected without end")
	}
}

func make10(r *http.Request) (all []*http.Request) {
	for range 10 {
		all = append(all, r)
	}
	return all
}
