// Package debian makes kernels and root filesystems from Debian's packages. It
// drives mmdebstrap, so apt checks the signed chain, and takes the addresses of
// the archive from the machine's own apt configuration. Nothing it does needs
// root where the host lets ordinary users have user namespaces.
//
// Everything is written below the directory the caller gives; the caller removes
// it (with Remove, since parts of it can belong to other user ids) or renames
// what it wants out of it.
package debian

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"

	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Progress is told how the work goes. All methods may be called from any
// goroutine.
type Progress interface {
	Stage(name string)
	Detail(line string)
	Count(done, total int64, unit string)
}

// Tools lists the programs that pulling needs on this host.
func Tools() []doctor.Tool {
	t := []doctor.Tool{
		{Program: "mmdebstrap", Package: "mmdebstrap", Purpose: "make kernels and images from Debian packages"},
		{Program: "apt-get", Package: "apt", Purpose: "fetch and verify Debian packages"},
		{Program: "apt-config", Package: "apt", Purpose: "read how apt reaches its archives"},
		{Program: "dpkg-deb", Package: "dpkg", Purpose: "unpack Debian packages"},
		{Program: "mke2fs", Package: "e2fsprogs", Purpose: "write ext4 filesystems"},
		{Program: "debugfs", Package: "e2fsprogs", Purpose: "set owners in ext4 filesystems"},
		{Program: "depmod", Package: "kmod", Purpose: "index kernel modules"},
	}
	if os.Geteuid() != 0 {
		t = append(t, doctor.Tool{Program: "newuidmap", Package: "uidmap", Purpose: "build images without root"})
	}
	return t
}

// checkTools errors when one is missing, with the command that installs them.
func checkTools(ctx context.Context) error {
	r := doctor.Tools("", doctor.HostDistro(), Tools()...).Run(ctx)
	if r.Status == doctor.StatusPass {
		return nil
	}
	return errdefs.Unsupported("%s", r.Detail).WithHint("%s", r.Fix)
}

var diagnoses = []struct {
	pattern *regexp.Regexp
	class   errdefs.Class
	why     string
	hint    string
}{
	{regexp.MustCompile(`(?i)no space left on device|disk quota exceeded|Could not allocate block in ext2|You don't have enough free space`),
		errdefs.ClassExhausted, "no space left on the device",
		"free some space in the state directory, or set BANGER_STATE_DIR to a larger disk"},
	{regexp.MustCompile(`(?i)NO_PUBKEY|is not signed|GPG error|invalid signature|EXPKEYSIG`),
		errdefs.ClassFailedPrecondition, "the archive's signature was not accepted",
		"update the keys: sudo apt-get install --only-upgrade debian-archive-keyring"},
	{regexp.MustCompile(`(?i)Release file for .* is (expired|not valid yet)`),
		errdefs.ClassFailedPrecondition, "the archive's Release file is out of date, or this machine's clock is wrong",
		"check the clock, and the mirror in /etc/apt/sources.list or sources.list.d"},
	{regexp.MustCompile(`(?i)does not have a Release file|Unable to locate package|E: no .*suite|404 +Not Found`),
		errdefs.ClassNotFound, "the archive has no such release or package",
		"check the release name, and the mirror in /etc/apt/sources.list or sources.list.d"},
	{regexp.MustCompile(`(?i)could not resolve|temporary failure resolving|could not connect|connection (failed|timed out|refused)|network is unreachable|unable to connect|failed to fetch|Certificate verification failed`),
		errdefs.ClassUnavailable, "the Debian archive cannot be reached",
		"check the network and the mirror or proxy that apt is configured for, then try again"},
	{regexp.MustCompile(`(?i)subuid|subgid|newuidmap|newgidmap|uid_map|unshare\(|unshare failed|unprivileged_userns|failed to unshare|unshare: `),
		errdefs.ClassUnsupported, "this host does not let the user build images without root",
		"give the user sub-ids (sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER), allow unprivileged user namespaces, or run the daemon as root"},
}

// explain turns a failed tool run into an error that says why and what to try.
// said is what the program printed.
func explain(ctx context.Context, what string, said []string, err error) error {
	if ctx.Err() != nil {
		return errdefs.Wrap(context.Cause(ctx), "%s", what)
	}
	var toolErr *sysexec.Error
	if !errors.As(err, &toolErr) {
		return errdefs.Wrap(err, "%s", what)
	}
	text := strings.Join(said, "\n")
	for _, d := range diagnoses {
		if line := d.pattern.FindString(text); line != "" {
			return errdefs.New(d.class, "%s: %s", what, d.why).WithHint("%s", d.hint)
		}
	}
	return errdefs.New(errdefs.ClassInternal, "%s: %s ended with status %d: %s", what, toolErr.Program, toolErr.Code, lastWords(said))
}

// wrapping matches what programs say only because one they ran has failed.
var wrapping = regexp.MustCompile(`^E: (system failed|unshared command failed|mmdebstrap failed to run)`)

// lastWords picks the line that says most about a failure.
func lastWords(said []string) string {
	pick := ""
	for _, line := range said {
		if wrapping.MatchString(line) {
			continue
		}
		if strings.HasPrefix(line, "E:") || strings.Contains(line, "error") || pick == "" {
			pick = line
		}
	}
	if len(pick) > 300 {
		pick = pick[:300] + "…"
	}
	return pick
}
