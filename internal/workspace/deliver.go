package workspace

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Nothing reports whether the guest has changed nothing: no file, and no commit.
func (x *Export) Nothing() bool {
	return len(x.t.Changes) == 0 && (x.head == "" || x.head == x.base)
}

// tip is the commit with all that is in the workspace. When what was sent had changes that
// were not committed, those are part of it.
func (x *Export) tip(ctx context.Context) (string, error) {
	if x.host == nil {
		return "", errdefs.Precondition("%s is in no git repository", x.t.sent.Root).WithHint("export a patch: banger vm workspace export VM --format patch")
	}
	if err := x.snapshot(ctx); err != nil {
		return "", err
	}
	out, err := x.git(ctx, "rev-parse", "--verify", "--end-of-options", x.work+"^{commit}")
	if err != nil {
		return "", gitErr(x.dir, err)
	}
	oid := strings.TrimSpace(string(out))
	if !isOID(oid) {
		return "", errdefs.Internal("git rev-parse printed %q", oid)
	}
	return oid, nil
}

// checked packs what a commit needs beyond what was sent, and takes that into a
// repository which has nothing else but the host's objects. There git computes anew what
// every object is called, looks at what could harm whoever checks it out, and follows
// everything to its end. It returns that repository and the pack's file.
func (x *Export) checked(ctx context.Context, tip string) (dir, pack string, err error) {
	format := "sha1"
	if top := x.t.sent.Top(); top != nil {
		format = top.Format
	}
	dir, pack = filepath.Join(x.t.dir, "checked.git"), filepath.Join(x.t.dir, "new.pack")
	if err := x.init(ctx, dir, format); err != nil {
		return "", "", err
	}
	f, err := os.OpenFile(pack, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", "", errdefs.Wrap(err, "make a pack")
	}
	defer func() { _ = f.Close() }()
	want := tip + "\n"
	if x.base != "" {
		want += "--not\n" + x.base + "\n"
	}
	cmd := gitCmd(x.dir, ownRepo, "pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset", "--window=0")
	cmd.Stdin, cmd.Stdout = strings.NewReader(want), f
	err = sysexec.Run(ctx, cmd)
	if err != nil {
		return "", "", errdefs.Precondition("the commits of the VM are not whole: %w", err).WithHint("see what `git fsck` says in the VM")
	}
	if err := x.indexPack(ctx, dir, f, ownRepo); err != nil {
		return "", "", err
	}
	_, err = gitWith(ctx, dir, ownRepo, nil, "rev-list", "--objects", "--quiet", tip, "--not", x.orEmpty(x.base))
	if err != nil {
		return "", "", errdefs.Precondition("the commits of the VM are not whole: %w", err).WithHint("see what `git fsck` says in the VM")
	}
	return dir, pack, nil
}

// indexPack takes a pack into a repository, and refuses one with broken objects.
func (x *Export) indexPack(ctx context.Context, dir string, f *os.File, env []string) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return errdefs.Wrap(err, "read a pack")
	}
	_, err := gitWith(ctx, dir, env, f, "index-pack", "--stdin", "--strict")
	var e *sysexec.Error
	if errors.As(err, &e) {
		return errdefs.Invalid("git refuses what comes from the VM: %s", strings.TrimPrefix(lastLine(e.Stderr), "fatal: ")).
			WithHint("export a patch, and look at it before it is applied")
	}
	return err
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// ToBranch makes a branch of the host's repository that has all that is in the workspace.
// The checkout and its index are not touched; a branch that is there is not moved.
func (x *Export) ToBranch(ctx context.Context, name string) (commit string, err error) {
	if commit, err = x.tip(ctx); err != nil {
		return "", err
	}
	ref := "refs/heads/" + name
	if _, err := git(ctx, x.host.top, "check-ref-format", "--branch", name); err != nil {
		return "", errdefs.Invalid("%q cannot be the name of a branch", name).WithHint("give another one, such as from-vm")
	}
	if _, err := git(ctx, x.host.top, "show-ref", "--verify", "--quiet", ref); err == nil {
		return "", errdefs.AlreadyExists("%s has a branch %q already", x.host.top, name).WithHint("give another name, or delete it: git branch -d %s", name)
	}
	_, pack, err := x.checked(ctx, commit)
	if err != nil {
		return "", err
	}
	f, err := os.Open(pack)
	if err != nil {
		return "", errdefs.Wrap(err, "read a pack")
	}
	defer func() { _ = f.Close() }()
	if err := x.indexPack(ctx, x.host.top, f, nil); err != nil {
		return "", err
	}
	zero := strings.Repeat("0", len(commit))
	if _, err := git(ctx, x.host.top, "update-ref", "-m", "banger: from "+x.name, ref, commit, zero); err != nil {
		return "", gitErr(x.host.top, err)
	}
	return commit, nil
}

// Bundle writes a git bundle with a branch that has all that is in the workspace. It needs
// a repository with the base commit.
func (x *Export) Bundle(ctx context.Context, w io.Writer, branch string) error {
	commit, err := x.tip(ctx)
	if err != nil {
		return err
	}
	dir, _, err := x.checked(ctx, commit)
	if err != nil {
		return err
	}
	ref := "refs/heads/" + branch
	if _, err := gitWith(ctx, dir, ownRepo, nil, "update-ref", ref, commit); err != nil {
		return errdefs.Invalid("%q cannot be the name of a branch", branch).WithHint("give another one: --to-branch from-vm")
	}
	args := []string{"bundle", "create", "-q", "-", ref}
	if x.base != "" {
		args = append(args, "^"+x.base)
	}
	cmd := gitCmd(dir, ownRepo, args...)
	cmd.Stdout = w
	if err := sysexec.Run(ctx, cmd); err != nil {
		return gitErr(dir, err)
	}
	return nil
}

// Branch is the name of the branch that was sent, without refs/heads/; empty: none.
func (x *Export) Branch() string {
	if top := x.t.sent.Top(); top != nil {
		if name, ok := strings.CutPrefix(top.Head, "refs/heads/"); ok {
			return name
		}
	}
	return ""
}

// Apply changes the files of the host's work tree as the guest changed its own: all of
// them, or none, when one has changed on the host since. The index is not touched.
func (x *Export) Apply(ctx context.Context) error {
	file := filepath.Join(x.t.dir, "changes.patch")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return errdefs.Wrap(err, "make a patch")
	}
	defer func() { _ = f.Close() }()
	if err := x.Patch(ctx, f, false); err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil || st.Size() == 0 {
		return errdefs.Wrap(err, "make a patch")
	}
	dir := x.t.sent.Root
	var env []string
	if x.host != nil {
		if env, err = x.host.withoutFilters(ctx); err != nil {
			return err
		}
	} else {
		// A repository around it has no say.
		env = []string{"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir), "GIT_CONFIG_NOSYSTEM=1"}
	}
	_, err = gitWith(ctx, dir, env, nil, "apply", "--whitespace=nowarn", file)
	var e *sysexec.Error
	if errors.As(err, &e) {
		first, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(e.Stderr), "error: "), "\n")
		return errdefs.Precondition("the changes do not apply to %s, and nothing was changed: %s", dir, first).
			WithHint("put them on a branch, and merge it: banger vm workspace export VM --to-branch NAME")
	}
	return err
}
