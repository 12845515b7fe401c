package debian

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"banger/internal/doctor"
	"banger/internal/errdefs"
)

// maxSourceFile bounds one apt configuration file, in bytes.
const maxSourceFile = 1 << 20

// entry is one archive a machine's apt is configured for: one URI, one suite.
type entry struct {
	uri      string
	suite    string
	signedBy string
}

// Sources is where the packages of a suite come from.
type Sources struct {
	Suite   string // code name, or "stable"
	Keyring string // file that must sign everything
	// Archives is empty when the machine's apt names no Debian archive, as that of
	// another distribution does not; mmdebstrap's own default is used then.
	Archives []Archive
}

// Archive is one suite at one address.
type Archive struct {
	URI   string
	Suite string
}

// keyrings are where the debian-archive-keyring package puts its keys.
var keyrings = []string{
	"usr/share/keyrings/debian-archive-keyring.gpg",
	"usr/share/keyrings/debian-archive-keyring.pgp",
}

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,30}$`)

// CheckSuite reports whether s can be the name of a Debian suite.
func CheckSuite(s string) error {
	if suiteName.MatchString(s) {
		return nil
	}
	return errdefs.Invalid("%q is not the name of a Debian release", s).
		WithHint("use a code name such as bookworm or trixie, or stable")
}

// HostSources works out where the packages of suite come from, from the apt
// configuration below root ("/" but in tests). An empty suite means the release
// of the machine when it runs Debian, else the one that its apt knows Debian's
// archive for, else stable.
//
// Only entries that are the Debian archive are used: signed by its keyring, or
// without a key of their own and known by their Release file or, on Debian, their
// path. Other vendors' entries often use Debian's suite names, so the suite alone
// says nothing; on another distribution the path does not either.
func HostSources(root, suite string) (Sources, error) {
	s := Sources{Suite: suite}
	for _, k := range keyrings {
		if _, err := os.Stat(filepath.Join(root, k)); err == nil {
			s.Keyring = filepath.Join(root, k)
			break
		}
	}
	if s.Keyring == "" {
		return s, errdefs.Unsupported("the keys that sign Debian's packages are not installed").
			WithHint("%s", doctor.HostDistro().Install("them", "debian-archive-keyring"))
	}
	entries, err := readEntries(root)
	if err != nil {
		return s, err
	}
	host := hostCodename(root)
	byPath := host != ""
	entries = slices.DeleteFunc(entries, func(e entry) bool { return !isDebian(root, e, byPath) })
	if host == "" {
		host = firstRelease(entries)
	}
	if suite == "" {
		s.Suite = cmp.Or(host, "stable")
	}
	s.Archives = choose(entries, host, s.Suite)
	return s, nil
}

// firstRelease is the release that the first of Debian's entries is for, or "".
func firstRelease(entries []entry) string {
	for _, e := range entries {
		if base, _, ok := splitSuite(e.suite); ok {
			return base
		}
	}
	return ""
}

// choose maps the machine's Debian entries onto the wanted suite.
func choose(entries []entry, host, suite string) []Archive {
	pick := func(accept func(base string) bool) []Archive {
		var out []Archive
		for _, e := range entries {
			base, pocket, ok := splitSuite(e.suite)
			if !ok || !accept(base) {
				continue
			}
			if suite != host {
				if pocket != "" && (suite == "sid" || suite == "unstable") {
					continue
				}
				base = suite
			}
			if a := (Archive{URI: e.uri, Suite: base + pocket}); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
		return out
	}
	if found := pick(func(base string) bool { return base == host }); len(found) > 0 {
		return found
	}
	aliases := []string{"stable", "oldstable", "testing", "unstable", "sid"}
	return pick(func(base string) bool { return slices.Contains(aliases, base) })
}

// splitSuite takes "bookworm-security" apart. ok is false for pockets that a
// plain installation does not use.
func splitSuite(suite string) (base, pocket string, ok bool) {
	suite = strings.TrimSuffix(suite, "/")
	base, pocket, found := strings.Cut(suite, "-")
	if !found {
		return base, "", base != "" && base != "." && !strings.Contains(base, "/")
	}
	switch pocket {
	case "updates", "security":
		return base, "-" + pocket, true
	}
	return "", "", false
}

// hostCodename is the Debian release that root runs; "" when it is not Debian.
func hostCodename(root string) string {
	data, err := readBounded(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return ""
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[key] = strings.Trim(value, `"'`)
	}
	if vars["ID"] != "debian" {
		return ""
	}
	if c := vars["VERSION_CODENAME"]; suiteName.MatchString(c) {
		return c
	}
	return "stable"
}

// isDebian reports whether e is the Debian archive; byPath lets its path decide
// where nothing else says what it is.
func isDebian(root string, e entry, byPath bool) bool {
	if e.signedBy != "" {
		return strings.HasPrefix(filepath.Base(e.signedBy), "debian-archive-")
	}
	if origin, known := releaseOrigin(root, e); known {
		return origin == "Debian"
	}
	u, err := url.Parse(e.uri)
	if err != nil || !byPath {
		return false
	}
	for _, part := range strings.Split(u.Path, "/") {
		if part == "debian" || part == "debian-security" {
			return true
		}
	}
	return false
}

