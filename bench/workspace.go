package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	repoFiles   = 60_000
	repoBytes   = 1_000_000_000
	repoChanged = 1_000
)

// What a workspace is compared with: half of the time of the usual tools, and times that
// nobody waits for.
const (
	prepareLimit = 0.5
	againLimit   = 300 // ms
	oneLimit     = 500 // ms
	exportLimit  = 0.5
)

// The repository has one commit, whose pack git made without deltas: its files are random,
// as large as files of programs are, and do not pack. `rsync -a` sends all of it, .git too.
// What stands for a clone is a push from the host, because the host has no sshd, and a
// checkout behind it: git sends a pack, and the guest makes the files of it.

// measureWorkspace times the first prepare against rsync and git, then what is faster the
// second time, then an export against format-patch.
func measureWorkspace(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 3
	}
	p, err := l.pair(ctx)
	if err != nil {
		return nil, err
	}
	repo := filepath.Join(l.scratch, "repo")
	defer os.RemoveAll(repo)
	if err := randomRepo(ctx, repo); err != nil {
		return nil, err
	}
	home, err := p.vm.exec(ctx, nil, "pwd")
	if err != nil {
		return nil, err
	}
	w := &workspaceBench{pair: p, repo: repo, at: strings.TrimSpace(home) + "/copied"}
	rsync, err := w.prepare(ctx, n, "workspace-rsync", "rsync -a over ssh", w.rsync)
	if err != nil {
		return nil, err
	}
	clone, err := w.prepare(ctx, n, "workspace-git", "git push over ssh, and checkout", w.push)
	if err != nil {
		return nil, err
	}
	rest, err := w.again(ctx, n)
	return append([]Figure{rsync, clone}, rest...), err
}

// workspaceBench is a repository and the two guests that it goes to.
type workspaceBench struct {
	pair
	repo string
	at   string // in the guest
}

func randomRepo(ctx context.Context, dir string) error {
	if err := hostGit(ctx, dir, nil, "init", "-q", "-b", "main", dir); err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() {
		random := rand.NewChaCha8([32]byte{3})
		sizes := rand.New(rand.NewChaCha8([32]byte{4}))
		fmt.Fprint(w, "commit refs/heads/main\ncommitter B <b@localhost> 1000000000 +0000\ndata 4\nmany\n")
		content := make([]byte, 2*repoBytes/repoFiles)
		for i := range repoFiles {
			b := content[:1+sizes.IntN(len(content))]
			_, _ = random.Read(b)
			fmt.Fprintf(w, "M 100644 inline d%03d/s%d/f%05d\ndata %d\n", i/200, i%7, i, len(b))
			if _, err := w.Write(append(b, '\n')); err != nil {
				return // the reader says why
			}
		}
		_ = w.Close()
	}()
	if err := hostGit(ctx, dir, r, "fast-import", "--quiet"); err != nil {
		return err
	}
	return hostGit(ctx, dir, nil, "reset", "-q", "--hard")
}

func hostGit(ctx context.Context, dir string, stdin io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Stdin = stdin
	if args[0] != "init" {
		cmd.Dir = dir
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], err, stderr.String())
	}
	return nil
}

func (w *workspaceBench) ours(ctx context.Context) *exec.Cmd {
	return w.vm.cli(ctx, "vm", "workspace", "prepare", w.vm.Name, w.repo, "--at", w.at)
}

// shell is ssh's command line for programs that want it as one string.
func (w *workspaceBench) shell(ctx context.Context) (command, host string) {
	words := w.ssh.ssh(ctx, "").Args
	var quoted []string
	for _, a := range words[:len(words)-2] {
		quoted = append(quoted, strconv.Quote(a))
	}
	return strings.Join(quoted, " "), words[len(words)-2]
}

func (w *workspaceBench) rsync(ctx context.Context) *exec.Cmd {
	command, host := w.shell(ctx)
	return exec.CommandContext(ctx, "rsync", "-a", "-e", command, w.repo+"/", host+":copied")
}

func (w *workspaceBench) push(ctx context.Context) *exec.Cmd {
	command, host := w.shell(ctx)
	script := `set -e; ssh=$1; host=$2; repo=$3
		eval "$ssh $host 'git init -q -b none copied'"
		GIT_SSH_COMMAND=$ssh GIT_SSH_VARIANT=simple git -C "$repo" push -q "$host:copied" main
		eval "$ssh $host 'git -C copied checkout -q main'"`
	return exec.CommandContext(ctx, "bash", "-c", script, "bash", command, host, w.repo)
}

