package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"banger/internal/errdefs"
)

// RepoState is what a repository was when it was sent.
type RepoState struct {
	Stamp   string   `json:"stamp"`             // of all that follows from: equal while nothing has changed
	Format  string   `json:"format"`            // "sha1" or "sha256"
	Base    string   `json:"base,omitempty"`    // the commit that is checked out; empty: none yet
	Head    string   `json:"head"`              // a branch, with refs/heads/, or the commit
	Tips    []string `json:"tips,omitempty"`    // objects that the guest has, with what is behind them
	Shallow []string `json:"shallow,omitempty"` // commits whose parents it has not
	Missing []string `json:"missing,omitempty"` // tracked, and not in the work tree
	Full    bool     `json:"full,omitempty"`    // .git was sent as it is
}

// ref is a reference of the host's repository.
type ref struct{ name, oid, kind, peeled, upstream, symref string }

func (r *repo) refs(ctx context.Context) (all []ref, text []byte, err error) {
	text, err = git(ctx, r.top, "for-each-ref",
		"--format=%(refname)%00%(objectname)%00%(objecttype)%00%(*objectname)%00%(upstream)%00%(symref)")
	if err != nil {
		return nil, nil, gitErr(r.top, err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\x00")
		if len(f) != 6 || !isOID(f[1]) {
			return nil, nil, errdefs.Internal("git for-each-ref printed %q", line)
		}
		all = append(all, ref{f[0], f[1], f[2], f[3], f[4], f[5]})
	}
	return all, text, nil
}

// Files of a git directory that say that something was begun, and that mean the same
// elsewhere.
var begun = []string{"MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "CHERRY_PICK_HEAD", "REVERT_HEAD", "SQUASH_MSG"}

// Those with more in them than can be known: then .git is sent as it is.
var deepBegun = []string{"rebase-merge", "rebase-apply", "sequencer", "BISECT_LOG"}

// packing is the making of a .git directory.
type packing struct {
	s      *survey
	r      *repo
	prefix string // of .git
	was    *RepoState
	state  *RepoState

	all    []ref
	chosen []ref // what the guest gets
	tips   []string
	staged []string // objects of the index that no commit has
}

// packRepo adds a .git directory with as much history as is wanted, under the name prefix,
// or says what was sent before. It returns nil when there is to be none.
func (s *survey) packRepo(ctx context.Context, r *repo, prefix string) (*RepoState, error) {
	lenders, err := stores(filepath.Join(r.common, "objects"))
	if err != nil {
		return nil, err
	}
	if s.depth > 0 && len(lenders) > 0 {
		// Nothing in an object store says who may borrow from it, and nobody asked for
		// this repository by name.
		s.warn("%s is sent without its .git, which borrows objects from %s", r.top, lenders[0])
		return nil, nil
	}
	p := &packing{s: s, r: r, prefix: prefix, state: &RepoState{Format: "sha1"}}
	if s.sent != nil {
		p.was = s.sent.Repos[strings.TrimSuffix(strings.TrimSuffix(prefix, ".git"), "/")]
	}
	whole, err := p.whole(ctx)
	if err != nil {
		return nil, err
	}
	stamp, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	if whole {
		if s.opts.Branch != "" || s.opts.From != "" {
			return nil, errdefs.Unsupported("%s is in the middle of a rebase, a bisection or the like, or is a partial clone, or has references in a table: its .git is sent as it is, on the branch it is on", r.top).
				WithHint("leave --from and --branch away, or give a clone")
		}
		p.state.Full = true
		return p.state, s.gitDir(ctx, r, prefix)
	}
	if p.was != nil && p.was.Stamp == stamp {
		p.carry(func(string) bool { return true })
		kept := *p.was
		return &kept, nil
	}
	for _, from := range lenders {
		if real, err := filepath.EvalSymlinks(from); err != nil || !strings.HasPrefix(real, r.top+"/") {
			s.warn("%s borrows objects from %s: those of its history are sent too", r.top, from)
		}
	}
	p.state.Stamp = stamp
	if err := p.choose(ctx); err != nil {
		return nil, err
	}
	return p.state, p.write(ctx)
}

// whole reports whether .git has to be sent as it is.
func (p *packing) whole(ctx context.Context) (bool, error) {
	if p.s.opts.Mode == ModeFull {
		return true, nil
	}
	for _, name := range deepBegun {
		if _, err := os.Lstat(filepath.Join(p.r.gitDir, name)); err == nil {
			return true, nil
		}
	}
	config, err := readSmall(filepath.Join(p.r.common, "config"))
	if err != nil {
		return false, err
	}
	return usesReftable(config) || strings.Contains(strings.ToLower(string(config)), "partialclone"), nil
}

// look reads where the repository stands, and returns a stamp of that.
func (p *packing) look(ctx context.Context) (string, error) {
	var err error
	var text []byte
	if p.all, text, err = p.r.refs(ctx); err != nil {
		return "", err
	}
	if out, err := git(ctx, p.r.top, "rev-parse", "--show-object-format"); err == nil {
		p.state.Format = strings.TrimSpace(string(out))
	}
	head, err := readSmall(filepath.Join(p.r.gitDir, "HEAD"))
	if err != nil {
		return "", err
	}
	name, isRef := strings.CutPrefix(strings.TrimSpace(string(head)), "ref: ")
	switch {
	case isRef:
		p.state.Head = name
		for _, r := range p.all {
			if r.name == name {
				p.state.Base = r.oid
			}
		}
	default:
		if p.state.Base, err = p.r.commitOf(ctx, "HEAD"); err != nil {
			return "", err
		}
		p.state.Head = p.state.Base
	}
	if from := p.s.opts.From; from != "" {
		if p.state.Base, err = p.r.commitOf(ctx, from); err != nil {
			return "", err
		}
		p.state.Head = p.state.Base
	}
	if branch := p.s.opts.Branch; branch != "" {
		if _, err := git(ctx, p.r.top, "check-ref-format", "--branch", branch); err != nil {
			return "", errdefs.Invalid("%q cannot be the name of a branch", branch).WithHint("give another one, such as fix-1")
		}
		p.state.Head = "refs/heads/" + branch
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%+v\x00", head, text, p.state.Base, p.state.Head, *p.s.opts)
	for _, name := range append([]string{"index", "config.worktree", "info/sparse-checkout"}, begun...) {
		h.Write(stampOf(filepath.Join(p.r.gitDir, name)))
	}
	for _, name := range []string{"config", "shallow", "info/exclude", "info/attributes", "hooks"} {
		h.Write(stampOf(filepath.Join(p.r.common, name)))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// stampOf is what changes when a file does.
func stampOf(file string) []byte {
	e, ok, err := lookAt(file, file)
	if err != nil || !ok {
		return []byte{0}
	}
	return fmt.Appendf(nil, "%d %d %d %d %o\x00", e.size, e.mtime, e.ctime, e.ino, e.mode)
}

// carry adds entries that were sent before as they are; which takes a name in .git.
func (p *packing) carry(which func(rel string) bool) {
	for name, e := range p.s.sent.Entries {
		rel, inside := strings.CutPrefix(name, p.prefix+"/")
		if name == p.prefix || inside && which(rel) {
			p.s.entries = append(p.s.entries, sentEntry(name, e))
		}
	}
}

// choose decides which references and which history the guest gets.
func (p *packing) choose(ctx context.Context) error {
	byName := map[string]ref{}
	for _, r := range p.all {
		byName[r.name] = r
	}
	want := map[string]bool{"refs/heads/main": true, "refs/heads/master": true, byName["refs/remotes/origin/HEAD"].symref: true}
	if p.s.opts.From == "" {
		want[p.state.Head], want[byName[p.state.Head].upstream] = true, true
	}
	if strings.HasPrefix(p.state.Head, "refs/") && p.state.Base != "" {
		p.chosen = append(p.chosen, ref{name: p.state.Head, oid: p.state.Base, kind: "commit"})
	}
	for _, r := range p.all {
		if want[r.name] && r.kind == "commit" && r.symref == "" && r.name != p.state.Head {
			p.chosen = append(p.chosen, r)
		}
	}
	for _, r := range p.chosen {
		p.tips = append(p.tips, r.oid)
	}
	if p.state.Base != "" {
		p.tips = append(p.tips, p.state.Base)
	}
	for _, name := range begun {
		if strings.HasSuffix(name, "_HEAD") {
			text, err := readSmall(filepath.Join(p.r.gitDir, name))
			if err != nil {
				return err
			}
			for _, oid := range strings.Fields(string(text)) {
				if isOID(oid) {
					p.tips = append(p.tips, oid)
				}
			}
		}
	}
	p.tips = unique(p.tips)
	if err := p.depth(ctx); err != nil {
		return err
	}
	var err error
	p.staged, err = p.stagedObjects(ctx)
	return err
}

// lines is a text of one item a line.
func lines(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "\n") + "\n"
}

func unique(list []string) []string {
	list = slices.Clone(list)
	sort.Strings(list)
	return slices.Compact(list)
}

// depth finds where history is cut off, and the tags of what is not.
func (p *packing) depth(ctx context.Context) error {
	own, err := readSmall(filepath.Join(p.r.common, "shallow"))
	if err != nil {
		return err
	}
	cut := map[string]bool{}
	for _, oid := range strings.Fields(string(own)) {
		cut[oid] = true
		p.state.Shallow = append(p.state.Shallow, oid)
	}
	if p.s.opts.Depth == 0 {
		if p.state.Base == "" {
			return nil
		}
		out, err := git(ctx, p.r.top, "for-each-ref", "--merged="+p.state.Base, "--format=%(refname)", "refs/tags")
		if err != nil {
			return gitErr(p.r.top, err)
		}
		merged := map[string]bool{}
		for _, name := range strings.Fields(string(out)) {
			merged[name] = true
		}
		p.takeTags(func(r ref) bool { return merged[r.name] })
		return nil
	}
	o := openObjects(ctx, p.r.top)
	defer o.close()
	have := map[string]bool{}
	if p.was != nil && !p.was.Full {
		if have, err = p.behind(ctx, p.was); err != nil {
			return err
		}
	}
	commits, boundary, err := o.history(p.tips, p.s.opts.Depth, have, cut)
	if err != nil {
		return err
	}
	p.state.Shallow = nil
	for oid := range cut {
		if commits[oid] {
			p.state.Shallow = append(p.state.Shallow, oid)
		}
	}
	p.state.Shallow = append(p.state.Shallow, boundary...)
	if p.was != nil {
		p.state.Shallow = append(p.state.Shallow, p.was.Shallow...)
	}
	p.state.Shallow = unique(p.state.Shallow)
	p.takeTags(func(r ref) bool { return commits[r.oid] || commits[r.peeled] || have[r.oid] || have[r.peeled] })
	return nil
}

// behind are the commits that the guest has.
func (p *packing) behind(ctx context.Context, was *RepoState) (map[string]bool, error) {
	dir, err := p.s.tree.tempDir()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "shallow")
	if err := os.WriteFile(file, []byte(lines(was.Shallow)), 0o600); err != nil {
		return nil, errdefs.Wrap(err, "write a list of commits")
	}
	out, err := gitWith(ctx, p.r.top, nil, strings.NewReader(lines(was.Tips)),
		"--shallow-file", file, "rev-list", "--ignore-missing", "--stdin")
	if err != nil {
		return nil, gitErr(p.r.top, err)
	}
	have := map[string]bool{}
	for _, oid := range strings.Fields(string(out)) {
		have[oid] = true
	}
	return have, nil
}

func (p *packing) takeTags(which func(ref) bool) {
	for _, r := range p.all {
		if strings.HasPrefix(r.name, "refs/tags/") && r.symref == "" && which(r) {
			p.chosen = append(p.chosen, r)
			p.tips = append(p.tips, r.oid)
		}
	}
	p.tips = unique(p.tips)
}

// stagedObjects are those that the index has and the commit has not.
func (p *packing) stagedObjects(ctx context.Context) ([]string, error) {
	if p.s.opts.From != "" {
		return nil, nil
	}
	args := []string{"diff-index", "--cached", "--raw", "-z", "--no-renames", "--full-index", p.state.Base}
	if p.state.Base == "" {
		args = []string{"ls-files", "-z", "-s"}
	}
	out, err := git(ctx, p.r.top, args...)
	if err != nil {
		return nil, gitErr(p.r.top, err)
	}
	unmerged, err := git(ctx, p.r.top, "ls-files", "-z", "-u")
	if err != nil {
		return nil, gitErr(p.r.top, err)
	}
	var oids []string
	deleted := false
	for _, field := range splitZ(out) {
		f := strings.Fields(field)
		switch {
		case deleted: // in the commit and not in the index
			p.s.missing = append(p.s.missing, field)
			deleted = false
		case p.state.Base == "" && len(f) >= 4:
			oids = appendBlob(oids, f[0], f[1])
		case strings.HasPrefix(field, ":") && len(f) == 5 && isOID(f[3]):
			oids = appendBlob(oids, f[1], f[3])
			deleted = f[4] == "D"
		}
	}
	for _, field := range splitZ(unmerged) {
		if f := strings.Fields(field); len(f) >= 4 {
			oids = appendBlob(oids, f[0], f[1])
		}
	}
	return unique(oids), nil
}

// appendBlob adds an object of an index entry, unless it is a commit of a submodule, a
// directory of a sparse index, or none.
func appendBlob(oids []string, mode, oid string) []string {
	if !isOID(oid) || mode == "160000" || mode == "040000" || strings.Trim(oid, "0") == "" {
		return oids
	}
	return append(oids, oid)
}

// write adds the files of .git.
func (p *packing) write(ctx context.Context) error {
	s := p.s
	top, ok, err := lookAt(p.r.gitDir, p.prefix)
	if err != nil || !ok {
		return err
	}
	top.mode = os.ModeDir | 0o755
	s.entries = append(s.entries, top)
	for _, dir := range []string{"objects", "objects/pack", "refs", "refs/heads", "refs/tags", "info"} {
		s.entries = append(s.entries, entry{name: join(p.prefix, dir), mode: os.ModeDir | 0o755, time: time.Now()})
	}
	if err := p.pack(ctx); err != nil {
		return err
	}
	config, err := p.r.config(ctx)
	if err != nil {
		return err
	}
	s.data(join(p.prefix, "config"), config)
	head := p.state.Head + "\n"
	if strings.HasPrefix(head, "refs/") {
		head = "ref: " + head
	}
	s.data(join(p.prefix, "HEAD"), []byte(head))
	s.data(join(p.prefix, "packed-refs"), p.packedRefs())
	if len(p.state.Shallow) > 0 {
		s.data(join(p.prefix, "shallow"), []byte(lines(p.state.Shallow)))
	}
	return p.copies(ctx)
}

// packedRefs is the file of all references.
func (p *packing) packedRefs() []byte {
	sorted := slices.Clone(p.chosen)
	slices.SortFunc(sorted, func(a, b ref) int { return strings.Compare(a.name, b.name) })
	var b bytes.Buffer
	b.WriteString("# pack-refs with: peeled fully-peeled sorted \n")
	for _, r := range sorted {
		fmt.Fprintf(&b, "%s %s\n", r.oid, r.name)
		if r.peeled != "" {
			fmt.Fprintf(&b, "^%s\n", r.peeled)
		}
	}
	return b.Bytes()
}

// copies adds what is copied from the host's git directory: the index, rules, hooks, and
// what says that a merge is under way.
func (p *packing) copies(ctx context.Context) error {
	names := []string{"index", "info/sparse-checkout"}
	if p.s.opts.From != "" {
		names = nil
		if err := p.index(ctx); err != nil {
			return err
		}
	} else {
		names = append(names, begun...)
		shared, err := filepath.Glob(filepath.Join(p.r.gitDir, "sharedindex.*"))
		if err != nil {
			return errdefs.Wrap(err, "look for shared indexes")
		}
		for _, file := range shared {
			names = append(names, filepath.Base(file))
		}
	}
	add := func(dir, name string) error {
		e, ok, err := lookAt(filepath.Join(dir, name), join(p.prefix, name))
		if err == nil && ok && e.mode.IsRegular() {
			p.s.entries = append(p.s.entries, e)
		}
		return err
	}
	for _, name := range names {
		if err := add(p.r.gitDir, name); err != nil {
			return err
		}
	}
	for _, name := range []string{"info/exclude", "info/attributes"} {
		if err := add(p.r.common, name); err != nil {
			return err
		}
	}
	hooks, ok, err := lookAt(filepath.Join(p.r.common, "hooks"), join(p.prefix, "hooks"))
	if err != nil || !ok || !hooks.mode.IsDir() {
		return err
	}
	p.s.entries = append(p.s.entries, hooks)
	return p.s.walk(ctx, hooks.path, hooks.name, func(rel string, _ bool) bool { return strings.HasSuffix(rel, ".sample") })
}

// index adds the index of a commit that is checked out.
func (p *packing) index(ctx context.Context) error {
	dir, err := p.s.tree.tempDir()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "index")
	if _, err := gitWith(ctx, p.r.top, []string{"GIT_INDEX_FILE=" + file}, nil, "read-tree", p.state.Base); err != nil {
		return gitErr(p.r.top, err)
	}
	e, ok, err := lookAt(file, join(p.prefix, "index"))
	if err != nil || !ok {
		return cmpErr(err, errdefs.Internal("git read-tree made no index"))
	}
	p.s.entries = append(p.s.entries, e)
	return nil
}

// pack adds a pack with what of the history the guest lacks.
func (p *packing) pack(ctx context.Context) error {
	var had []string
	if p.was != nil && !p.was.Full {
		had = p.was.Tips
		p.carry(func(rel string) bool { return strings.HasPrefix(rel, "objects/pack/") })
	}
	known := map[string]bool{}
	for _, oid := range had {
		known[oid] = true
	}
	wanted := slices.DeleteFunc(slices.Concat(p.tips, p.staged), func(oid string) bool { return known[oid] })
	p.state.Tips = unique(slices.Concat(had, p.tips, p.staged))
	if len(wanted) == 0 {
		return nil
	}
	var in bytes.Buffer
	for _, oid := range p.state.Shallow {
		fmt.Fprintf(&in, "--shallow %s\n", oid)
	}
	for _, oid := range wanted {
		fmt.Fprintln(&in, oid)
	}
	if len(had) > 0 {
		fmt.Fprintln(&in, "--not")
		for _, oid := range had {
			fmt.Fprintln(&in, oid)
		}
	}
	p.s.tree.later = append(p.s.tree.later, func(ctx context.Context) error { return p.packNow(ctx, &in) })
	return nil
}

// packNow makes the pack.
func (p *packing) packNow(ctx context.Context, in io.Reader) error {
	dir, err := p.s.tree.tempDir()
	if err != nil {
		return err
	}
	// Looking for deltas takes longer than sending what they would save.
	base := filepath.Join(dir, "pack")
	out, err := gitWith(ctx, p.r.top, nil, in, "pack-objects", "--revs", "-q", "--delta-base-offset", "--window=0", base)
	if err != nil {
		return gitErr(p.r.top, err)
	}
	for _, hash := range strings.Fields(string(out)) {
		if !isOID(hash) {
			return errdefs.Internal("git pack-objects printed %q", hash)
		}
		for _, ext := range []string{".pack", ".idx"} {
			e, ok, err := lookAt(base+"-"+hash+ext, join(p.prefix, "objects/pack/pack-"+hash+ext))
			if err != nil || !ok {
				return cmpErr(err, errdefs.Internal("git pack-objects made no %s", ext))
			}
			t := p.s.tree
			t.entries, t.Files, t.Bytes = append(t.entries, e), t.Files+1, t.Bytes+e.size
		}
	}
	return nil
}
