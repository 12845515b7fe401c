package debian

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// machine makes the files of a host that the sources are read from.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	keyring  = "usr/share/keyrings/debian-archive-keyring.gpg"
	bookworm = "ID=debian\nVERSION_CODENAME=bookworm\n"
	trixie   = "ID=\"debian\"\nVERSION_CODENAME=trixie\n"
	noble    = "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n"

	ubuntuSources = "Types: deb\nURIs: http://m.example/ubuntu/\nSuites: noble noble-updates noble-backports\nComponents: main universe restricted multiverse\n" +
		"Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n\nTypes: deb\nURIs: http://sec.example/ubuntu/\nSuites: noble-security\n" +
		"Components: main universe restricted multiverse\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n"
)

func TestHostSources(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		suite string
		want  []Archive
		in    string // the suite it settles on
	}{
		"stanzas, with other vendors beside": {
			files: map[string]string{
				"etc/os-release": trixie,
				"etc/apt/sources.list.d/debian.sources": "# comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian/\nSuites: trixie trixie-updates\n  trixie-backports\nComponents: main contrib\n" +
					"Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://sec.example/debian-security/\nSuites: trixie-security\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.pgp\n",
				"etc/apt/sources.list.d/docker.sources":       "Types: deb\nURIs: https://docker.example/linux/debian\nSuites: trixie\nComponents: main stable\nSigned-By: /etc/apt/keyrings/docker.asc\n",
				"etc/apt/sources.list.d/off.sources":          "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n",
				"etc/apt/sources.list.d/src.sources":          "Types: deb-src\nURIs: http://src.example/debian\nSuites: trixie\nComponents: main\n",
				"etc/apt/sources.list.d/old.sources.disabled": "Types: deb\nURIs: http://old.example/debian\nSuites: trixie\nComponents: main\n",
			},
			in:   "trixie",
			want: []Archive{{"http://mirror.example/debian/", "trixie"}, {"http://mirror.example/debian/", "trixie-updates"}, {"http://sec.example/debian-security/", "trixie-security"}},
		},
		"lines": {
			files: map[string]string{
				"etc/os-release": bookworm,
				"etc/apt/sources.list": "deb http://m.example/debian bookworm main non-free # note\ndeb-src http://m.example/debian bookworm main\n#deb http://no.example/debian bookworm main\n" +
					"deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian bookworm-updates main\n" +
					"deb [arch=arm64] http://arm.example/debian bookworm main\ndeb cdrom:[Debian]/ bookworm main\ndeb file:/srv/debian bookworm main\ndeb [ unclosed http://x bookworm main\n",
				"etc/apt/sources.list.d/pg.list": "deb http://pg.example/repos/apt bookworm-pgdg main\ndeb [trusted=yes] http://any.example/stuff bookworm main\n",
			},
			in:   "bookworm",
			want: []Archive{{"http://m.example/debian", "bookworm"}, {"http://m.example/debian", "bookworm-updates"}},
		},
		"known by its Release file, whatever its path": {
			files: map[string]string{
				"etc/os-release":       bookworm,
				"etc/apt/sources.list": "deb http://cache.example/remote/dists-mirror bookworm main\ndeb http://evil.example/debian bookworm main\n",
				"var/lib/apt/lists/cache.example_remote_dists-mirror_dists_bookworm_InRelease": "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\n",
				"var/lib/apt/lists/evil.example_debian_dists_bookworm_InRelease":               "Origin: Somebody\n",
			},
			in:   "bookworm",
			want: []Archive{{"http://cache.example/remote/dists-mirror", "bookworm"}},
		},
		"another suite": {
			files: map[string]string{
				"etc/os-release":       bookworm,
				"etc/apt/sources.list": "deb http://m.example/debian bookworm main\ndeb http://m.example/debian-security bookworm-security main\n",
			},
			suite: "trixie", in: "trixie",
			want: []Archive{{"http://m.example/debian", "trixie"}, {"http://m.example/debian-security", "trixie-security"}},
		},
		"sid has no pockets": {
			files: map[string]string{
				"etc/os-release":       bookworm,
				"etc/apt/sources.list": "deb http://m.example/debian bookworm main\ndeb http://m.example/debian-security bookworm-security main\n",
			},
			suite: "sid", in: "sid",
			want: []Archive{{"http://m.example/debian", "sid"}},
		},
		"a cloud image's list of mirrors": {
			files: map[string]string{
				"etc/os-release":                        bookworm,
				"etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n",
				"etc/apt/mirrors/debian.list":           "# first is best\nhttps://near.example/debian priority:1\nhttps://far.example/debian\n",
			},
			in:   "bookworm",
			want: []Archive{{"https://near.example/debian", "bookworm"}},
		},
		"suites by alias": {
			files: map[string]string{"etc/os-release": trixie, "etc/apt/sources.list": "deb http://m.example/debian testing main\n"},
			in:    "trixie", want: []Archive{{"http://m.example/debian", "testing"}},
		},
		// As Ubuntu 24.04 comes, and a vendor whose path says "debian".
		"Ubuntu": {
			files: map[string]string{
				"etc/os-release":                        noble,
				"etc/apt/sources.list":                  "# Ubuntu sources have moved to the /etc/apt/sources.list.d/ubuntu.sources\n",
				"etc/apt/sources.list.d/ubuntu.sources": ubuntuSources,
				"etc/apt/sources.list.d/vendor.list":    "deb [arch=amd64] https://vendor.example/debian/12/prod bookworm main\n",
				"etc/apt/sources.list.d/docker.list":    "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://docker.example/linux/ubuntu noble stable\n",
			},
			in: "stable",
		},
		"Ubuntu that knows a mirror of Debian too": {
			files: map[string]string{
				"etc/os-release":                        noble,
				"etc/apt/sources.list.d/ubuntu.sources": ubuntuSources,
				"etc/apt/sources.list.d/zdebian.list": "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian trixie main\n" +
					"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian-security trixie-security main\n",
			},
			in:   "trixie",
			want: []Archive{{"http://m.example/debian", "trixie"}, {"http://m.example/debian-security", "trixie-security"}},
		},
		"another suite from it": {
			files: map[string]string{
				"etc/os-release":                      noble,
				"etc/apt/sources.list.d/zdebian.list": "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian trixie main\n",
			},
			suite: "bookworm", in: "bookworm",
			want: []Archive{{"http://m.example/debian", "bookworm"}},
		},
		"a relative of Debian's that uses its archive": {
			files: map[string]string{
				"etc/os-release":       "ID=linuxmint\nID_LIKE=debian\nVERSION_CODENAME=faye\nDEBIAN_CODENAME=bookworm\n",
				"etc/apt/sources.list": "deb http://mint.example/ faye main\ndeb http://m.example/debian bookworm main\n",
				"var/lib/apt/lists/m.example_debian_dists_bookworm_InRelease": "Origin: Debian\n",
			},
			in: "bookworm", want: []Archive{{"http://m.example/debian", "bookworm"}},
		},
		"nothing configured": {files: map[string]string{"etc/os-release": bookworm}, in: "bookworm"},
	} {
		t.Run(name, func(t *testing.T) {
			c.files[keyring] = "key"
			got, err := HostSources(machine(t, c.files), c.suite)
			if err != nil {
				t.Fatal(err)
			}
			if got.Suite != c.in || !reflect.DeepEqual(got.Archives, c.want) {
				t.Errorf("got %s %v\nwant %s %v", got.Suite, got.Archives, c.in, c.want)
			}
		})
	}
}

