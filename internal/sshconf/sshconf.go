// Package sshconf is what the SSH clients of a user need to reach VMs: a configuration for
// OpenSSH, a key, and the host keys of VMs as their daemons gave them. All of it lies in one
// directory of the user's; what is the user's own is touched by Install and Uninstall alone.
package sshconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/paths"
	"banger/internal/sshkey"
)

// Domain is what the names of VMs end in for SSH clients.
const Domain = ".vm"

// maxKnownHosts bounds what is read of the file of host keys, in bytes.
const maxKnownHosts = 4 << 20

// Dir is the directory of one user.
type Dir string

// Open returns the directory of this user, and makes it if need be. Its mode is 0700.
func Open() (Dir, error) {
	dir, err := paths.SSHDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", errdefs.Wrap(err, "make the directory for SSH")
	}
	return Dir(dir), nil
}

func (d Dir) file(name string) string { return filepath.Join(string(d), name) }

// Config is the path of the configuration.
func (d Dir) Config() string { return d.file(paths.SSHConfigFile) }

// ClientKey returns the public key of this user, as a line of authorized_keys. The key is
// made if there is none.
func (d Dir) ClientKey() (string, error) {
	key, err := sshkey.Ensure(d.file(paths.SSHClientKey))
	if err != nil {
		return "", err
	}
	return sshkey.Public(key)
}

// Write writes the configuration, and what it names. command is the program that connects to
// a VM, with its arguments; the name of the host is added.
func (d Dir) Write(command []string) error {
	public, err := d.ClientKey()
	if err != nil {
		return err
	}
	// With it beside the key, OpenSSH need not read the key to know whether to use it.
	if err := d.replace(paths.SSHPublicKey, []byte(public+"\n"), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(d.file(paths.SSHKnownHosts)); errors.Is(err, fs.ErrNotExist) {
		if err := d.replace(paths.SSHKnownHosts, nil, 0o644); err != nil {
			return err
		}
	}
	text, err := d.text(command)
	if err != nil {
		return err
	}
	return d.replace(paths.SSHConfigFile, []byte(text), 0o644)
}

func (d Dir) text(command []string) (string, error) {
	key, err1 := value(d.file(paths.SSHClientKey))
	known, err2 := value(d.file(paths.SSHKnownHosts))
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	return fmt.Sprintf(`# Written by "banger ssh-config", as often as that is run. It is for VMs only.
Host *%s
	User %s
	%s
	IdentityFile %s
	IdentitiesOnly yes
	AddKeysToAgent no
	PreferredAuthentications publickey
	UserKnownHostsFile %s
	GlobalKnownHostsFile none
	StrictHostKeyChecking yes
	HostKeyAlgorithms ssh-ed25519
	UpdateHostKeys no
	VerifyHostKeyDNS no
	CheckHostIP no
	CanonicalizeHostname no
	Compression no
`, Domain, guest.SSHDefaultUser, ProxyCommand(command), key, known), nil
}

// ProxyCommand is the setting of OpenSSH that has a program with its arguments, and the name of
// the host after them, connect.
func ProxyCommand(command []string) string {
	line := "ProxyCommand"
	for _, w := range command {
		line += " " + shellWord(w)
	}
	return line + " %h"
}

// shellWord quotes a word for the shell that OpenSSH has run the command, and for OpenSSH,
// which puts other things in the place of what begins with %.
func shellWord(w string) string {
	w = strings.ReplaceAll(w, "%", "%%")
	safe := w != "" && strings.IndexFunc(w, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-%+:=", r))
	}) < 0
	if safe {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

// value quotes a path in the way of the configuration.
func value(p string) (string, error) {
	if strings.ContainsAny(p, "\"\n\\") {
		return "", errdefs.Unsupported("the path %q cannot be written in a configuration of OpenSSH", p).
			WithHint("have XDG_CONFIG_HOME name a directory without quotes and backslashes")
	}
	return `"` + strings.ReplaceAll(p, "%", "%%") + `"`, nil
}

// Pin makes key the one host key of host. known says of a host whether there is such a VM
// still; it is asked only when the file changes, and those of no VM go.
func (d Dir) Pin(host, key string, known func(host string) bool) error {
	line := host + " " + key
	has := func() ([]string, bool, error) {
		lines, err := d.knownHosts()
		return lines, slices.Contains(lines, line), err
	}
	if _, ok, err := has(); ok || err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	lines, ok, err := has()
	if ok || err != nil {
		return err
	}
	lines = slices.DeleteFunc(lines, func(l string) bool {
		name, _, _ := strings.Cut(l, " ")
		return name == host || !known(name)
	})
	text := strings.Join(append(lines, line), "\n") + "\n"
	return d.replace(paths.SSHKnownHosts, []byte(text), 0o644)
}

// Forget removes the host keys of hosts that gone is true of.
func (d Dir) Forget(gone func(host string) bool) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	lines, err := d.knownHosts()
	if err != nil {
		return err
	}
	before := len(lines)
	lines = slices.DeleteFunc(lines, func(l string) bool {
		name, _, _ := strings.Cut(l, " ")
		return gone(name)
	})
	if len(lines) == before {
		return nil
	}
	text := ""
	for _, l := range lines {
		text += l + "\n"
	}
	return d.replace(paths.SSHKnownHosts, []byte(text), 0o644)
}

// knownHosts are the lines of the file; none where there is no file.
func (d Dir) knownHosts() ([]string, error) {
	text, err := readFile(d.file(paths.SSHKnownHosts), maxKnownHosts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool { return l == "" }), nil
}

// lock waits for others who change something in the directory.
func (d Dir) lock() (unlock func(), err error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, errdefs.Wrap(err, "lock %s", d)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, errdefs.Wrap(err, "lock %s", d)
	}
	return func() { _ = f.Close() }, nil
}

// replace writes a file as a whole, unless it is so already.
func (d Dir) replace(name string, text []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(d.file(name)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return replaceFile(d.file(name), text, mode, -1, -1)
}

// readFile reads a regular file of bounded size.
func readFile(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errdefs.Invalid("%s is no file", name)
	}
	if info.Size() > limit {
		return nil, errdefs.Invalid("%s has %d bytes; at most %d are read", name, info.Size(), limit)
	}
	return os.ReadFile(name)
}

// replaceFile puts a file with this content in the place of name, in one step. Ids of -1 are
// this process's own.
func replaceFile(name string, text []byte, mode fs.FileMode, uid, gid int) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), paths.StagingPrefix)
	if err != nil {
		return errdefs.Wrap(err, "write %s", name)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	if err == nil && (uid >= 0 || gid >= 0) {
		err = tmp.Chown(uid, gid)
	}
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	return errdefs.Wrap(err, "write %s", name)
}