// releaseOrigin reads who made the archive from the Release file apt keeps of it.
func releaseOrigin(root string, e entry) (origin string, known bool) {
	u, err := url.Parse(e.uri)
	if err != nil {
		return "", false
	}
	name := strings.ReplaceAll(strings.Trim(u.Host+u.Path, "/")+"/dists/"+e.suite, "/", "_")
	for _, kind := range []string{"_InRelease", "_Release"} {
		f, err := os.Open(filepath.Join(root, "var/lib/apt/lists", name+kind))
		if err != nil {
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for n := 0; n < 40 && lines.Scan(); n++ {
			if v, ok := strings.CutPrefix(lines.Text(), "Origin:"); ok {
				return strings.TrimSpace(v), true
			}
		}
	}
	return "", false
}

// readEntries reads every binary-package entry for amd64, in apt's order.
func readEntries(root string) ([]entry, error) {
	files := []string{filepath.Join(root, "etc/apt/sources.list")}
	parts, err := os.ReadDir(filepath.Join(root, "etc/apt/sources.list.d"))
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read apt's sources: %w", err)
	}
	for _, p := range parts {
		files = append(files, filepath.Join(root, "etc/apt/sources.list.d", p.Name()))
	}
	sort.Strings(files[1:])
	var out []entry
	for _, f := range files {
		parse := parseList
		switch filepath.Ext(f) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue
		}
		data, err := readBounded(f)
		if os.IsNotExist(err) || os.IsPermission(err) {
			continue // another entry may do; mmdebstrap's default does in the end
		}
		if err != nil {
			return nil, fmt.Errorf("read apt's sources: %w", err)
		}
		for _, e := range parse(string(data)) {
			if e.uri = resolveURI(root, e.uri); e.uri != "" {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// parseList reads the one-line format: deb [option=value …] uri suite component…
func parseList(text string) []entry {
	var out []entry
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = strings.TrimSpace(rest)
		options := map[string]string{}
		if strings.HasPrefix(rest, "[") {
			inner, after, closed := strings.Cut(rest[1:], "]")
			if !closed {
				continue
			}
			for _, o := range strings.Fields(inner) {
				k, v, _ := strings.Cut(o, "=")
				options[strings.ToLower(k)] = v
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 3 || !slices.Contains(f[2:], "main") || !forAMD64(strings.Split(options["arch"], ",")) {
			continue
		}
		out = append(out, entry{uri: f[0], suite: f[1], signedBy: options["signed-by"]})
	}
	return out
}

// parseDeb822 reads the stanza format.
func parseDeb822(text string) []entry {
	var out []entry
	stanza := map[string]string{}
	flush := func() {
		defer clear(stanza)
		enabled := strings.ToLower(stanza["enabled"])
		if !slices.Contains(strings.Fields(stanza["types"]), "deb") || enabled == "no" || enabled == "false" ||
			!slices.Contains(strings.Fields(stanza["components"]), "main") || !forAMD64(strings.Fields(stanza["architectures"])) {
			return
		}
		for _, uri := range strings.Fields(stanza["uris"]) {
			for _, suite := range strings.Fields(stanza["suites"]) {
				out = append(out, entry{uri: uri, suite: suite, signedBy: strings.TrimSpace(stanza["signed-by"])})
			}
		}
	}
	key := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			flush()
			key = ""
		case line[0] == ' ' || line[0] == '\t':
			stanza[key] += " " + strings.TrimSpace(line)
		default:
			k, v, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(k))
			stanza[key] = strings.TrimSpace(v)
		}
	}
	flush()
	return out
}

func forAMD64(archs []string) bool {
	named := false
	for _, a := range archs {
		if a == "amd64" {
			return true
		}
		named = named || a != ""
	}
	return !named
}

// resolveURI returns an address that works outside this machine's file system
// too: cloud images name a file with a list of mirrors instead of one. It is ""
// for what cannot be used (cdrom:, file:, and so on).
func resolveURI(root, uri string) string {
	if list, ok := strings.CutPrefix(uri, "mirror+"); ok {
		u, err := url.Parse(list)
		if err != nil || u.Scheme != "file" {
			return ""
		}
		data, err := readBounded(filepath.Join(root, u.Path))
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(data)) {
			line, _, _ = strings.Cut(line, "#")
			if f := strings.Fields(line); len(f) > 0 {
				return resolveURI(root, f[0])
			}
		}
		return ""
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(uri, "\"'\\ ") {
		return ""
	}
	return uri
}

// Deb822 is the archives as an apt source file. Credentials in an address are
// dropped for a guest, which must not learn them.
func (s Sources) Deb822(forGuest bool) []byte {
	var b bytes.Buffer
	keyring := s.Keyring
	if forGuest {
		keyring = "/" + keyrings[0]
	}
	for _, a := range s.Archives {
		uri := a.URI
		if u, err := url.Parse(uri); forGuest && err == nil && u.User != nil {
			u.User = nil
			uri = u.String()
		}
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n", uri, a.Suite, keyring)
	}
	return b.Bytes()
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxSourceFile {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxSourceFile)
	}
	return os.ReadFile(path)
}
