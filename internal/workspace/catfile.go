package workspace

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// objects reads objects of a repository through one git process. It is for one
// goroutine.
type objects struct {
	in     *io.PipeWriter
	out    *bufio.Reader
	outEnd *io.PipeReader
	done   chan error
}

// openObjects starts to read objects of the repository that dir is in.
func openObjects(ctx context.Context, dir string, env ...string) *objects {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	o := &objects{in: inW, out: bufio.NewReaderSize(outR, 64<<10), outEnd: outR, done: make(chan error, 1)}
	go func() {
		cmd := gitCmd(dir, env, "cat-file", "--batch")
		cmd.Stdin, cmd.Stdout = inR, outW
		err := sysexec.Run(ctx, cmd)
		_ = outW.CloseWithError(cmpErr(err, io.EOF))
		_ = inR.CloseWithError(io.ErrClosedPipe)
		o.done <- err
	}()
	return o
}

func cmpErr(err, or error) error {
	if err != nil {
		return err
	}
	return or
}

// close ends the process.
func (o *objects) close() {
	_ = o.in.Close()
	_ = o.outEnd.Close()
	<-o.done
}

// get returns an object by any name that git understands and that has no line break. ok
// is false when there is none. One that is larger than limit is an error.
func (o *objects) get(name string, limit int64) (kind string, data []byte, ok bool, err error) {
	if strings.ContainsAny(name, "\n\r") {
		return "", nil, false, nil
	}
	if _, err := io.WriteString(o.in, name+"\n"); err != nil {
		return "", nil, false, o.lost(err)
	}
	line, err := o.out.ReadString('\n')
	if err != nil {
		return "", nil, false, o.lost(err)
	}
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return "", nil, false, nil // "NAME missing", or "ambiguous"
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size < 0 {
		return "", nil, false, nil // a name with spaces that is missing
	}
	if size > limit {
		return "", nil, false, errdefs.Exhausted("object %s has %d bytes, more than %d", fields[0], size, limit)
	}
	data = make([]byte, size+1)
	if _, err := io.ReadFull(o.out, data); err != nil {
		return "", nil, false, o.lost(err)
	}
	return fields[1], data[:size], true, nil
}

func (o *objects) lost(err error) error { return errdefs.Wrap(err, "read objects with git") }

// maxCommit bounds a commit, in bytes.
const maxCommit = 16 << 20

// parents are those of a commit.
func (o *objects) parents(commit string) ([]string, error) {
	kind, data, ok, err := o.get(commit, maxCommit)
	if err != nil {
		return nil, err
	}
	if !ok || kind != "commit" {
		return nil, errdefs.Precondition("commit %s is not in the repository", commit).WithHint("see what git fsck says")
	}
	var all []string
	for line := range bytes.Lines(data) {
		if len(line) == 1 {
			break
		}
		if oid, found := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("parent ")); found {
			all = append(all, string(oid))
		}
	}
	return all, nil
}

var isOID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`).MatchString

// maxHistory bounds how many commits are looked at for a depth.
const maxHistory = 1 << 20

// history finds the commits within depth of tips, and those of them whose parents are
// cut off. Commits of have, and what is behind them, are there already; those of cut end
// in the host's own repository.
func (o *objects) history(tips []string, depth int, have, cut map[string]bool) (commits map[string]bool, boundary []string, err error) {
	commits = map[string]bool{}
	level := slices.Clone(tips)
	for n := 1; len(level) > 0; n++ {
		var next []string
		for _, c := range level {
			if commits[c] || have[c] {
				continue
			}
			if len(commits) >= maxHistory {
				return nil, nil, errdefs.Exhausted("more than %d commits are that deep", maxHistory).WithHint("give a smaller --depth, or 0 for all")
			}
			commits[c] = true
			if cut[c] {
				continue
			}
			parents, err := o.parents(c)
			if err != nil {
				return nil, nil, err
			}
			if n < depth {
				next = append(next, parents...)
				continue
			}
			if slices.ContainsFunc(parents, func(p string) bool { return !commits[p] && !have[p] }) {
				boundary = append(boundary, c)
			}
		}
		level = next
	}
	// A parent may have been met by another way later on, but a commit that is cut off
	// once stays so: git shows less of its history, and nothing that is not there.
	return commits, boundary, nil
}

// commitOf is the commit that a name stands for.
func (r *repo) commitOf(ctx context.Context, name string) (string, error) {
	out, err := git(ctx, r.top, "rev-parse", "-q", "--verify", "--end-of-options", name+"^{commit}")
	if exitedWith(err, 1) || exitedWith(err, 128) {
		return "", errdefs.NotFound("%s has no commit %q", r.top, name).WithHint("see: git -C %s branch -a", r.top)
	}
	if err != nil {
		return "", gitErr(r.top, err)
	}
	oid := strings.TrimSpace(string(out))
	if !isOID(oid) {
		return "", errdefs.Internal("git rev-parse printed %q", fmt.Sprintf("%.80s", oid))
	}
	return oid, nil
}