// prepare compares the first prepare with another way to bring a repository in.
func (w *workspaceBench) prepare(ctx context.Context, n int, name, than string, theirs func(context.Context) *exec.Cmd) (Figure, error) {
	value, floor, err := w.compare(ctx, n, copies{
		ours:   func() *exec.Cmd { return w.ours(ctx) },
		theirs: func() *exec.Cmd { return theirs(ctx) },
		check:  `cd copied && find . -name .git -prune -o -type f -print | wc -l`,
		want:   strconv.Itoa(repoFiles),
		before: func() error { return w.forget(ctx) },
	})
	if err != nil {
		return Figure{}, err
	}
	f := figure(name, "s", value, floor, prepareLimit, onRatio)
	f.What, f.FloorIs = "banger vm workspace prepare of a repository of 60,000 files and 1 GB", than
	f.Notes = w.ssh.describe()
	return f, nil
}

// forget makes the next prepare a first one.
func (w *workspaceBench) forget(ctx context.Context) error {
	out, err := w.vm.cli(ctx, "vm", "workspace", "rm", w.vm.Name, w.at).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "has no workspace") {
		return fmt.Errorf("forget the workspace: %w: %s", err, out)
	}
	return nil
}

// again times what is not the first time.
func (w *workspaceBench) again(ctx context.Context, n int) ([]Figure, error) {
	theirs := w.push(ctx)
	if err := errors.Join(w.forget(ctx), w.ours(ctx).Run(), theirs.Run()); err != nil {
		return nil, err
	}
	var none, one, asked samples
	file := filepath.Join(w.repo, "d001/s1/f00200")
	for i := range n + 1 {
		took, err := timed(w.ours(ctx))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, "change %d\n", i), 0o644); err != nil {
			return nil, err
		}
		changed, err := timed(w.ours(ctx))
		if err != nil {
			return nil, err
		}
		least, err := timed(w.vm.cli(ctx, "vm", "workspace", "list", w.vm.Name))
		if err != nil {
			return nil, err
		}
		if i > 0 {
			asked.add(least, time.Millisecond)
			none.add(took, time.Millisecond)
			one.add(changed, time.Millisecond)
		}
	}
	const change = `cd copied && i=0; for f in d00[0-4]/*/*; do echo "line $i" > "$f"; i=$((i+1)); done; echo $i`
	for _, inside := range []func(...string) (string, error){
		func(args ...string) (string, error) { return w.vm.exec(ctx, nil, args...) },
		func(args ...string) (string, error) { return w.ssh.exec(ctx, args...) },
	} {
		if out, err := inside("sh", "-c", change); err != nil || strings.TrimSpace(out) != strconv.Itoa(repoChanged) {
			return nil, fmt.Errorf("change files in the guest: %q, %w", out, err)
		}
	}
	if _, err := w.ssh.exec(ctx, "sh", "-c", "cd copied && git -c user.name=b -c user.email=b@localhost commit -q -am changed"); err != nil {
		return nil, err
	}
	value, floor, err := inTurns(1, n, time.Second,
		func() (time.Duration, error) {
			return timed(w.vm.cli(ctx, "vm", "workspace", "export", w.vm.Name, w.at))
		},
		func() (time.Duration, error) {
			return w.ssh.wire.thread.timed(w.ssh.ssh(ctx, "git -C copied format-patch --stdout --binary --full-index HEAD~1"))
		})
	if err != nil {
		return nil, err
	}
	a := figure("workspace-same", "ms", none, asked, againLimit, onValue)
	a.What, a.FloorIs = "the same again, with nothing changed", "banger vm workspace list"
	b := figure("workspace-one", "ms", one, asked, oneLimit, onValue)
	b.What, b.FloorIs = "the same again, with one file changed", "banger vm workspace list"
	c := figure("workspace-export", "s", value, floor, exportLimit, onRatio)
	c.What, c.FloorIs = "banger vm workspace export of 1,000 changed files", "git format-patch over ssh"
	return []Figure{a, b, c}, nil
}
