package main

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	copyLimit  = 1.0
	largeBytes = 1_000_000_000
	probeBytes = 64 << 20 // to find out how ssh copies fastest
	smallFiles = 50_000
	smallDirs  = 500
)

// What is copied is random, so that nothing on the way can save work by packing
// it or by finding zeros. Neither side waits for the guest's disk, and neither
// ends before the other end has taken everything: `cp` ends with the agent's
// answer, scp and tar with that of their other half. What the guest still holds
// in memory is written out before the next copy starts. The host's end comes out
// of the page cache.

// measureCopyLarge compares `cp` of one large file with scp.
func measureCopyLarge(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 3
	}
	p, err := l.pair(ctx)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(l.scratch, "large")
	defer os.Remove(file)
	sum, err := randomFile(file, largeBytes)
	if err != nil {
		return nil, err
	}
	value, floor, err := p.compare(ctx, n, copies{
		ours:   func() *exec.Cmd { return p.vm.cli(ctx, "cp", file, p.vm.Name+":copied") },
		theirs: func() *exec.Cmd { return p.ssh.scp(ctx, file, "copied") },
		check:  `md5sum < copied | cut -d " " -f 1`,
		want:   sum,
	})
	if err != nil {
		return nil, err
	}
	f := figure("cp-1g", "s", value, floor, copyLimit, onRatio)
	f.What, f.FloorIs = "banger cp of 1 GB of random bytes into a VM", "scp"
	f.Notes = fmt.Sprintf("%s MB/s, scp %s MB/s; %s", number(largeBytes/1e6/f.Value), number(largeBytes/1e6/f.Floor), p.ssh.describe())
	return []Figure{f}, nil
}

// measureCopySmall compares `cp` of a tree of small files with tar at both ends
// of ssh.
func measureCopySmall(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 3
	}
	p, err := l.pair(ctx)
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(l.scratch, "small")
	defer os.RemoveAll(tree)
	sum, err := randomTree(tree)
	if err != nil {
		return nil, err
	}
	untar := p.ssh.ssh(ctx, "mkdir copied && tar -C copied -xf -")
	value, floor, err := p.compare(ctx, n, copies{
		ours: func() *exec.Cmd { return p.vm.cli(ctx, "cp", tree, p.vm.Name+":copied") },
		theirs: func() *exec.Cmd {
			pipe := `set -e -o pipefail; dir=$1; shift; tar -C "$dir" -cf - . | "$@"`
			return exec.CommandContext(ctx, "bash", append([]string{"-c", pipe, "bash", tree}, untar.Args...)...)
		},
		check: `cd copied && find . -type f | LC_ALL=C sort | xargs cat | md5sum | cut -d " " -f 1; find . -type f | wc -l`,
		want:  sum + "\n" + strconv.Itoa(smallFiles),
	})
	if err != nil {
		return nil, err
	}
	f := figure("cp-50k", "s", value, floor, copyLimit, onRatio)
	f.What, f.FloorIs = "banger cp of 50,000 files of 1 to 4 kB in 500 directories into a VM", "tar | ssh tar x"
	f.Notes = fmt.Sprintf("%s files/s, tar %s files/s; %s", number(smallFiles/f.Value), number(smallFiles/f.Floor), p.ssh.describe())
	return []Figure{f}, nil
}

// pair is a VM of banger's and its like with sshd.
type pair struct {
	vm  *sandbox
	ssh *sshGuest
}

// pair also finds out how ssh copies fastest, once.
func (l *lab) pair(ctx context.Context) (pair, error) {
	vm, err := l.settled(ctx)
	if err != nil {
		return pair{}, err
	}
	server, err := l.sshServer(ctx)
	if err != nil {
		return pair{}, err
	}
	if server.cipher != "" {
		return pair{vm, server}, nil
	}
	probe := filepath.Join(l.scratch, "probe")
	defer os.Remove(probe)
	if _, err := randomFile(probe, probeBytes); err != nil {
		return pair{}, err
	}
	best := time.Duration(0)
	fastest := *server
	for _, cipher := range []string{"chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com", "aes128-ctr"} {
		for _, legacy := range []bool{false, true} {
			try := *server
			try.cipher, try.legacy = cipher, legacy
			took, err := try.wire.thread.timed(try.scp(ctx, probe, "probe"))
			if err != nil {
				return pair{}, err
			}
			if best == 0 || took < best {
				best, fastest = took, try
			}
		}
	}
	*server = fastest
	_, err = server.exec(ctx, "rm", "probe")
	return pair{vm, server}, err
}

// copies is a copy to the name "copied" in the home directory, made in two ways.
type copies struct {
	ours, theirs func() *exec.Cmd
	check        string       // shell command that proves the copy complete
	want         string       // what it prints
	before       func() error // runs ahead of each; nil: nothing
}

// clean removes a copy, and empties the guest's memory of what is not on its disk.
const clean = "rm -rf copied && sync"

// compare times both ways in turns. The first round warms caches and disks, and
// its copies are read back.
func (p pair) compare(ctx context.Context, n int, c copies) (value, floor samples, err error) {
	both := []func(...string) (string, error){
		func(args ...string) (string, error) { return p.vm.exec(ctx, nil, args...) },
		func(args ...string) (string, error) { return p.ssh.exec(ctx, args...) },
	}
	for i := range n + 1 {
		if c.before != nil {
			if err := c.before(); err != nil {
				return nil, nil, err
			}
		}
		for _, inside := range both {
			if _, err := inside("sh", "-c", clean); err != nil {
				return nil, nil, err
			}
		}
		took, err := timed(c.ours())
		if err != nil {
			return nil, nil, err
		}
		if _, err := both[0]("sync"); err != nil {
			return nil, nil, err
		}
		other, err := p.ssh.wire.thread.timed(c.theirs())
		if err != nil {
			return nil, nil, err
		}
		if i > 0 {
			value.add(took, time.Second)
			floor.add(other, time.Second)
			continue
		}
		for _, inside := range both {
			got, err := inside("sh", "-c", c.check)
			if err == nil && strings.TrimSpace(got) != c.want {
				err = fmt.Errorf("the copy is another: %q, not %q", strings.TrimSpace(got), c.want)
			}
			if err != nil {
				return nil, nil, err
			}
		}
	}
	for _, inside := range both {
		_, cerr := inside("sh", "-c", clean)
		err = errors.Join(err, cerr)
	}
	return value, floor, err
}

// noise is a stream of random bytes, the same in every run.
func noise() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

// randomFile makes a file and returns its MD5 sum.
func randomFile(path string, size int64) (string, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	sum := md5.New()
	_, err = io.CopyN(io.MultiWriter(f, sum), noise(), size)
	return fmt.Sprintf("%x", sum.Sum(nil)), errors.Join(err, f.Close())
}

// randomTree makes the tree and returns the MD5 sum of the contents of its files,
// in the order of their names.
func randomTree(dir string) (string, error) {
	random := noise()
	sizes := rand.New(rand.NewChaCha8([32]byte{2}))
	for d := range smallDirs {
		sub := filepath.Join(dir, fmt.Sprintf("dir%03d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return "", err
		}
		for f := range smallFiles / smallDirs {
			content := make([]byte, 1000+sizes.IntN(3000))
			_, _ = random.Read(content)
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%02d", f)), content, 0o644); err != nil {
				return "", err
			}
		}
	}
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	sum := md5.New()
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		sum.Write(content)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
