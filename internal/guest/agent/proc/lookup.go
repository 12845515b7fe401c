package proc

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// DefaultPath is the PATH of a command when neither the image nor the request
// gives one.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Getenv returns the last value of key in env.
func Getenv(env []string, key string) string {
	for _, e := range slices.Backward(env) {
		if len(e) > len(key) && e[len(key)] == '=' && e[:len(key)] == key {
			return e[len(key)+1:]
		}
	}
	return ""
}

// LookPath finds a command as a shell of user u in directory dir would. The error
// is of class not_found, or of class permission when there is a file that u may
// not execute.
func LookPath(u *User, dir, name string, env []string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		path := name
		if path[0] != '/' {
			path = dir + "/" + path
		}
		switch check(u, path) {
		case found:
			return path, nil
		case denied:
			return "", errdefs.Permission("%s: cannot be executed by %s", name, u.Name).
				WithHint("make it executable (chmod +x), or name its interpreter")
		}
		return "", errdefs.NotFound("%s: no such file in the VM", name)
	}
	refused := ""
	for entry := range strings.SplitSeq(Getenv(env, "PATH"), ":") {
		if entry == "" {
			entry = "."
		}
		if entry[0] != '/' {
			entry = dir + "/" + entry
		}
		path := entry + "/" + name
		switch check(u, path) {
		case found:
			return path, nil
		case denied:
			refused = path
		}
	}
	if refused != "" {
		return "", errdefs.Permission("%s: cannot be executed by %s", refused, u.Name).
			WithHint("make it executable (chmod +x), or name its interpreter")
	}
	return "", errdefs.NotFound("%s: command not found in the VM", name).
		WithHint("install it in the image, or check PATH: %s", Getenv(env, "PATH"))
}

type verdict int

const (
	absent verdict = iota
	denied
	found
)

// check judges by the mode bits; what else may refuse (ACLs, a directory on the
// way) shows when the command is executed.
func check(u *User, path string) verdict {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return absent
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return denied
	}
	bit := uint32(0o001)
	switch {
	case u.UID == 0:
		bit = 0o111
	case st.Uid == u.UID:
		bit = 0o100
	case st.Gid == u.GID || slices.Contains(u.Groups, st.Gid):
		bit = 0o010
	}
	if st.Mode&bit == 0 {
		return denied
	}
	return found
}
