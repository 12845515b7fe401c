package accel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cacheEntry is the content of the cache file.
type cacheEntry struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

// hostKey names everything a verdict depends on: this boot, the device node with
// its owner, mode and time of last change (an ACL or a reloaded module changes
// that), and who asks.
func hostKey(device string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		return "", fmt.Errorf("read own groups: %w", err)
	}
	node := "absent"
	var st unix.Stat_t
	switch err := unix.Stat(device, &st); {
	case err == nil:
		node = fmt.Sprintf("%x:%d:%d:%o:%d:%d:%d.%d", st.Rdev, st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, st.Ctim.Sec, st.Ctim.Nsec)
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("stat %s: %w", device, err)
	}
	return fmt.Sprintf("1 %s %s %s %d:%d:%v", strings.TrimSpace(string(boot)), device, node,
		os.Geteuid(), os.Getegid(), groups), nil
}

// readCache returns the verdict kept for key. Whatever is wrong with the file,
// probing again is the remedy, so it has no error.
func readCache(file, key string) (Verdict, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Verdict{}, false
	}
	var e cacheEntry
	if json.Unmarshal(b, &e) != nil || e.Key != key || e.Verdict.Kind == "" {
		return Verdict{}, false
	}
	e.Verdict.Cached = true
	return e.Verdict, true
}

// writeCache replaces the file in one step: two daemons may probe at once.
func writeCache(file, key string, v Verdict) error {
	b, err := json.MarshalIndent(cacheEntry{Key: key, Verdict: v}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
