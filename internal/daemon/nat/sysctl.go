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

// Setting is a kernel switch that is not as guests need it.
type Setting = model.Setting

// MissingSettings returns the switches to set before this host forwards for guests, in the
// order to set them in. A host that learns its IPv6 routes from a router's
// advertisements stops listening to them when it begins to forward; it is told to
// go on first.
func MissingSettings() ([]Setting, error) {
	var list []Setting
	was, err := readSetting(forward4)
	if err != nil {
		return nil, errdefs.Unsupported("read whether this host forwards: %w", err)
	}
	if was != "1" {
		list = append(list, Setting{Key: forward4, Was: was, Want: "1"})
	}
	was, err = readSetting(forward6)
	if err != nil || was != "0" {
		return list, nil // no IPv6 at all, or it forwards already
	}
	files, err := filepath.Glob(filepath.Join(sysctlRoot, "ipv6/conf/*/accept_ra"))
	if err != nil {
		return nil, fmt.Errorf("list IPv6 settings: %w", err)
	}
	for _, file := range files {
		key, err := filepath.Rel(sysctlRoot, file)
		if err != nil {
			return nil, fmt.Errorf("name IPv6 setting %s: %w", file, err)
		}
		// "all" is read by nobody for this switch.
		if was, err := readSetting(key); err == nil && was == "1" && key != "ipv6/conf/all/accept_ra" {
			list = append(list, Setting{Key: key, Was: was, Want: "2"})
		}
	}
	return append(list, Setting{Key: forward6, Was: was, Want: "1"}), nil
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

// PutBack restores switches in reverse. One that somebody has changed since is left
// as it is, and so is one whose device is gone.
func PutBack(list []Setting) error {
	var errs []error
	for _, s := range slices.Backward(list) {
		now, err := readSetting(s.Key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && now != s.Want {
			continue
		}
		if err == nil {
			err = writeSetting(s.Key, s.Was)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put back net/%s: %w", s.Key, err))
		}
	}
	return errors.Join(errs...)
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
