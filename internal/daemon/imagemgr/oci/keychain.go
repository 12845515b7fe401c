package oci

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Credentials are what a registry wants to know; zero where it has to do without.
type Credentials struct {
	Username, Password string
	IdentityToken      string // exchanged for others
	RegistryToken      string // shown as it is
}

// Keychain knows credentials.
type Keychain interface {
	// Credentials returns those for a repository of a registry, as in references
	// (docker.io, library/debian); none and no error where there are none.
	Credentials(ctx context.Context, host, repository string) (Credentials, error)
}

// Files is a Keychain of files as `docker login` and `podman login` write them. The
// first that has credentials counts; those that do not exist do not. Where a file names
// a credential helper, that is run, through sysexec and not by the library that Docker
// has for it: that one knows neither a deadline nor an end.
type Files struct {
	Paths []string
	Env   []string // of the helpers; nil: of this process
}

const (
	maxAuthFile   = 1 << 20
	maxHelper     = 64 << 10
	helperTimeout = 30 * time.Second
)

// UserFiles returns the files of a user whose environment getenv reads: Podman's, then
// Docker's.
func UserFiles(getenv func(string) string) Files {
	var paths []string
	add := func(dir string, rest ...string) {
		if filepath.IsAbs(dir) {
			paths = append(paths, filepath.Join(append([]string{dir}, rest...)...))
		}
	}
	add(getenv("REGISTRY_AUTH_FILE"))
	add(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if getenv("XDG_CONFIG_HOME") != "" {
		add(getenv("XDG_CONFIG_HOME"), "containers", "auth.json")
	} else {
		add(getenv("HOME"), ".config", "containers", "auth.json")
	}
	if getenv("DOCKER_CONFIG") != "" {
		add(getenv("DOCKER_CONFIG"), "config.json")
	} else {
		add(getenv("HOME"), ".docker", "config.json")
	}
	return Files{Paths: paths}
}

// authFile is what we read of such a file.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Credentials implements Keychain.
func (f Files) Credentials(ctx context.Context, host, repository string) (Credentials, error) {
	for _, path := range f.Paths {
		file, err := readAuthFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return Credentials{}, err
		}
		c, err := f.lookup(ctx, file, host, repository)
		if err != nil {
			return Credentials{}, errdefs.Wrap(err, "credentials of %s in %s", host, path)
		}
		if c != (Credentials{}) {
			return c, nil
		}
	}
	return Credentials{}, nil
}

func readAuthFile(path string) (authFile, error) {
	var file authFile
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // whatever lies there
	if err != nil {
		return file, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
	if err == nil && len(data) > maxAuthFile {
		err = fmt.Errorf("more than %d bytes", maxAuthFile)
	}
	if err == nil && len(data) > 0 { // which podman logout leaves empty
		if err = checkJSON(data, maxAuthFile); err == nil {
			err = json.Unmarshal(data, &file)
		}
	}
	if err != nil {
		return file, errdefs.Precondition("read %s: %w", path, err).WithHint("repair or remove it, and log in again")
	}
	return file, nil
}

func (f Files) lookup(ctx context.Context, file authFile, host, repository string) (Credentials, error) {
	for _, key := range keysFor(host, repository) {
		if its := spellings(file.CredHelpers, key); len(its) > 0 {
			return f.ask(ctx, file.CredHelpers[its[0]], host)
		}
	}
	if file.CredsStore != "" {
		if c, err := f.ask(ctx, file.CredsStore, host); err != nil || c != (Credentials{}) {
			return c, err
		}
	}
	for _, key := range keysFor(host, repository) {
		for _, its := range spellings(file.Auths, key) {
			if c, err := file.Auths[its].credentials(); err != nil || c != (Credentials{}) {
				return c, err
			}
		}
	}
	return Credentials{}, nil
}

// keysFor returns what credentials may be kept under, the narrowest first.
func keysFor(host, repository string) []string {
	var keys []string
	for path := repository; path != ""; {
		keys = append(keys, host+"/"+path)
		i := strings.LastIndexByte(path, '/')
		path = path[:max(i, 0)]
	}
	return append(keys, host)
}

// spellings returns the keys of entries that mean key, always in the same order: files
// that several tools have written have more than one.
func spellings[T any](entries map[string]T, key string) []string {
	var all []string
	for its := range entries {
		if plainKey(its) == key {
			all = append(all, its)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return all
}

// plainKey is a key of such a file without what older versions add.
func plainKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
	if host, rest, found := strings.Cut(key, "/"); host == "index.docker.io" || host == "registry-1.docker.io" {
		key = dockerHub
		if found {
			key += "/" + rest
		}
	}
	return key
}

func (e authEntry) credentials() (Credentials, error) {
	c := Credentials{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(e.Auth)
	user, password, found := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	if err != nil || !found {
		return Credentials{}, errors.New("they are not USER:PASSWORD in base64") // without a word of them
	}
	c.Username = user
	if c.IdentityToken == "" {
		c.Password = password
	}
	return c, nil
}

var helperExp = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// ask runs a credential helper.
func (f Files) ask(ctx context.Context, helper, host string) (Credentials, error) {
	if !helperExp.MatchString(helper) {
		return Credentials{}, errdefs.Invalid("%q is no name of a credential helper", helper)
	}
	server := host
	if host == dockerHub {
		server = "https://index.docker.io/v1/" // the key that Docker has always used
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	out, err := sysexec.Output(ctx, sysexec.Cmd{
		Path: "docker-credential-" + helper, Args: []string{"get"}, Stdin: strings.NewReader(server), Env: f.Env,
	})
	if err != nil {
		if strings.Contains(string(out), "credentials not found") {
			return Credentials{}, nil
		}
		return Credentials{}, err
	}
	var answer struct{ Username, Secret string }
	if len(out) > maxHelper || json.Unmarshal(out, &answer) != nil {
		return Credentials{}, errdefs.Precondition("docker-credential-%s has not answered as a credential helper does", helper)
	}
	if answer.Username == "<token>" {
		return Credentials{IdentityToken: answer.Secret}, nil
	}
	return Credentials{Username: answer.Username, Password: answer.Secret}, nil
}
