package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

// imageUser is the user commands run as in the default image.
const imageUser = "dev"

// imagePackages are added to Debian's minimal system: an init, and what building
// a project usually needs.
var imagePackages = []string{
	"systemd-sysv", "libpam-systemd", "dbus", "udev", "kmod", "libnss-myhostname",
	"build-essential", "make", "git", "python3", "curl", "ca-certificates", "openssh-client",
	"sudo", "iproute2", "procps", "netbase", "less", "nano", "xz-utils", "tzdata",
}

// Image is a finished root filesystem.
type Image struct {
	Path   string // of the ext4 file, sparse
	User   string // commands run as this user
	Digest string // of the package list it was made from
	Source string // for people
}

// BuildImage makes a root filesystem of size bytes from the packages of a suite,
// below dir, which must be a fresh directory that only this user can enter. The
// packages of include are installed besides the usual ones.
func BuildImage(ctx context.Context, src Sources, dir string, size int64, include []string, p Progress) (Image, error) {
	if err := CheckPackages(include); err != nil {
		return Image{}, err
	}
	i, err := build(ctx, src, dir, size, p, "minbase", append(slices.Clone(imagePackages), include...))
	if err == nil && len(include) > 0 {
		i.Source += ", with " + strings.Join(include, " ")
	}
	return i, err
}

// maxPackages bounds what one image may ask for by name.
const maxPackages = 500

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,99}$`)

// CheckPackages refuses what are no names of Debian packages.
func CheckPackages(names []string) error {
	if len(names) > maxPackages {
		return errdefs.Invalid("%d packages: at most %d can be named", len(names), maxPackages).
			WithHint("name those that need the others; they come along")
	}
	for _, name := range names {
		if !packageName.MatchString(name) {
			return errdefs.Invalid("%q is not the name of a Debian package", name).
				WithHint("names have small letters, digits and +.- in them, such as golang-go")
		}
	}
	return nil
}

func build(ctx context.Context, src Sources, dir string, size int64, p Progress, variant string, packages []string) (Image, error) {
	if err := checkTools(ctx); err != nil {
		return Image{}, err
	}
	p.Stage("resolve")
	opts, err := hostOptions(ctx)
	if err != nil {
		return Image{}, err
	}
	s, err := newSandbox(ctx, filepath.Join(dir, buildDir))
	if err != nil {
		return Image{}, err
	}
	b := bootstrap{sources: src, options: opts, variant: variant, mode: "root", packages: packages, target: s.path("root")}
	if len(src.Archives) > 0 {
		b.file = s.path("debian.sources")
		if err := src.writeSources(filepath.Join(s.dir, "debian.sources")); err != nil {
			return Image{}, err
		}
	}
	if err := writeOverlay(filepath.Join(s.dir, "overlay.tar"), overlay(src, guestOptions(opts, os.Environ())), time.Now()); err != nil {
		return Image{}, err
	}
	b.extra = imageArgs(s, len(src.Archives) > 0)
	t := &tracker{p: p, stage: "resolve"}
	if said, err := s.run(ctx, t.line, "mmdebstrap", b.args()...); err != nil {
		return Image{}, explain(ctx, "install Debian "+src.Suite, said, err)
	}
	p.Stage("write filesystem")
	if err := rootImage(ctx, s, "root", paths.RootfsFile, size); err != nil {
		return Image{}, err
	}
	digest, err := fileDigest(filepath.Join(s.dir, "packages"))
	if err != nil {
		return Image{}, fmt.Errorf("read the package list: %w", err)
	}
	return Image{Path: filepath.Join(s.dir, paths.RootfsFile), User: imageUser, Digest: digest, Source: src.Describe()}, nil
}

// Left out of an image: what nobody reads in a machine without a terminal of its
// own. Licences and the C.UTF-8 locale, which is not in these paths, stay.
var excluded = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	// The disk of a sandbox need not survive a power cut in the middle of dpkg.
	"force-unsafe-io",
}

// finish runs outside the new tree ($1) when all packages are in. The tree's own
// programs make the user, so the files have the format they expect.
const finish = `set -eu
root=$1
chroot "$root" useradd --uid 1000 --user-group --groups sudo --create-home --shell /bin/bash dev
chroot "$root" dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | LC_ALL=C sort > "$root/../packages"
chmod 644 "$root/../packages"
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
mv "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/banger"`

// dropSources removes what mmdebstrap wrote, for the overlay brings its own.
const dropSources = `rm -rf "$1/etc/apt/sources.list" "$1/etc/apt/sources.list.d" && mkdir "$1/etc/apt/sources.list.d"`

// tidy removes what a copy of the image must not share, and what is of no use.
const tidy = `set -eu
root=$1
rm -f "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/var/lib/dbus/machine-id
# Empty lists of modules still cost a process at every boot.
rm -f "$root"/etc/modules-load.d/modules.conf
: > "$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*_* "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old`

func imageArgs(s *sandbox, ownSources bool) []string {
	var args []string
	for _, o := range excluded {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, "--customize-hook="+finish)
	if ownSources {
		args = append(args, "--customize-hook="+dropSources)
	}
	return append(args,
		"--customize-hook=tar-in "+s.path("overlay.tar")+" /",
		"--customize-hook="+tidy)
}

// masked units cost boot time and do nothing for a sandbox that lives for minutes
// and whose disk, network and clock are looked after from outside.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "man-db.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "systemd-tmpfiles-clean.timer",
	"getty@.service", "serial-getty@.service", "console-getty.service", "container-getty@.service",
	"systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service", "networking.service",
	"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
	"systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service", "ldconfig.service",
	"systemd-firstboot.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pcrphase-initrd.service",
	"systemd-pstore.service", "systemd-boot-system-token.service", "systemd-machine-id-commit.service", "systemd-journal-flush.service",
	"systemd-random-seed.service", // a virtio device feeds the kernel's generator
	"systemd-remount-fs.service",  // the agent mounted the root as it stays
	"systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
	"dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
	"modprobe@.service", "keyboard-setup.service", "console-setup.service", "cryptdisks.service",
}

// overlay is what is laid over the installed packages.
func overlay(src Sources, aptOptions []string) []overlayFile {
	files := []overlayFile{
		{name: "etc/sudoers.d/dev", mode: 0o440, data: "dev ALL=(ALL:ALL) NOPASSWD: ALL\n"},
		{name: "etc/hosts", mode: 0o644, data: "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"},
		{name: "etc/fstab", mode: 0o644, data: ""},
		{name: "etc/default/locale", mode: 0o644, data: "LANG=C.UTF-8\n"},
		{name: "etc/systemd/system/default.target", link: "/lib/systemd/system/multi-user.target"},
		{name: "etc/systemd/journald.conf.d/banger.conf", mode: 0o644, data: "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nForwardToConsole=no\n"},
		// Later than /usr: systemd takes its caches for current and rebuilds none.
		{name: "etc/.updated", mode: 0o644}, {name: "var/.updated", mode: 0o644},
	}
	conf := []string{`Acquire::Languages "none"`, `APT::Periodic::Enable "0"`}
	files = append(files, overlayFile{
		name: "etc/apt/apt.conf.d/80banger", mode: 0o644,
		data: strings.Join(append(conf, aptOptions...), ";\n") + ";\n",
	})
	if len(src.Archives) > 0 {
		files = append(files, overlayFile{name: "etc/apt/sources.list.d/debian.sources", mode: 0o644, data: string(src.Deb822(true))})
	}
	for _, unit := range masked {
		files = append(files, overlayFile{name: "etc/systemd/system/" + unit, link: "/dev/null"})
	}
	return files
}
