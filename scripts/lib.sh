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
