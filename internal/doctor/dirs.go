package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// remote holds the file systems on which locks and shared memory maps, and so
// SQLite's write-ahead log, do not work as on a local disk.
var remote = map[int64]string{
	unix.NFS_SUPER_MAGIC:  "NFS",
	unix.SMB_SUPER_MAGIC:  "SMB",
	unix.SMB2_SUPER_MAGIC: "SMB",
	unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.V9FS_MAGIC:       "9p",
	unix.AFS_SUPER_MAGIC:  "AFS",
	unix.CODA_SUPER_MAGIC: "Coda",
	unix.CEPH_SUPER_MAGIC: "Ceph",
	0x0BD00BD0:            "Lustre",
	0x47504653:            "GPFS",
}

// elsewhere is the remedy for a place that does not serve.
const elsewhere = "choose a local directory of your own with " + paths.EnvStateDir

// StateDir checks the directory that holds everything banger keeps: it exists or
// can be made, belongs to this user, nobody else may look into it, and its file
// system is local.
func StateDir(dir string) Check {
	return Check{Name: "state directory", Run: func(context.Context) Result {
		existing, err := nearestExisting(dir)
		if err != nil {
			return FailErr(elsewhere, err)
		}
		var sfs unix.Statfs_t
		if err := unix.Statfs(existing, &sfs); err != nil {
			return Fail(elsewhere, "read file system of %s: %v", existing, err)
		}
		if kind, bad := remote[int64(sfs.Type)]; bad {
			return Fail(elsewhere, "%s is on %s, a network file system", existing, kind)
		}
		if existing != dir {
			if err := unix.Faccessat(unix.AT_FDCWD, existing, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
				return Fail(elsewhere, "%s does not exist and cannot be made in %s: %v", dir, existing, err)
			}
			return Pass("%s will be made", dir)
		}
		return checkOwn(dir)
	}}
}

func checkOwn(dir string) Result {
	info, err := os.Stat(dir)
	if err != nil {
		return FailErr(elsewhere, err)
	}
	if !info.IsDir() {
		return Fail("move the file away, or set BANGER_STATE_DIR", "%s is not a directory", dir)
	}
	st, _ := info.Sys().(*syscall.Stat_t) // it always is one on Linux
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return Fail(fmt.Sprintf("sudo chown -R %d %s, or set BANGER_STATE_DIR", uid, quote(dir)),
			"%s belongs to user %d, not to %d", dir, st.Uid, uid)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return Warn("chmod 700 "+quote(dir), "%s has mode %04o: other users can look into it", dir, perm)
	}
	return Pass("%s", dir)
}

// nearestExisting returns dir or the first of its parents that exists.
func nearestExisting(dir string) (string, error) {
	for p := dir; ; p = filepath.Dir(p) {
		_, err := os.Stat(p)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			return "", fmt.Errorf("look at %s: %w", p, err)
		}
	}
}

// DiskSpace checks the space left for this user where dir is, or would be made:
// less than warn bytes is a warning, less than fail bytes a failure.
func DiskSpace(dir string, warn, fail int64) Check {
	return Check{Name: "disk space", Run: func(context.Context) Result {
		existing, err := nearestExisting(dir)
		if err != nil {
			return FailErr(elsewhere, err)
		}
		var sfs unix.Statfs_t
		if err := unix.Statfs(existing, &sfs); err != nil {
			return Fail(elsewhere, "read file system of %s: %v", existing, err)
		}
		free := int64(sfs.Bavail) * sfs.Bsize
		const fix = "free some space, delete VMs and images not needed, or set BANGER_STATE_DIR to a directory elsewhere"
		detail := human(free) + " free in " + existing
		switch {
		case free < fail:
			return Fail(fix, "%s, need %s", detail, human(fail))
		case free < warn:
			return Warn(fix, "%s, little for more than one image", detail)
		}
		// A file system can run out of inodes first; some count none at all.
		if sfs.Files > 0 && sfs.Ffree < 1000 {
			return Warn(fix, "%s, but only %d inodes", detail, sfs.Ffree)
		}
		return Pass("%s", detail)
	}}
}

// human prints bytes for people, with one digit of fraction below ten.
func human(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if v < 10 && unit != "B" {
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// quote makes s safe to paste into a shell.
func quote(s string) string {
	plain := true
	for _, r := range s {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '/' || r == '.' || r == '-' || r == '_')
	}
	if plain {
		return s
	}
	out := "'"
	for _, r := range s {
		if r == '\'' {
			out += `'\''`
			continue
		}
		out += string(r)
	}
	return out + "'"
}
