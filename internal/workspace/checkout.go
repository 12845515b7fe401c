package workspace

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/internal/errdefs"
)

// maxBlob bounds one file of a commit that is checked out, in bytes.
const maxBlob = 16 << 30

// checkout adds the files of the commit that is asked for, as the repository has them: no
// filter runs, so large files that are kept elsewhere are pointers.
func (s *survey) checkout(ctx context.Context, r *repo) error {
	base, err := r.commitOf(ctx, s.opts.From)
	if err != nil {
		return err
	}
	dir, err := s.tree.tempDir()
	if err != nil {
		return err
	}
	out, err := git(ctx, r.top, "ls-tree", "-r", "-t", "-z", "--full-tree", base)
	if err != nil {
		return gitErr(r.top, err)
	}
	if s.sent != nil && s.sent.Top() != nil && s.sent.Top().Base == base {
		return s.sameCheckout()
	}
	o := openObjects(ctx, r.top)
	defer o.close()
	now := time.Unix(time.Now().Unix(), 0)
	for n, line := range splitZ(out) {
		meta, name, ok := strings.Cut(line, "\t")
		f := strings.Fields(meta)
		if !ok || len(f) != 3 || !isOID(f[2]) || !filepath.IsLocal(name) || path.Clean(name) != name {
			return errdefs.Precondition("commit %s of %s has a file of the name %q", base[:12], r.top, name)
		}
		e := entry{name: name, time: now, uid: os.Geteuid(), gid: os.Getegid()}
		switch f[0] {
		case "040000", "160000":
			e.mode = fs.ModeDir | 0o755
		case "120000":
			_, target, ok, err := o.get(f[2], 4096)
			if err != nil || !ok {
				return cmpErr(err, missingObject(name))
			}
			file := filepath.Join(dir, strconv.Itoa(n))
			if err := os.Symlink(string(target), file); err != nil {
				return errdefs.Wrap(err, "check out %s", name)
			}
			e.path, e.mode = file, fs.ModeSymlink|0o777
		default:
			_, data, ok, err := o.get(f[2], maxBlob)
			if err != nil || !ok {
				return cmpErr(err, missingObject(name))
			}
			e.mode, e.size = 0o644, int64(len(data))
			if f[0] == "100755" {
				e.mode = 0o755
			}
			if e.size <= smallFile {
				e.data = append([]byte{}, data...)
				break
			}
			e.path = filepath.Join(dir, strconv.Itoa(n))
			if err := os.WriteFile(e.path, data, 0o600); err != nil {
				return errdefs.Wrap(err, "check out %s", name)
			}
		}
		s.entries = append(s.entries, e)
	}
	return nil
}

func missingObject(name string) error {
	return errdefs.Precondition("the repository does not have the content of %s", name).WithHint("fetch it first: see git fsck")
}

// sameCheckout adds what was sent of the same commit.
func (s *survey) sameCheckout() error {
	for name, e := range s.sent.Entries {
		if name != ".git" && !strings.HasPrefix(name, ".git/") {
			s.entries = append(s.entries, sentEntry(name, e))
		}
	}
	return nil
}
