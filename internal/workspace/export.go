package workspace

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
	"banger/internal/sysexec"
)

// Export makes of what was taken what a host can use. It works in a repository of its
// own, which borrows objects from the host's and gives none back.
type Export struct {
	t    *Taken
	host *repo // nil: the tree is in no repository
	dir  string
	base string
	head string // commit that is checked out in the guest; empty: none, or none that can be had
	name string // of the VM, for people

	work string // commit of what is in the workspace; made by snapshot
}

// Export begins an export; name is the VM's.
func (t *Taken) Export(ctx context.Context, name string) (*Export, error) {
	x := &Export{t: t, name: name, dir: filepath.Join(t.dir, "export.git")}
	format := "sha1"
	if t.sent.Git {
		host, err := findRepo(ctx, t.sent.Root)
		if err != nil {
			return nil, err
		}
		if host == nil || host.prefix != "" {
			return nil, errdefs.Precondition("%s is no git repository any more", t.sent.Root).WithHint("copy files out instead: banger cp VM:PATH DIR")
		}
		if foreign, err := host.foreign(ctx); err != nil || foreign {
			return nil, cmpErr(err, errdefs.Precondition("the .git of %s leads to %s, which does not name this directory in turn", host.top, host.common))
		}
		x.host = host
		if top := t.sent.Top(); top != nil {
			format, x.base = top.Format, top.Base
		}
	}
	if format != "sha1" && format != "sha256" {
		return nil, errdefs.Unsupported("a repository of format %q", format)
	}
	if err := x.init(ctx, x.dir, format); err != nil {
		return nil, err
	}
	if x.base != "" {
		if _, err := x.git(ctx, "cat-file", "-e", x.base+"^{commit}"); err != nil {
			return nil, errdefs.Precondition("the repository has lost commit %s, which was sent", x.base).WithHint("copy files out instead: banger cp VM:PATH DIR")
		}
	}
	return x, x.takeCommits(ctx)
}

// init makes a bare repository that borrows from the host's.
func (x *Export) init(ctx context.Context, dir, format string) error {
	if _, err := gitWith(ctx, x.t.dir, nil, nil, "init", "-q", "--bare", "--template=", "--object-format="+format, dir); err != nil {
		return gitErr(dir, err)
	}
	if x.host == nil {
		return nil
	}
	objects := filepath.Join(x.host.common, "objects")
	if strings.ContainsAny(objects, "\n\"") {
		return errdefs.Unsupported("the path %q of the repository has a line break or a quote in it", objects)
	}
	err := os.MkdirAll(filepath.Join(dir, "objects", "info"), 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "objects", "info", "alternates"), []byte(objects+"\n"), 0o600)
	}
	return errdefs.Wrap(err, "make a repository to work in")
}

// git runs git in the export's own repository.
func (x *Export) git(ctx context.Context, args ...string) ([]byte, error) {
	return gitWith(ctx, x.dir, ownRepo, nil, args...)
}

// ownRepo keeps git from looking further than the directory it runs in, and makes it
// reject what could harm whoever checks it out.
var ownRepo = []string{
	"GIT_DIR=.", "GIT_CONFIG_COUNT=4", "GIT_CONFIG_KEY_0=transfer.fsckObjects", "GIT_CONFIG_VALUE_0=true",
	"GIT_CONFIG_KEY_1=gc.auto", "GIT_CONFIG_VALUE_1=0", "GIT_CONFIG_KEY_2=core.attributesFile", "GIT_CONFIG_VALUE_2=/dev/null",
	"GIT_CONFIG_KEY_3=safe.directory", "GIT_CONFIG_VALUE_3=*",
}

var (
	looseDir  = regexp.MustCompile(`^[0-9a-f]{2}$`).MatchString
	looseFile = regexp.MustCompile(`^([0-9a-f]{38}|[0-9a-f]{62})$`).MatchString
	packFile  = regexp.MustCompile(`^pack-[0-9a-f]{40,64}\.pack$`).MatchString
	refName   = regexp.MustCompile(`^refs/heads/[^\x00-\x20~^:?*\[\\\x7f]+$`).MatchString
)

