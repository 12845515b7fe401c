# shellcheck shell=bash
# What the scripts share. Source it with the repository's root as working directory.

# note prints a line for people; stdout stays clean for results.
note() { printf '== %s\n' "$*" >&2; }

# die prints why, and ends the script.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# as_root runs a command as root, through sudo when this is an ordinary user.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this takes root, and there is no sudo: run as root: $*"
	fi
}

# has_apt says whether packages come by apt here.
has_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# distro prints the distribution's name for people.
distro() {
	# shellcheck disable=SC1091
	(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-Linux}") || printf 'Linux'
}

# skip ends a script whose part cannot run here, and says why; under CI, where
# everything must run, that is an error.
skip() {
	[ -z "${CI:-}" ] || die "this must run under CI: $*"
	note "skipped: $*"
	exit 0
}

# image_key prints a hash of what makes kernels and images.
image_key() {
	find internal/daemon/imagemgr -name '*.go' ! -name '*_test.go' -print0 | sort -z | xargs -0 cat | sha256sum | cut -c 1-12
}

# test_cache KEY: makes and prints the directory of this user that lives on between
# runs of tests, which keep a kernel and an image there. Those of other keys go,
# unless a run of theirs holds its lock.
test_cache() {
	local cache=$HOME/.cache/banger-test old
	[ "$(id -u)" -ne 0 ] || cache=/var/cache/banger-test
	mkdir -p "$cache/$1" && chmod 700 "$cache"
	for old in "$cache"/*; do
		[ "$old" = "$cache/$1" ] || flock --nonblock "$old/lock" rm -rf -- "$old" || true
	done
	printf '%s\n' "$cache/$1"
}
