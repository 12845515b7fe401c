package fakevm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/guest"
)

// program returns a program of the guest by its name or path; nil: there is none.
//
//	true, false, exit N     end with a status
//	echo [-n] ARGS…         and its output may be redirected with >, >> and >&2
//	warn ARGS…              echo to stderr
//	cat [FILE…], env, pwd, id, whoami, hostname, uname, nproc
//	ls, mkdir, touch, rm, test
//	sha256sum               of stdin
//	spew N                  N bytes of output
//	size                    rows and columns of the terminal
//	sleep SECONDS, hang     until then, or until a signal
//	sh -c SCRIPT            see shell.go
func program(name string) func(ctx context.Context, p *process, args []string) int {
	return map[string]func(context.Context, *process, []string) int{
		"true":      func(context.Context, *process, []string) int { return 0 },
		"false":     func(context.Context, *process, []string) int { return 1 },
		"exit":      func(_ context.Context, _ *process, a []string) int { return exitStatus(first(a, "0")) },
		"echo":      func(_ context.Context, p *process, a []string) int { return echo(p.stdout, a) },
		"warn":      func(_ context.Context, p *process, a []string) int { return echo(p.stderr, a) },
		"cat":       cat,
		"env":       env,
		"pwd":       func(_ context.Context, p *process, _ []string) int { return say(p, p.dir) },
		"whoami":    func(_ context.Context, p *process, _ []string) int { return say(p, p.user) },
		"id":        id,
		"hostname":  func(ctx context.Context, p *process, _ []string) int { return cat(ctx, p, []string{"/etc/hostname"}) },
		"uname":     func(_ context.Context, p *process, _ []string) int { return say(p, "Linux") },
		"nproc":     func(_ context.Context, p *process, _ []string) int { return say(p, strconv.Itoa(p.vm.spec.CPUs)) },
		"ls":        ls,
		"mkdir":     onPaths(func(p *process, name string) error { return p.vm.root.MkdirAll(name, 0o755) }),
		"touch":     onPaths(touch),
		"rm":        onPaths(func(p *process, name string) error { return p.vm.root.RemoveAll(name) }),
		"test":      test,
		"sync":      func(context.Context, *process, []string) int { return 0 },
		"sha256sum": sha256sum,
		"spew":      spew,
		"size":      size,
		"sleep":     sleep,
		"hang":      func(ctx context.Context, _ *process, _ []string) int { <-ctx.Done(); return 0 },
	}[path.Base(name)]
}

func first(args []string, otherwise string) string {
	if len(args) == 0 {
		return otherwise
	}
	return args[0]
}

// exitStatus is a status as a shell takes it: modulo 256, and 2 for nonsense.
func exitStatus(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 2
	}
	return n & 0xff
}

func say(p *process, text string) int {
	if _, err := fmt.Fprintln(p.stdout, text); err != nil {
		return 1
	}
	return 0
}

func complain(p *process, err error) int {
	fmt.Fprintln(p.stderr, err)
	return 1
}

func echo(w io.Writer, args []string) int {
	end := "\n"
	if len(args) > 0 && args[0] == "-n" {
		args, end = args[1:], ""
	}
	if _, err := io.WriteString(w, strings.Join(args, " ")+end); err != nil {
		return 1
	}
	return 0
}

func cat(_ context.Context, p *process, args []string) int {
	if len(args) == 0 {
		if _, err := io.Copy(p.stdout, p.stdin); err != nil {
			return 1
		}
		return 0
	}
	for _, name := range args {
		f, err := p.vm.root.Open(inRoot(p.dir, name))
		if err != nil {
			return complain(p, fmt.Errorf("cat: %s: %w", name, cause(err)))
		}
		_, err = io.Copy(p.stdout, f)
		_ = f.Close()
		if err != nil {
			return 1
		}
	}
	return 0
}

// cause strips the host's path from an error.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func env(ctx context.Context, p *process, args []string) int {
	for len(args) > 0 {
		name, value, ok := strings.Cut(args[0], "=")
		if !ok {
			return p.exec(ctx, args)
		}
		p.env[name], args = value, args[1:]
	}
	for _, name := range slices.Sorted(maps.Keys(p.env)) {
		say(p, name+"="+p.env[name])
	}
	return 0
}

func id(_ context.Context, p *process, args []string) int {
	uid := "1000"
	if p.user == "root" {
		uid = "0"
	}
	switch first(args, "") {
	case "-u":
		return say(p, uid)
	case "-un":
		return say(p, p.user)
	}
	return say(p, fmt.Sprintf("uid=%s(%s) gid=%s(%s)", uid, p.user, uid, p.user))
}

func ls(_ context.Context, p *process, args []string) int {
	f, err := p.vm.root.Open(inRoot(p.dir, first(args, ".")))
	if err != nil {
		return complain(p, fmt.Errorf("ls: %w", cause(err)))
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return say(p, first(args, "."))
	}
	slices.Sort(names)
	for _, name := range names {
		say(p, name)
	}
	return 0
}

func onPaths(do func(p *process, name string) error) func(context.Context, *process, []string) int {
	return func(_ context.Context, p *process, args []string) int {
		for _, name := range args {
			if strings.HasPrefix(name, "-") {
				continue
			}
			if err := do(p, inRoot(p.dir, name)); err != nil {
				return complain(p, fmt.Errorf("%s: %w", name, cause(err)))
			}
		}
		return 0
	}
}

func touch(p *process, name string) error {
	if _, err := p.vm.root.Stat(name); err == nil {
		return p.vm.root.Chtimes(name, time.Now(), time.Now())
	}
	return p.vm.write(name, nil)
}

func test(_ context.Context, p *process, args []string) int {
	if len(args) != 2 {
		return 2
	}
	st, err := p.vm.root.Stat(inRoot(p.dir, args[1]))
	if err != nil || args[0] == "-d" && !st.IsDir() || args[0] == "-f" && !st.Mode().IsRegular() {
		return 1
	}
	return 0
}

func sha256sum(_ context.Context, p *process, _ []string) int {
	h := sha256.New()
	if _, err := io.Copy(h, p.stdin); err != nil {
		return 1
	}
	return say(p, fmt.Sprintf("%x  -", h.Sum(nil)))
}

func spew(ctx context.Context, p *process, args []string) int {
	n, err := strconv.ParseInt(first(args, "0"), 10, 64)
	if err != nil || n < 0 {
		return 2
	}
	line := []byte(strings.Repeat("banger", guest.MaxFrame/8))
	for n > 0 && ctx.Err() == nil {
		k, err := p.stdout.Write(line[:min(n, int64(len(line)))])
		if n -= int64(k); err != nil {
			return 1
		}
	}
	return 0
}

func size(_ context.Context, p *process, _ []string) int {
	return say(p, p.term.String())
}

func sleep(ctx context.Context, _ *process, args []string) int {
	seconds, err := strconv.ParseFloat(first(args, ""), 64)
	if err != nil || seconds < 0 || seconds > math.MaxInt32 {
		return 2
	}
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	case <-ctx.Done():
	}
	return 0
}