// takeCommits takes in what the guest has of objects, and finds the commit it is at.
// Indexes of packs are made anew, and what an object is called is checked when it goes to
// the host's repository: nothing relies on it before.
func (x *Export) takeCommits(ctx context.Context) error {
	objects := filepath.Join(x.t.dir, takenGit, "objects")
	children, err := os.ReadDir(objects)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errdefs.Wrap(err, "read what came from the VM")
	}
	for _, c := range children {
		if !c.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(objects, c.Name()))
		if err != nil {
			return errdefs.Wrap(err, "read what came from the VM")
		}
		for _, f := range files {
			from := filepath.Join(objects, c.Name(), f.Name())
			switch {
			case !f.Type().IsRegular():
			case looseDir(c.Name()) && looseFile(f.Name()):
				to := filepath.Join(x.dir, "objects", c.Name())
				err = os.MkdirAll(to, 0o700)
				err = errors.Join(err, os.Rename(from, filepath.Join(to, f.Name())))
			case c.Name() == "pack" && packFile(f.Name()):
				err = x.takePack(ctx, from)
			}
			if err != nil {
				return err
			}
		}
	}
	x.head = x.guestHead()
	if x.head == "" {
		return nil
	}
	if _, err := x.git(ctx, "rev-list", "--quiet", x.head, "--not", x.orEmpty(x.base)); err != nil {
		return errdefs.Precondition("the commits of the VM are not whole: %w", err).
			WithHint("see what `git fsck` says in the VM, or export without them: remove its .git")
	}
	return nil
}

// orEmpty is a commit, or what stands for none on a command line after --not.
func (x *Export) orEmpty(commit string) string {
	if commit == "" {
		return "--all" // of which there are none in the export's repository
	}
	return commit
}

func (x *Export) takePack(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return errdefs.Wrap(err, "read a pack from the VM")
	}
	defer func() { _ = f.Close() }()
	if _, err := gitWith(ctx, x.dir, ownRepo, f, "index-pack", "--stdin"); err != nil {
		return errdefs.Invalid("git refuses a pack of the VM's: %w", err)
	}
	return nil
}

// guestHead is the commit that is checked out in the guest; empty when it says none.
func (x *Export) guestHead() string {
	read := func(name string) string {
		_, size, r, err := openIn(x.t.root, filepath.Join(takenGit, name))
		if err != nil {
			return ""
		}
		defer func() { _ = r.Close() }()
		if size > maxConfig {
			return ""
		}
		b, err := io.ReadAll(io.LimitReader(r, maxConfig))
		if err != nil {
			return ""
		}
		return string(b)
	}
	head := strings.TrimSpace(read("HEAD"))
	if isOID(head) {
		return head
	}
	name, isRef := strings.CutPrefix(head, "ref: ")
	if !isRef || !refName(name) || !filepath.IsLocal(name) {
		return ""
	}
	if oid := strings.TrimSpace(read(name)); isOID(oid) {
		return oid
	}
	for line := range strings.Lines(read("packed-refs")) {
		if oid, which, ok := strings.Cut(strings.TrimSpace(line), " "); ok && which == name && isOID(oid) {
			return oid
		}
	}
	return ""
}

// baseTree are the entries of the base commit: mode, kind and object of each file.
func (x *Export) baseTree(ctx context.Context) (map[string][3]string, error) {
	all := map[string][3]string{}
	if x.base == "" {
		return all, nil
	}
	out, err := x.git(ctx, "ls-tree", "-r", "-z", "--full-tree", x.base)
	if err != nil {
		return nil, gitErr(x.dir, err)
	}
	for _, line := range splitZ(out) {
		meta, name, _ := strings.Cut(line, "\t")
		if f := strings.Fields(meta); len(f) == 3 {
			all[name] = [3]string(f)
		}
	}
	return all, nil
}

// refuseNested errors when something changed in a repository within the workspace: that is
// no part of the outer one's history.
func (x *Export) refuseNested() error {
	for _, e := range x.t.Changes {
		if in := x.t.sent.nestedIn(e.Name); in != "" {
			return errdefs.Unsupported("%s was changed in the VM, and is in the repository %s within the workspace", e.Name, in).
				WithHint("send that as a workspace of its own, or copy it out: banger cp VM:PATH DIR")
		}
	}
	return nil
}

