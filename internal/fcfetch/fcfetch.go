// Package fcfetch installs Firecracker and its jailer from a release: upstream's, a
// mirror's, or one that lies here. A release is believed as far as its published
// checksum goes, and nothing that was installed changes before all of it is checked.
package fcfetch

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"banger/internal/errdefs"
	"banger/internal/install"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// DefaultVersion is the release that banger is tested with.
const DefaultVersion = "1.16.1"

// Releases is where upstream publishes them: below it, download/vVERSION/ARCHIVE and,
// beside that, ARCHIVE.sha256.txt.
const Releases = "https://github.com/firecracker-microvm/firecracker/releases"

// arch is the machine that releases are taken for, as they call it.
const arch = "x86_64"

// The programs, as they are installed.
const (
	Firecracker = "firecracker"
	Jailer      = "jailer"
)

// Request says what to install.
type Request struct {
	Version string // of the release, without v; empty: the default one, or a directory's
	// From is where the release lies: a base URL laid out as Releases is, an archive, or a
	// directory with the two programs.
	From string
	// SHA256 is the archive's checksum in hexadecimal; empty: the one published beside it.
	SHA256 string
	Into   string                  // directory of programs; made if need be
	Report func(done, total int64) // bytes of the download; total is 0 when unknown; may be nil
}

// Result is what is installed now.
type Result struct {
	Version string
	Changed bool // false: it was there already
}

var (
	versionPattern = regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$`)
	sumPattern     = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
)

// Fetch installs a release.
func Fetch(ctx context.Context, r Request) (Result, error) {
	if err := r.check(); err != nil {
		return Result{}, err
	}
	kind, err := r.kind()
	if err != nil {
		return Result{}, err
	}
	if r.Version == "" && kind != isDirectory {
		r.Version = DefaultVersion
	}
	work, err := r.workDir()
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if kind == isDirectory {
		err = r.fromDirectory(work)
	} else {
		err = r.fromArchive(ctx, kind, work)
	}
	if err != nil {
		return Result{}, errdefs.Wrap(err, "fetch Firecracker")
	}
	version, err := r.ask(ctx, work)
	if err != nil {
		return Result{}, err
	}
	changed, err := install.Place(r.Into, work, []string{Jailer, Firecracker})
	return Result{Version: version, Changed: changed}, err
}

func (r Request) check() error {
	if r.Version != "" && !versionPattern.MatchString(r.Version) {
		return errdefs.Invalid("%q is not a version of Firecracker", r.Version).WithHint("write it as in %s", DefaultVersion)
	}
	if r.SHA256 != "" && !sumPattern.MatchString(r.SHA256) {
		return errdefs.Invalid("%q is not a SHA-256 checksum", r.SHA256).WithHint("give 64 hexadecimal digits, as sha256sum prints them")
	}
	// The published checksum would come by the same way, and what it is of is run as root.
	if u, err := url.Parse(r.From); err == nil && u.Scheme == "http" && r.SHA256 == "" && !loopback(u.Hostname()) {
		return errdefs.Precondition("%s sends archive and checksum without encryption: whoever is on the way could change both", r.From).
			WithHint("give the checksum that its publisher names: --sha256; or an https:// mirror")
	}
	return nil
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// workDir makes the directory for what is not checked yet. It lies where the programs
// go, because they have to be run once, and /tmp may forbid that. Its name is always the
// same, so that the next run finds what a crash has left.
func (r Request) workDir() (string, error) {
	work := filepath.Join(r.Into, paths.StagingPrefix+"fetch")
	err := os.MkdirAll(r.Into, 0o755)
	if err == nil {
		err = os.RemoveAll(work)
	}
	if err == nil {
		err = os.Mkdir(work, 0o700)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrExist) && os.Geteuid() != 0 {
		return "", errdefs.Permission("install Firecracker: %w", err).WithHint("run it with sudo, or choose another --prefix")
	}
	if err != nil {
		return "", errdefs.Wrap(err, "install Firecracker")
	}
	return work, nil
}

// kind is what From names.
type kind int

const (
	isURL kind = iota
	isArchive
	isDirectory
)

func (r Request) kind() (kind, error) {
	if strings.HasPrefix(r.From, "https://") || strings.HasPrefix(r.From, "http://") {
		return isURL, nil
	}
	info, err := os.Stat(r.From)
	switch {
	case err != nil:
		return 0, errdefs.NotFound("take Firecracker from %s: %w", r.From, err).
			WithHint("give an archive of a release, a directory with its programs, or the URL of a mirror")
	case info.IsDir() && r.SHA256 != "":
		return 0, errdefs.Invalid("%s is a directory, which has no checksum", r.From)
	case info.IsDir():
		return isDirectory, nil
	case !info.Mode().IsRegular():
		return 0, errdefs.Invalid("%s is neither a file nor a directory", r.From)
	}
	return isArchive, nil
}

// fromArchive takes the programs from a release's archive.
func (r Request) fromArchive(ctx context.Context, kind kind, work string) error {
	archive, err := r.archive(ctx, kind, work)
	if err != nil {
		return err
	}
	err = unpack(ctx, archive, r.Version, work)
	return errors.Join(err, archive.Close())
}

// fromDirectory copies the two programs, by their plain names or those they have in a
// release.
func (r Request) fromDirectory(work string) error {
	for _, program := range []string{Firecracker, Jailer} {
		path := filepath.Join(r.From, program)
		if _, err := os.Stat(path); err != nil {
			matches, _ := filepath.Glob(filepath.Join(escape.Replace(r.From), program+"-v*-"+arch))
			if len(matches) != 1 {
				return errdefs.NotFound("%s holds not one %s, but %d", r.From, program, len(matches)).
					WithHint("it has to hold %s and %s of one release", Firecracker, Jailer)
			}
			path = matches[0]
		}
		src, err := os.Open(path)
		if err != nil {
			return err
		}
		err = save(src, filepath.Join(work, program))
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
	}
	return nil
}

var escape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// askTime bounds how long a program may take to tell its version.
const askTime = 10 * time.Second

// ask has both programs say which version they are, and returns it.
func (r Request) ask(ctx context.Context, dir string) (version string, err error) {
	version = r.Version
	for _, p := range []struct{ file, name string }{{Firecracker, "Firecracker"}, {Jailer, "Jailer"}} {
		call, cancel := context.WithTimeout(ctx, askTime)
		out, err := sysexec.Output(call, sysexec.Cmd{Path: filepath.Join(dir, p.file), Args: []string{"--version"}, Dir: "/", Env: []string{}})
		cancel()
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err != nil {
			return "", errdefs.Unsupported("run %s: %w", p.name, err).WithHint("take a release for this machine (%s)", arch)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		name, number, _ := strings.Cut(strings.TrimSpace(line), " v")
		if name != p.name || !versionPattern.MatchString(number) {
			return "", errdefs.Unsupported("%s says that it is %.60q", p.file, line).WithHint("take another release")
		}
		if version == "" {
			version = number
		}
		if number != version {
			return "", errdefs.Precondition("%s has version %s, not %s", p.name, number, version).
				WithHint("both programs have to be of the release that is asked for: see --version")
		}
	}
	return version, nil
}
