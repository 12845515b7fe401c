package accel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cacheEntry is the content of the cache file.
type cacheEntry struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

// hostKey names everything a verdict depends on: this boot, the device node (of which
// a reloaded module makes another) with its owner and mode, and who asks and whether
// they may open it, by an ACL perhaps. When the node was changed last says nothing: KVM
// announces every VM that comes or goes, and udev then sets owner and mode anew.
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
		may := unix.Faccessat(unix.AT_FDCWD, device, unix.R_OK|unix.W_OK, unix.AT_EACCESS) == nil
		node = fmt.Sprintf("%x:%d:%d:%o:%d:%d:%t", st.Rdev, st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, may)
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("stat %s: %w", device, err)
	}
	return fmt.Sprintf("2 %s %s %s %d:%d:%v", strings.TrimSpace(string(boot)), device, node,
		os.Geteuid(), os.Getegid(), groups), nil
}

// doubtTime is how long it is believed that guests are emulated when that came without
// a measurement: where the host is a guest itself, it cannot tell that from being busy.
const doubtTime = 10 * time.Minute

// readCache returns the verdict kept for key. Whatever is wrong with the file,
// probing again is the remedy, so it has no error.
func readCache(file, key string) (Verdict, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Verdict{}, false
	}
	st, err := os.Stat(file)
	if err != nil {
		return Verdict{}, false
	}
	var e cacheEntry
	if json.Unmarshal(b, &e) != nil || e.Key != key || e.Verdict.Kind == "" {
		return Verdict{}, false
	}
	if e.Verdict.Kind == KindEmulated && e.Verdict.Rounds == 0 && time.Since(st.ModTime()) > doubtTime {
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