// Patch writes what the guest changed as a patch. It is against what was sent, or against
// the base commit: then what was not committed on the host, and sent, is part of it.
func (x *Export) Patch(ctx context.Context, w io.Writer, againstBase bool) error {
	if err := x.refuseNested(); err != nil {
		return err
	}
	before, after := x.base, ""
	if againstBase {
		if x.base == "" {
			return errdefs.Precondition("there is no base commit").WithHint("leave --base-commit away")
		}
		if err := x.snapshot(ctx); err != nil {
			return err
		}
		after = x.work
	} else {
		if len(x.t.Changes) == 0 {
			return nil
		}
		var err error
		if before, after, err = x.pair(ctx); err != nil {
			return err
		}
	}
	cmd := gitCmd(x.dir, ownRepo, "diff-tree", "-p", "-r", "--binary", "--full-index", "--no-renames", "--no-textconv", "--no-ext-diff",
		"--no-color", "--src-prefix=a/", "--dst-prefix=b/", before, after)
	cmd.Stdout = w
	if err := sysexec.Run(ctx, cmd); err != nil {
		return gitErr(x.dir, err)
	}
	return nil
}

// pair makes two commits of the files that changed: as they were sent, and as they are.
func (x *Export) pair(ctx context.Context) (before, after string, err error) {
	old, err := x.wasSent(ctx)
	if err != nil {
		return "", "", err
	}
	im := x.importer(ctx)
	im.commit("refs/banger/sent", x.base, "", "as it was sent")
	// What the commit has and was no file on the host was not sent either.
	if top := x.t.sent.Top(); top != nil {
		for _, name := range top.Missing {
			if _, sent := x.t.sent.Entries[name]; !sent {
				im.gone(name)
			}
		}
	}
	for _, e := range x.t.Changes {
		if _, sent := x.t.sent.Entries[e.Name]; !sent {
			im.gone(e.Name)
		}
	}
	for _, o := range old {
		im.file(o.name, o.mode, o.size, o.open)
	}
	im.commit("refs/banger/is", "refs/banger/sent", "", "as it is")
	x.overlay(im, x.t.Changes)
	if err := im.end(); err != nil {
		return "", "", err
	}
	return "refs/banger/sent", "refs/banger/is", nil
}

// overlay puts changes on top of a commit.
func (x *Export) overlay(im *importer, changes []manifest.Entry) {
	for _, e := range changes { // what goes first: a directory may take its place, or the reverse
		if e.Flags&manifest.Gone != 0 {
			im.gone(e.Name)
		}
	}
	for _, e := range changes {
		if e.Flags&manifest.Gone == 0 {
			im.open(e.Name, func() (string, int64, io.ReadCloser, error) { return x.t.content(e.Name) })
		}
	}
}

// oldFile is the content of a file as it was sent.
type oldFile struct {
	name, mode string
	size       int64
	open       func() (io.ReadCloser, error)
}

// largeBlob is from where on a file's content is not compared with the commit's.
const largeBlob = 256 << 20

// wasSent finds what the files were that changed, where the base commit does not say. What
// was not committed has to be on the host still.
func (x *Export) wasSent(ctx context.Context) (old []oldFile, err error) {
	tree, err := x.baseTree(ctx)
	if err != nil {
		return nil, err
	}
	o := openObjects(ctx, x.dir, ownRepo...)
	defer o.close()
	root, err := os.OpenRoot(x.t.sent.Root)
	if err != nil {
		return nil, pathErr(x.t.sent.Root, err)
	}
	defer func() { _ = root.Close() }()
	var lost []string
	for _, e := range x.t.Changes {
		was, known := x.t.sent.Entries[e.Name]
		if !known || was.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if blob, ok := tree[e.Name]; ok && was.Flags&manifest.Dirty == 0 {
			if was.Size > largeBlob {
				continue
			}
			_, data, there, err := o.get(blob[2], largeBlob*2)
			if err != nil || !there {
				return nil, cmpErr(err, missingObject(e.Name))
			}
			if was.Hash == 0 || xxhash.Sum64(data) == was.Hash {
				continue
			}
			return nil, errdefs.Unsupported("%s is stored in another form than it has in the work tree (a filter such as Git LFS, or line ends)", e.Name).
				WithHint("copy it out: banger cp VM:PATH FILE")
		}
		mode, size, r, err := openIn(root, e.Name)
		if err == nil {
			h := xxhash.New()
			_, err = io.Copy(h, r)
			err = errors.Join(err, r.Close())
			if err == nil && h.Sum64() != was.Hash {
				err = fs.ErrNotExist
			}
		}
		if err != nil {
			lost = append(lost, e.Name)
			continue
		}
		old = append(old, oldFile{e.Name, mode, size, func() (io.ReadCloser, error) {
			again, err := os.OpenRoot(x.t.sent.Root)
			if err != nil {
				return nil, err
			}
			defer func() { _ = again.Close() }()
			_, _, r, err := openIn(again, e.Name)
			return r, err
		}})
	}
	if len(lost) > 0 {
		return nil, errdefs.Precondition("changed in the VM and, since they were sent, on this host, where they were not committed: %s%s", lost[0], andMore(len(lost))).
			WithHint("put the changes of the VM on a branch: banger vm workspace export VM --to-branch NAME")
	}
	return old, nil
}

