package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// crash writes to a mounted filesystem what makes a journal worth its name, and returns a
// copy of the disk as a crash would leave it.
func crash(t *testing.T, path string) (copied string) {
	t.Helper()
	copied = filepath.Join(t.TempDir(), "copy")
	mounted(t, path, 0, func(dir string, _ *os.File) error {
		p := func(name string) string { return filepath.Join(dir, name) }
		var errs []error
		do := func(err error) { errs = append(errs, err) }
		fill := func(name string, files int) {
			do(os.MkdirAll(p(name), 0o755))
			for i := range files {
				do(os.WriteFile(p(fmt.Sprintf("%s/%03d-%s", name, i, strings.Repeat("n", i%100))), pattern(i*37, byte(i)), 0o640))
			}
		}
		fill("first", 400)
		fill("gone", 300)
		// Blocks that the log would mistake for its own.
		do(os.WriteFile(p("escaped"), bytes.Repeat([]byte("\xc0\x3b\x39\x98\x00\x00\x00\x02"), 4096), 0o600))
		unix.Sync()
		do(os.RemoveAll(p("gone"))) // whose directory is other things then
		do(os.Rename(p("first"), p("renamed")))
		unix.Sync()
		fill("later", 200)
		do(os.Truncate(p("renamed/399-"+strings.Repeat("n", 99)), 100))
		do(os.Link(p("escaped"), p("later/link")))
		do(unix.Setxattr(p("escaped"), "user.note", []byte("kept"), 0))
		do(os.Chmod(p("later"), 0o1700))
		// It is open to the end, and has no name.
		f, err := os.Create(p("orphan"))
		if err == nil {
			defer f.Close()
			_, err = f.Write(make([]byte, 100_000))
		}
		do(err)
		do(os.Remove(p("orphan")))
		unix.Sync()
		disk, err := os.ReadFile(path)
		do(err)
		do(os.WriteFile(copied, disk, 0o600))
		return errors.Join(errs...)
	})
	return copied
}

// A disk that was in use is read as e2fsck makes it.
func TestReplay(t *testing.T) {
	for name, args := range map[string][]string{
		"ours":                 nil,
		"mke2fs":               {},
		"1k blocks":            {"-b", "1024", "-J", "size=8"},
		"32 bits":              {"-O", "^64bit"},
		"no checksums":         {"-O", "^metadata_csum"},
		"no checksums, 32, 1k": {"-b", "1024", "-O", "^metadata_csum,^64bit"},
		"32 bit, pointers":     {"-O", "^extents,^64bit,^metadata_csum"},
		"a short log":          {"-b", "1024", "-J", "size=1"},
		"content, too":         {"-J", "size=16"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if args == nil {
				m := begin(t, fixed(64<<20))
				m.done(t, dir())
				path = m.path
			} else {
				tool(t, "mke2fs", append([]string{"-q", "-F", "-t", "ext4"}, append(args, path, "64M")...)...)
				if name == "content, too" {
					tool(t, "tune2fs", "-o", "journal_data", path)
				}
			}
			copied := crash(t, path)
			f, err := openDisk(t, copied)
			if err != nil {
				t.Fatal(err)
			}
			d, ok := f.r.(*replayed)
			if !ok || len(d.found) < 10 {
				t.Fatalf("nothing of it is in the journal: %v", f.r)
			}
			escaped, revoked := 0, strings.Count(tool(t, "debugfs", "-R", "logdump -a", copied), "revoke")
			for _, l := range d.found {
				if l.escaped {
					escaped++
				}
			}
			t.Logf("%d blocks are in the journal, %d of them escaped; %d lists of revoked ones", len(d.found), escaped, revoked)
			if name == "content, too" && escaped == 0 {
				t.Error("none is escaped")
			}
			have, links := read(t, copied)
			judged, err := os.ReadFile(copied)
			if err != nil {
				t.Fatal(err)
			}
			before := filepath.Join(t.TempDir(), "judged")
			if err := os.WriteFile(before, judged, 0o600); err != nil {
				t.Fatal(err)
			}
			fsckReplays(t, before)
			want, wantLinks := read(t, before)
			have.compare(t, want)
			if !maps.Equal(links, wantLinks) {
				t.Errorf("links are %q, want %q", links, wantLinks)
			}
			if len(want) < 600 || want["later"] == "" || want["gone"] != "" {
				t.Errorf("e2fsck finds %d names", len(want))
			}
		})
	}
}

// fsckReplays has e2fsck replay a disk's journal.
func fsckReplays(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fy", path).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if code := new(exec.ExitError); err != nil && (!errors.As(err, &code) || code.ExitCode() > 1) {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
}