func TestHostSourcesWithoutKeys(t *testing.T) {
	_, err := HostSources(machine(t, map[string]string{"etc/os-release": bookworm}), "")
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(errdefs.HintOf(err), "debian-archive-keyring") {
		t.Errorf("got %v (%s)", err, errdefs.HintOf(err))
	}
}

func TestCheckSuite(t *testing.T) {
	for _, good := range []string{"trixie", "sid", "oldstable"} {
		if err := CheckSuite(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-x", "Trixie", "a b", "../x", "x;y", strings.Repeat("x", 40)} {
		if CheckSuite(bad) == nil {
			t.Errorf("%q is allowed", bad)
		}
	}
}

func TestGuestSourcesHaveNoLogins(t *testing.T) {
	s := Sources{Keyring: "/host/path/key.gpg", Archives: []Archive{{"https://me:secret@m.example/debian", "trixie"}}}
	if host := string(s.Deb822(false)); !strings.Contains(host, "me:secret@") || !strings.Contains(host, "/host/path/key.gpg") {
		t.Errorf("for the build: %s", host)
	}
	guest := string(s.Deb822(true))
	if strings.Contains(guest, "secret") || !strings.Contains(guest, "https://m.example/debian") || strings.Contains(guest, "/host/path") {
		t.Errorf("for the guest: %s", guest)
	}
	if strings.Contains(s.Describe(), "secret") {
		t.Errorf("described as %s", s.Describe())
	}
}

func TestGuestOptions(t *testing.T) {
	got := guestOptions([]string{
		`Acquire::http::Proxy "http://proxy.example:3128"`, `Acquire::https::Proxy "http://u:p@proxy.example:3128"`,
		`Acquire::Check-Valid-Until "false"`, `Acquire::Retries "3"`, `Dir::Etc::netrc "/etc/apt/auth.conf"`,
	}, []string{"http_proxy=http://other.example:1", "https_proxy=http://127.0.0.1:8080", "no_proxy=x", "PATH=/bin"})
	want := []string{`Acquire::http::Proxy "http://proxy.example:3128"`, `Acquire::Check-Valid-Until "false"`}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := guestOptions(nil, []string{"http_proxy=http://other.example:1/"}); len(got) != 1 {
		t.Errorf("from the environment: %v", got)
	}
}

// Without sources of its own, mmdebstrap takes its default for Debian, and is told
// whose signature counts: on Ubuntu its own keys would.
func TestDefaultMirror(t *testing.T) {
	src, err := HostSources(machine(t, map[string]string{"etc/os-release": noble, "etc/apt/sources.list.d/ubuntu.sources": ubuntuSources, keyring: "key"}), "")
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Join(bootstrap{sources: src, mode: "root", variant: "minbase", target: "/tmp/root"}.args(), " ")
	if !strings.HasSuffix(args, "--keyring="+src.Keyring+" -- stable /tmp/root") {
		t.Errorf("arguments: %s", args)
	}
	if !strings.Contains(src.Describe(), "mmdebstrap's default") {
		t.Errorf("described as %s", src.Describe())
	}
}
