package nat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// sysctlRoot is of the network namespace of the thread that looks.
const sysctlRoot = "/proc/sys/net"

// The switches that make this host forward packets, below sysctlRoot.
const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// Setting is a kernel switch that is not as guests need it, or one that is and that the
// kernel changes along with such a one: then what it was and what it is to be are equal.
type Setting = model.Setting

// MissingSettings returns the switches to set before this host forwards for guests, in
// the order to set them in; none when it does. A host that learns its IPv6 routes from a
// router's advertisements stops listening to them when it begins to forward; it is told
// to go on first.
func MissingSettings() ([]Setting, error) {
	was, err := readSetting(forward4)
	if err != nil {
		return nil, errdefs.Unsupported("read whether this host forwards: %w", err)
	}
	var list []Setting
	if was != "1" {
		if list, err = along("ipv4"); err != nil {
			return nil, err
		}
		list = append(list, Setting{Key: forward4, Was: was, Want: "1"})
	}
	was, err = readSetting(forward6)
	if err != nil || was != "0" {
		return list, nil // no IPv6 at all, or it forwards already
	}
	six, err := along("ipv6")
	if err != nil {
		return nil, err
	}
	list = append(list, six...)
	err = eachDevice("ipv6", "accept_ra", func(key, was string) {
		if was == "1" {
			list = append(list, Setting{Key: key, Was: was, Want: "2"})
		}
	})
	return append(list, Setting{Key: forward6, Was: was, Want: "1"}), err
}

// along returns what the kernel changes along with the switch of that IP version when
// it is put back, and what is to be as it was even so: devices that forward by
// themselves, and that no redirects are believed.
func along(version string) (list []Setting, err error) {
	err = eachDevice(version, "forwarding", func(key, was string) {
		if was == "1" {
			list = append(list, Setting{Key: key, Was: was, Want: was})
		}
	})
	const redirects = "ipv4/conf/all/accept_redirects"
	if was, err := readSetting(redirects); version == "ipv4" && err == nil && was == "0" {
		list = append(list, Setting{Key: redirects, Was: was, Want: was})
	}
	return list, err
}

// eachDevice reads a switch of every device, and of those to come ("default"). "all" is
// none: it is the switch of the host, or read by nobody.
func eachDevice(version, name string, fn func(key, was string)) error {
	files, err := filepath.Glob(filepath.Join(sysctlRoot, version, "conf/*", name))
	if err != nil {
		return fmt.Errorf("list %s settings: %w", version, err)
	}
	for _, file := range files {
		key, err := filepath.Rel(sysctlRoot, file)
		if err != nil {
			return fmt.Errorf("name %s setting %s: %w", version, file, err)
		}
		if was, err := readSetting(key); err == nil && filepath.Base(filepath.Dir(key)) != "all" {
			fn(key, was)
		}
	}
	return nil
}

// Apply sets the switches.
func Apply(list []Setting) error {
	for _, s := range list {
		if err := writeSetting(s.Key, s.Want); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set net/%s: %w", s.Key, err)
		}
	}
	return nil
}

// PutBack restores switches in reverse, and then what the kernel has changed along with
// them. One that somebody has changed since is left as it is, and so is one whose device
// is gone. It can be repeated: where a switch is back already, what goes along with it
// may not be.
func PutBack(list []Setting) error {
	var errs []error
	changed := map[string]bool{} // by somebody
	for _, s := range list {
		now, err := readSetting(s.Key)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("put back net/%s: %w", s.Key, err))
			changed[s.Key] = true
		case err != nil:
			changed[s.Key] = true
		default:
			changed[s.Key] = now != s.Want
		}
	}
	back := func(s Setting) {
		if err := writeSetting(s.Key, s.Was); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("put back net/%s: %w", s.Key, err))
		}
	}
	for _, s := range slices.Backward(list) {
		if s.Was != s.Want && !changed[s.Key] {
			back(s)
		}
	}
	for _, s := range list {
		if s.Was == s.Want && (!changed[s.Key] || changed[forwarding(s.Key)]) {
			back(s)
		}
	}
	return errors.Join(errs...)
}

// forwarding is the switch that a switch goes along with.
func forwarding(key string) string {
	if strings.HasPrefix(key, "ipv4/") {
		return forward4
	}
	return forward6
}

// Merge adds settings to those remembered from before, whose first value counts.
func Merge(remembered, list []Setting) []Setting {
	merged := slices.Clone(remembered)
	for _, s := range list {
		if !slices.ContainsFunc(merged, func(m Setting) bool { return m.Key == s.Key }) {
			merged = append(merged, s)
		}
	}
	return merged
}

func readSetting(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlRoot, key))
	return strings.TrimSpace(string(b)), err
}

func writeSetting(key, value string) error {
	return os.WriteFile(filepath.Join(sysctlRoot, key), []byte(value), 0)
}
