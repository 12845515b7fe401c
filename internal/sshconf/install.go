package sshconf

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/errdefs"
)

// The lines around what is ours in the user's own configuration. The first may go on with
// what has to be undone beside it.
const (
	beginMark = "# >>> banger: VMs as hosts; banger ssh-config --uninstall removes this"
	endMark   = "# <<< banger"
	madeFile  = " (made this file)"
	madeBoth  = " (made this file and its directory)"
)

// maxConfig bounds what is read of the user's configuration, in bytes.
const maxConfig = 16 << 20

// Include is the line that makes OpenSSH read the configuration.
func (d Dir) Include() (string, error) {
	p, err := value(d.Config())
	return "Include " + strings.ReplaceAll(p, "%%", "%"), err
}

// UserConfig is the path of the user's own configuration of OpenSSH, which need not exist.
func UserConfig() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errdefs.Invalid("find the home directory: %w", err).WithHint("set HOME")
	}
	return filepath.Join(home, ".ssh", "config"), nil
}

// Install adds the Include to the user's configuration, at its top: further down it could be
// part of what is said of other hosts. It reports whether that changed anything.
func (d Dir) Install(config string) (changed bool, err error) {
	include, err := d.Include()
	if err != nil {
		return false, err
	}
	mark := beginMark
	u, err := readUser(config)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if u, mark, err = makeUser(config); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	}
	before, block, after, err := split(config, u.text)
	if err != nil {
		return false, err
	}
	if block != nil {
		mark, _, _ = strings.Cut(string(block), "\n")
	}
	wanted := []byte(mark + "\n" + include + "\n" + endMark + "\n")
	if bytes.Equal(block, wanted) {
		return false, nil
	}
	return true, u.write(bytes.Join([][]byte{before, wanted, after}, nil))
}

// Uninstall takes out what Install has added, and nothing else. It reports whether there was
// anything.
func Uninstall(config string) (changed bool, err error) {
	u, err := readUser(config)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	before, block, after, err := split(config, u.text)
	if err != nil || block == nil {
		return false, err
	}
	rest := append(bytes.Clone(before), after...)
	mark, _, _ := strings.Cut(string(block), "\n")
	if len(rest) > 0 || mark == beginMark {
		return true, u.write(rest)
	}
	if err := os.Remove(u.file); err != nil {
		return false, errdefs.Wrap(err, "remove %s", u.file)
	}
	if mark == beginMark+madeBoth {
		_ = os.Remove(filepath.Dir(u.file)) // which leaves it when there is something else in it
	}
	return true, nil
}

// Installed reports whether the user's configuration includes ours.
func (d Dir) Installed(config string) bool {
	u, err := readUser(config)
	if err != nil {
		return false
	}
	include, err := d.Include()
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(u.text)) {
		if strings.TrimSpace(line) == include {
			return true
		}
	}
	return false
}

// userFile is the user's configuration as it is.
type userFile struct {
	file     string // what links lead to
	text     []byte
	mode     fs.FileMode
	uid, gid int
}

func readUser(config string) (u userFile, err error) {
	if u.file, err = filepath.EvalSymlinks(config); err != nil {
		if _, lerr := os.Lstat(config); lerr == nil && errors.Is(err, fs.ErrNotExist) {
			return u, errdefs.Invalid("%s is a link that leads nowhere", config).WithHint("make what it leads to, or remove it")
		}
		return u, errdefs.Wrap(err, "read %s", config)
	}
	info, err := os.Stat(u.file)
	if err != nil {
		return u, errdefs.Wrap(err, "read %s", config)
	}
	u.mode = info.Mode().Perm()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		u.uid, u.gid = int(st.Uid), int(st.Gid)
	}
	if u.text, err = readFile(u.file, maxConfig); err != nil {
		return u, errdefs.Wrap(err, "read %s", config)
	}
	return u, nil
}

// makeUser begins a configuration, and says by which mark it is known that we did.
func makeUser(config string) (u userFile, mark string, err error) {
	u = userFile{file: config, mode: 0o600, uid: -1, gid: -1}
	switch err = os.Mkdir(filepath.Dir(config), 0o700); {
	case err == nil:
		return u, beginMark + madeBoth, nil
	case errors.Is(err, fs.ErrExist):
		return u, beginMark + madeFile, nil
	}
	return u, "", errdefs.Wrap(err, "make %s", filepath.Dir(config))
}

func (u userFile) write(text []byte) error { return replaceFile(u.file, text, u.mode, u.uid, u.gid) }

// split finds our block in the user's configuration; nil where there is none.
func split(config string, text []byte) (before, block, after []byte, err error) {
	begin := lineAt(text, 0, func(l string) bool { return strings.HasPrefix(l, beginMark) })
	if begin < 0 {
		return nil, nil, text, nil
	}
	end := lineAt(text, begin, func(l string) bool { return l == endMark })
	if end < 0 {
		return nil, nil, nil, errdefs.Invalid("%s: the line %q that ends our part is missing", config, endMark).
			WithHint("remove by hand what begins with %q", beginMark)
	}
	end += len(endMark)
	if end < len(text) {
		end++ // the end of that line
	}
	return text[:begin], text[begin:end], text[end:], nil
}

// lineAt is where the first line from a place on begins that is is true of; -1: none.
func lineAt(text []byte, from int, is func(string) bool) int {
	for at := from; at < len(text); {
		line := text[at:]
		n := bytes.IndexByte(line, '\n')
		if n >= 0 {
			line = line[:n]
		}
		if is(string(line)) {
			return at
		}
		if n < 0 {
			break
		}
		at += n + 1
	}
	return -1
}
