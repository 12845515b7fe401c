// Package sshkey keeps an SSH key in a file, in the format of OpenSSH, so that its programs
// can use and judge it.
package sshkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"banger/internal/errdefs"
)

// maxFile bounds what is read of a key, in bytes.
const maxFile = 64 << 10

// Ensure returns the ed25519 key in file, and makes it if there is none, with mode 0600. Of
// several who make it at once all get the same.
func Ensure(file string) (ed25519.PrivateKey, error) {
	key, err := read(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, errdefs.Wrap(err, "make the SSH key %s", file)
	}
	return read(file)
}

func read(file string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, errdefs.Wrap(err, "read the SSH key %s", file)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, unusable(file, errors.New("it is no file of a key"))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errdefs.Wrap(err, "read the SSH key %s", file)
	}
	parsed, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		return nil, unusable(file, err)
	}
	key, ok := parsed.(*ed25519.PrivateKey)
	if !ok {
		return nil, unusable(file, errors.New("it is of another type than ed25519"))
	}
	return *key, nil
}

func unusable(file string, err error) error {
	return errdefs.Precondition("the SSH key %s cannot be used: %w", file, err).
		WithHint("remove it: the next who needs it makes a new one")
}

// create writes a new key under a name of its own first, so that nobody sees half of it.
func create(file string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".staging-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), file)
}

// Public returns the public half of a key as known_hosts and authorized_keys have it: type
// and base64.
func Public(key ed25519.PrivateKey) (string, error) {
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return "", errdefs.Wrap(err, "encode a public key")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))), nil
}
