package mount_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/share"
)

// TestOperations does the same random things in a directory of the guest's and in one of
// this host's own file system, and compares each step: its error, and what is there.
func TestOperations(t *testing.T) {
	r := start(t, share.Options{Chown: true})
	rng := seed(t)
	plain := t.TempDir()
	var log []string
	for step := range 4000 {
		what, do := operation(rng)
		log = append(log, what)
		got, want := do(r.guest), do(plain)
		if got != want {
			t.Fatalf("step %d: %s: %s, and where nothing lies between: %s\nbefore that:\n%s", step, what, got, want, strings.Join(log[max(0, len(log)-12):], "\n"))
		}
		if step%25 == 0 {
			compare(t, step, r.guest, plain)
		}
	}
	compare(t, -1, r.guest, plain)
	compare(t, -2, r.host, plain)
}

// operation is something to do below a directory. It returns what came of it.
func operation(rng *rand.Rand) (what string, do func(dir string) string) {
	name := func() string {
		n := []string{"a", "b", "c", "dir", "other dir", "\xff\xfe"}[rng.IntN(6)]
		if rng.IntN(2) == 0 {
			return n
		}
		return []string{"dir", "other dir", "a", "c"}[rng.IntN(4)] + "/" + n
	}
	one, two := name(), name()
	n := rng.IntN(20_000)
	path := func(f func(p string) error) func(string) string {
		return func(dir string) string { return fmt.Sprint(f(filepath.Join(dir, one))) }
	}
	paths := func(f func(a, b string) error) func(string) string {
		return func(dir string) string { return fmt.Sprint(f(filepath.Join(dir, one), filepath.Join(dir, two))) }
	}
	switch k := rng.IntN(20); k {
	case 0, 1, 2:
		return fmt.Sprintf("write %d to %q", n, one), path(func(p string) error { return write(p, slices.Repeat([]byte{byte(n)}, n), unix.O_TRUNC) })
	case 3:
		return fmt.Sprintf("append %d to %q", n, one), path(func(p string) error { return write(p, slices.Repeat([]byte{byte(n)}, n), unix.O_APPEND) })
	case 4:
		return fmt.Sprintf("make %q new", one), path(func(p string) error { return write(p, nil, unix.O_EXCL) })
	case 5, 6:
		return fmt.Sprintf("mkdir %q", one), path(func(p string) error { return unix.Mkdir(p, 0o755) })
	case 7:
		return fmt.Sprintf("rmdir %q", one), path(unix.Rmdir)
	case 8, 9:
		return fmt.Sprintf("unlink %q", one), path(unix.Unlink)
	case 10, 11:
		return fmt.Sprintf("rename %q %q", one, two), paths(unix.Rename)
	case 12:
		flags := []uint{unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[n%2]
		return fmt.Sprintf("renameat2 %q %q %d", one, two, flags), paths(func(a, b string) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) })
	case 13:
		return fmt.Sprintf("link %q %q", one, two), paths(unix.Link)
	case 14:
		return fmt.Sprintf("symlink to %q at %q", two, one), path(func(p string) error { return unix.Symlink(two, p) })
	case 15:
		mode := uint32(n) & 0o777
		return fmt.Sprintf("chmod %o %q", mode, one), path(func(p string) error { return unix.Chmod(p, mode|0o300) })
	case 16:
		return fmt.Sprintf("truncate %q to %d", one, n), path(func(p string) error { return unix.Truncate(p, int64(n)) })
	case 17:
		times := []unix.Timespec{{Sec: int64(n), Nsec: 5}, {Sec: int64(n) * 3, Nsec: 7}}
		return fmt.Sprintf("times of %q", one), path(func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, times, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 18:
		return fmt.Sprintf("mkfifo %q", one), path(func(p string) error { return unix.Mkfifo(p, 0o640) })
	default:
		return fmt.Sprintf("setxattr %q", one), path(func(p string) error { return unix.Lsetxattr(p, "user.x", []byte(two), 0) })
	}
}

// compare looks at two trees: names, kinds, modes, owners, links, sizes, content, and the
// times that were set.
func compare(t *testing.T, step int, a, b string) {
	t.Helper()
	one, two := describe(t, a, ""), describe(t, b, "")
	if one != two {
		t.Fatalf("step %d:\n%s\nand where nothing lies between:\n%s", step, one, two)
	}
}

func describe(t *testing.T, root, dir string) string {
	t.Helper()
	all := names(t, filepath.Join(root, dir))
	slices.Sort(all)
	var out strings.Builder
	for _, name := range all {
		rel := filepath.Join(dir, name)
		path := filepath.Join(root, rel)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%q %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			fmt.Fprintf(&out, " links %d\n%s", st.Nlink, describe(t, root, rel))
			continue
		case unix.S_IFREG:
			data, err := read(path)
			if err != nil && os.Getuid() == 0 {
				t.Fatal(err)
			}
			value := make([]byte, 100)
			n, _ := unix.Lgetxattr(path, "user.x", value)
			fmt.Fprintf(&out, " links %d size %d %x %q", st.Nlink, st.Size, sum(data), value[:max(n, 0)])
		case unix.S_IFLNK:
			buf := make([]byte, 4096)
			n, err := unix.Readlink(path, buf)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, " to %q", buf[:n])
		}
		if st.Mtim.Nsec == 7 {
			fmt.Fprintf(&out, " of %d", st.Mtim.Sec)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func sum(data []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}
