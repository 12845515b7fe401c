package proc

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// User is an identity to run a command as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Name   string
	Home   string
	Shell  string
}

// maxAccounts bounds how much of /etc/passwd and /etc/group is read, in bytes.
const maxAccounts = 4 << 20

// noID is no user and no group: system calls take it for "leave as it is".
const noID = 1<<32 - 1

// Users resolves names by an image's own account files. It keeps what it found
// until one of the files changes.
type Users struct {
	passwd, group string

	mu    sync.Mutex // guards what follows
	stamp [2]fileStamp
	known map[string]User
}

type fileStamp struct {
	ino         uint64
	size        int64
	mtime, ctim unix.Timespec
}

// NewUsers resolves names by the account files below etc.
func NewUsers(etc string) *Users {
	return &Users{passwd: etc + "/passwd", group: etc + "/group", known: map[string]User{}}
}

// Lookup resolves name, uid, name:group or uid:gid. A number needs no entry in
// the files. The error is of class invalid_argument.
func (u *Users) Lookup(spec string) (User, error) {
	if spec == "" {
		spec = "0"
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	stamp := [2]fileStamp{stampOf(u.passwd), stampOf(u.group)}
	if stamp != u.stamp || len(u.known) > 64 {
		u.known, u.stamp = map[string]User{}, stamp
	}
	if found, ok := u.known[spec]; ok {
		return found, nil
	}
	found, err := u.resolve(spec)
	if err == nil {
		u.known[spec] = found
	}
	return found, err
}

func stampOf(path string) fileStamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fileStamp{}
	}
	return fileStamp{ino: st.Ino, size: st.Size, mtime: st.Mtim, ctim: st.Ctim}
}

func (u *Users) resolve(spec string) (User, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" || hasGroup && group == "" {
		return User{}, errdefs.Invalid("user %q: want NAME, UID, NAME:GROUP or UID:GID", spec)
	}
	passwd, err := readAccounts(u.passwd)
	if err != nil {
		return User{}, err
	}
	groups, err := readAccounts(u.group)
	if err != nil {
		return User{}, err
	}
	found, ok := findUser(passwd, name)
	if !ok {
		uid, err := strconv.ParseUint(name, 10, 32)
		if err != nil || uid == noID {
			return User{}, errdefs.Invalid("the image has no user %q", name).
				WithHint("use a user of the image's /etc/passwd, or a number")
		}
		// As with docker: an unknown number is that user, in group 0, without a home.
		found = User{UID: uint32(uid), Name: name, Home: "/", Shell: ""}
	}
	if !hasGroup {
		if ok {
			found.Groups = memberOf(groups, found.Name, found.GID)
		}
		return found, nil
	}
	if found.GID, ok = findGroup(groups, group); !ok {
		return User{}, errdefs.Invalid("the image has no group %q", group).
			WithHint("use a group of the image's /etc/group, or a number")
	}
	return found, nil
}

// readAccounts reads an account file. An image without one has no accounts, as has one
// with something else in its place: to open a pipe would wait for ever.
func readAccounts(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", errdefs.Wrap(err, "read the image's accounts")
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errdefs.Wrap(err, "read the image's accounts")
	}
	var b strings.Builder
	n, err := io.Copy(&b, io.LimitReader(f, maxAccounts))
	if err != nil {
		return "", errdefs.Wrap(err, "read the image's accounts")
	}
	text := b.String()
	if n == maxAccounts {
		text = text[:strings.LastIndexByte(text, '\n')+1] // half a line may say something else
	}
	return text, nil
}

// findUser looks for a name, or for the first entry of a number: a name that is one
// counts as the number, as with docker.
func findUser(passwd, name string) (User, bool) {
	number, err := strconv.ParseUint(name, 10, 32)
	byNumber := err == nil
	for line := range strings.Lines(passwd) {
		// name:password:uid:gid:comment:home:shell
		f := strings.SplitN(strings.TrimRight(line, "\r\n"), ":", 7)
		if len(f) < 6 || !byNumber && f[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil || uid == noID || gid == noID || byNumber && uid != number {
			continue
		}
		u := User{UID: uint32(uid), GID: uint32(gid), Name: f[0], Home: f[5]}
		if len(f) == 7 {
			u.Shell = f[6]
		}
		if u.Home == "" {
			u.Home = "/"
		}
		return u, true
	}
	if byNumber && number == 0 || name == "root" {
		return User{Name: "root", Home: "/"}, true
	}
	return User{}, false
}

// findGroup looks for a group by its name; a number is that group, listed or not.
func findGroup(groups, name string) (uint32, bool) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), n != noID
	}
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimRight(line, "\r\n"), ":", 4)
		if len(f) < 3 || f[0] != name {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && gid != noID {
			return uint32(gid), true
		}
	}
	return 0, false
}

// memberOf returns the groups that list a user, beside its own.
func memberOf(groups, name string, own uint32) []uint32 {
	const most = 1024
	var gids []uint32
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimRight(line, "\r\n"), ":", 4)
		if len(f) < 4 || f[3] == "" {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member != name {
				continue
			}
			gid, err := strconv.ParseUint(f[2], 10, 32)
			if err == nil && gid != noID && uint32(gid) != own && len(gids) < most && !slices.Contains(gids, uint32(gid)) {
				gids = append(gids, uint32(gid))
			}
			break
		}
	}
	return gids
}
