package debian

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"banger/internal/sysexec"
)

// aptOption matches the settings of the machine's apt that say how an archive is
// reached. Everything else of its configuration stays out of a build.
var aptOption = regexp.MustCompile(`^(Acquire::(?:https?|ftp)::(?:Proxy(?:::[^ ]+)?|ProxyAutoDetect|Proxy-Auto-Detect|Timeout|CaInfo)|` +
	`Acquire::(?:Check-Valid-Until|Check-Date|Retries|ForceIPv4|ForceIPv6)) "([^"]*)";$`)

// hostOptions returns those settings as "Name "value"" lines.
func hostOptions(ctx context.Context) ([]string, error) {
	out, err := sysexec.Output(ctx, sysexec.Cmd{Path: "apt-config", Args: []string{"dump", "Acquire"}})
	if err != nil {
		return nil, explain(ctx, "read apt's configuration", nil, err)
	}
	var opts []string
	for line := range strings.Lines(string(out)) {
		if m := aptOption.FindStringSubmatch(strings.TrimSpace(line)); m != nil && m[2] != "" {
			opts = append(opts, fmt.Sprintf("%s %q", m[1], m[2]))
		}
	}
	for _, file := range []struct{ option, path string }{
		{"Dir::Etc::netrc", "/etc/apt/auth.conf"}, {"Dir::Etc::netrcparts", "/etc/apt/auth.conf.d"},
	} {
		if f, err := os.Open(file.path); err == nil { // readable: logins for private mirrors
			_ = f.Close()
			opts = append(opts, fmt.Sprintf("%s %q", file.option, file.path))
		}
	}
	return opts, nil
}

// guestOptions picks what a guest needs to reach the same archive: a proxy that
// is not on this machine's loopback and has no login in it, and the leave to use
// an archive that was frozen at a date.
func guestOptions(opts, environ []string) []string {
	var out []string
	have := map[string]bool{}
	for _, o := range opts {
		name, value, _ := strings.Cut(o, " ")
		value, _ = strconv.Unquote(value)
		switch {
		case strings.HasPrefix(name, "Acquire::Check-"):
			out = append(out, o)
		case strings.HasSuffix(name, "::Proxy"):
			have[name] = true
			if shareableProxy(value) {
				out = append(out, o)
			}
		}
	}
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		scheme, isProxy := strings.CutSuffix(key, "_proxy")
		name := "Acquire::" + scheme + "::Proxy"
		if isProxy && (scheme == "http" || scheme == "https") && !have[name] && shareableProxy(value) {
			out = append(out, fmt.Sprintf("%s %q", name, value))
		}
	}
	return out
}

func shareableProxy(value string) bool {
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.ContainsAny(value, "\"\\\n") {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}

// bootstrap is one run of mmdebstrap.
type bootstrap struct {
	sources  Sources
	options  []string // of apt
	variant  string
	mode     string
	packages []string
	target   string   // directory to make
	file     string   // written sources, as mmdebstrap sees it; empty: its default
	extra    []string // more arguments
}

func (b bootstrap) args() []string {
	args := []string{"--verbose", "--mode=" + b.mode, "--format=directory", "--variant=" + b.variant, "--architectures=amd64", "--components=main"}
	if len(b.packages) > 0 {
		args = append(args, "--include="+strings.Join(b.packages, ","))
	}
	for _, o := range append([]string{`Acquire::Languages "none"`}, b.options...) {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, b.extra...)
	if b.file == "" {
		return append(args, "--keyring="+b.sources.Keyring, "--", b.sources.Suite, b.target)
	}
	return append(args, "--", b.sources.Suite, b.target, b.file)
}

// writeSources writes the archives to path; it is the host's view of the file.
func (s Sources) writeSources(path string) error {
	// Sub-ids must be able to read it; the directory above keeps others out.
	if err := os.WriteFile(path, s.Deb822(false), 0o644); err != nil {
		return fmt.Errorf("write apt sources: %w", err)
	}
	return nil
}

// Describe says where packages come from, for people, without credentials.
func (s Sources) Describe() string {
	if len(s.Archives) == 0 {
		return "Debian " + s.Suite + " from mmdebstrap's default mirror"
	}
	host := ""
	if u, err := url.Parse(s.Archives[0].URI); err == nil {
		host = u.Host
	}
	return "Debian " + s.Suite + " from " + host
}