// snapshot makes a commit of all that is in the workspace, on top of the guest's own, if
// that differs. It is x.work.
func (x *Export) snapshot(ctx context.Context) error {
	if x.work != "" {
		return nil
	}
	if err := x.refuseNested(); err != nil {
		return err
	}
	tree, err := x.baseTree(ctx)
	if err != nil {
		return err
	}
	parent := x.head
	if parent == "" {
		parent = x.base
	}
	root := ""
	if x.base != "" {
		out, err := x.git(ctx, "rev-parse", "--verify", x.base+"^{tree}")
		if err != nil {
			return gitErr(x.dir, err)
		}
		root = strings.TrimSpace(string(out))
	}
	im := x.importer(ctx)
	im.commit("refs/banger/work", parent, root, "Not committed in "+x.name)
	if err := x.dirty(im, tree); err != nil {
		return errors.Join(err, im.end())
	}
	x.overlay(im, x.t.Changes)
	if err := x.unsent(ctx, im, tree); err != nil {
		return errors.Join(err, im.end())
	}
	if err := im.end(); err != nil {
		return err
	}
	x.work = "refs/banger/work"
	if parent == "" {
		return nil
	}
	if out, err := x.git(ctx, "diff-tree", "--quiet", parent, x.work); err == nil && len(out) == 0 {
		x.work = parent // all is committed
	} else if !exitedWith(err, 1) {
		return gitErr(x.dir, err)
	}
	return nil
}

// dirty puts on top of the base commit what was sent and not committed.
func (x *Export) dirty(im *importer, tree map[string][3]string) error {
	changed := map[string]bool{}
	for _, e := range x.t.Changes {
		changed[e.Name] = true
	}
	if top := x.t.sent.Top(); top != nil && x.t.sent.Options.Mode != ModeMetadata {
		for _, name := range top.Missing {
			if _, sent := x.t.sent.Entries[name]; !sent {
				im.gone(name)
			}
		}
	}
	for name, was := range x.t.sent.Entries {
		if was.Flags&manifest.Dirty == 0 || was.Mode&unix.S_IFMT == unix.S_IFDIR || inDotGit(name) || x.t.sent.nested(name) || changed[name] {
			continue
		}
		im.open(name, func() (string, int64, io.ReadCloser, error) { return x.t.content(name) })
	}
	return nil
}

// unsent takes from the guest's commit what never was a file in the guest: what a sparse
// checkout leaves out, and submodules.
func (x *Export) unsent(ctx context.Context, im *importer, tree map[string][3]string) error {
	if x.head == "" || x.base == "" || x.head == x.base {
		return nil
	}
	out, err := x.git(ctx, "diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index", x.base, x.head)
	if err != nil {
		return gitErr(x.dir, err)
	}
	there := map[string]bool{}
	for _, e := range x.t.Changes {
		there[e.Name] = true
	}
	if top := x.t.sent.Top(); top != nil && x.t.sent.Options.Mode != ModeMetadata {
		for _, name := range top.Missing {
			there[name] = true
		}
	}
	fields := splitZ(out)
	for i := 0; i+1 < len(fields); i += 2 {
		f, name := strings.Fields(fields[i]), fields[i+1]
		if len(f) != 5 {
			return errdefs.Internal("git diff-tree printed %q", fields[i])
		}
		_, sent := x.t.sent.Entries[name]
		_, inBase := tree[name]
		switch {
		case f[1] == "160000":
		case sent || there[name] || !inBase:
			continue
		}
		if strings.Trim(f[3], "0") == "" {
			im.gone(name)
			continue
		}
		im.object(name, f[1], f[3])
	}
	return nil
}

// identity is who the host's user is to git.
func (x *Export) identity(ctx context.Context) string {
	if x.host != nil {
		if out, err := git(ctx, x.host.top, "var", "GIT_COMMITTER_IDENT"); err == nil {
			if line := strings.TrimSpace(string(out)); line != "" && !bytes.ContainsAny(out[:len(out)-1], "\n") {
				return line
			}
		}
	}
	return "workspace <workspace@localhost> now"
}