// inJournal are the offsets of the blocks of a disk's log, from its head on.
func inJournal(t testing.TB, disk []byte) (j *journal, at []int64) {
	t.Helper()
	p := bytes.Clone(disk)
	le.PutUint32(p[superAt+0x60:], le.Uint32(p[superAt+0x60:])&^hasRecover)
	sealSuper(p[superAt:][:superLen], 0)
	f, err := Open(bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.loadInode(journalIno)
	if err != nil {
		t.Fatal(err)
	}
	j = &journal{f: f}
	err = f.extents(n, func(e extent) error {
		j.parts = append(j.parts, e)
		for i := range e.n {
			at = append(at, int64(e.start+uint64(i))*f.size)
		}
		return nil
	})
	if err == nil {
		_, _, err = j.open(uint32(len(at)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return j, at
}

func crashed(t *testing.T) []byte {
	t.Helper()
	m := begin(t, fixed(64<<20))
	m.done(t, dir())
	disk, err := os.ReadFile(crash(t, m.path))
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// What does not hold in a journal refuses the disk.
func TestReplayRefused(t *testing.T) {
	whole := crashed(t)
	j, at := inJournal(t, whole)
	// reseal sets the checksum of the head.
	reseal := func(disk []byte) {
		p := disk[at[0]:][:superLen]
		be.PutUint32(p[0xfc:], sumWithout(^uint32(0), p, 0xfc))
	}
	head := func(field int, change func(uint32) uint32) func([]byte) {
		return func(disk []byte) {
			p := disk[at[0]+int64(field):]
			be.PutUint32(p, change(be.Uint32(p)))
			reseal(disk)
		}
	}
	constant := func(n uint32) func(uint32) uint32 { return func(uint32) uint32 { return n } }
	start := be.Uint32(whole[at[0]+0x1c:])
	kind := func(disk []byte, kind uint32) int64 { // the first such block of the log
		for i := start; ; i++ {
			if p := disk[at[i]:]; be.Uint32(p) == journalMagic && be.Uint32(p[4:]) == kind {
				return at[i]
			}
		}
	}
	for name, c := range map[string]struct {
		change func(disk []byte)
		class  error
		says   string
	}{
		"no head":          {func(d []byte) { clear(d[at[0]:][:16]) }, errdefs.ErrInvalidArgument, "head"},
		"its checksum":     {func(d []byte) { d[at[0]+0x44]++ }, errdefs.ErrInvalidArgument, "checksum of its head"},
		"other blocks":     {head(0x0c, constant(1024)), errdefs.ErrInvalidArgument, "cannot be"},
		"too long":         {head(0x10, constant(uint32(len(at))+1)), errdefs.ErrInvalidArgument, "cannot be"},
		"no first":         {head(0x14, constant(0)), errdefs.ErrInvalidArgument, "cannot be"},
		"begins behind":    {head(0x1c, constant(uint32(len(at)))), errdefs.ErrInvalidArgument, "cannot be"},
		"errors":           {head(0x20, constant(5)), errdefs.ErrFailedPrecondition, "errors"},
		"fast commits":     {head(0x28, func(v uint32) uint32 { return v | 0x20 }), errdefs.ErrFailedPrecondition, "not known"},
		"older checksums":  {head(0x24, constant(1)), errdefs.ErrFailedPrecondition, "not known"},
		"two kinds":        {head(0x28, func(v uint32) uint32 { return v | logSums2 }), errdefs.ErrInvalidArgument, "two kinds"},
		"a descriptor":     {func(d []byte) { d[kind(d, logDescriptor)+int64(j.f.size)-5]++ }, errdefs.ErrInvalidArgument, "descriptor"},
		"a block":          {func(d []byte) { d[kind(d, logDescriptor)+int64(j.f.size)+100]++ }, errdefs.ErrInvalidArgument, "block in transaction"},
		"an end":           {func(d []byte) { d[kind(d, logCommit)+0x30]++ }, errdefs.ErrInvalidArgument, "end of transaction"},
		"revoked":          {func(d []byte) { d[kind(d, logRevoke)+0x10]++ }, errdefs.ErrInvalidArgument, "revoked"},
		"journal is other": {func(d []byte) { super := d[superAt:][:superLen]; le.PutUint32(super[0xe0:], 12); sealSuper(super, 0) }, errdefs.ErrFailedPrecondition, "elsewhere"},
	} {
		disk := bytes.Clone(whole)
		c.change(disk)
		_, err := Open(bytes.NewReader(disk), int64(len(disk)))
		if !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if c.class == errdefs.ErrFailedPrecondition && errdefs.HintOf(err) == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}

// A journal that ends anywhere is one of a machine that ended earlier: that is readable, or
// refused.
func TestReplayDamaged(t *testing.T) {
	whole := crashed(t)
	_, at := inJournal(t, whole)
	random := rand.New(rand.NewPCG(3, 4))
	refused := 0
	const tries = 150
	disk := make([]byte, len(whole))
	for range tries {
		copy(disk, whole)
		for range 1 + random.IntN(3) {
			block := at[random.IntN(min(len(at), 200))]
			disk[block+int64(random.IntN(64))] ^= byte(1 << random.IntN(8))
		}
		if bounded(t, disk) != nil {
			refused++
		}
	}
	t.Logf("%d of %d refused", refused, tries)
	if refused < 20 {
		t.Errorf("%d of %d refused", refused, tries)
	}
}
