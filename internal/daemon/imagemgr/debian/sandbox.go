package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// sandbox runs programs as the root of a file tree in one directory:
//
//   - for an ordinary user, in a user namespace whose ids are the user's sub-ids.
//     mmdebstrap's own helper makes it, because hosts that restrict user
//     namespaces by program name it as one that may;
//   - for root, in mount and pid namespaces, so that neither a mount nor a process
//     of a package's script outlives the build;
//   - for root where not even that is allowed (in a container), as it is.
//
// In a namespace the directory is mounted on /tmp. It is reached as the current
// directory, not by its path: that may lead through a home directory which the
// sub-ids cannot enter.
type sandbox struct {
	dir    string   // on the host
	inside string   // the same, as programs in the sandbox see it
	prefix []string // program and arguments before the script
}

// script runs "$@" and kills the whole process group when stdin ends, that is
// when this process dies: pulls must not live on without the daemon.
const script = `
set -u
if [ "$1" = bind ]; then mount -c --bind . /tmp && cd /tmp || exit 1; fi
shift
exec 3<&0 </dev/null
{ read -r _ <&3; kill -KILL 0; } &
watch=$!
"$@" 3<&-
code=$?
kill -KILL $watch
exit $code
`

// newSandbox prepares dir, which only this user can reach, as a sandbox.
func newSandbox(ctx context.Context, dir string) (*sandbox, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Everybody may write here; the parent keeps everybody else out.
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("make build directory: %w", err)
	}
	if err := os.Chmod(abs, 0o777); err != nil {
		return nil, fmt.Errorf("open build directory to sub-ids: %w", err)
	}
	choices := []*sandbox{{dir: abs, inside: "/tmp", prefix: []string{"mmdebstrap", "--unshare-helper"}}}
	if os.Geteuid() == 0 {
		choices = []*sandbox{
			{dir: abs, inside: "/tmp", prefix: []string{"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts"}},
			{dir: abs, inside: abs},
		}
	}
	var failed error
	for _, s := range choices {
		said, err := s.run(ctx, nil, "true")
		if err == nil {
			return s, nil
		}
		failed = errors.Join(failed, explain(ctx, "set up namespaces", append(said, "unshare failed"), err))
	}
	return nil, failed
}

func (s *sandbox) bind() string {
	if s.inside == s.dir {
		return "plain"
	}
	return "bind"
}

// run runs a program in the sandbox and returns the last lines it printed. line,
// when not nil, gets every line.
func (s *sandbox) run(ctx context.Context, line func(string), program string, args ...string) ([]string, error) {
	path, err := sysexec.Look(program)
	if err != nil {
		return nil, err
	}
	alive, end, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer alive.Close()
	defer end.Close()
	argv := append([]string{}, s.prefix...)
	argv = append(argv, "sh", "-c", script, "sh", s.bind(), path)
	argv = append(argv, args...)
	out := &lines{each: line}
	defer context.AfterFunc(ctx, func() { _ = end.Close() })() // ends it at once, not in order
	err = sysexec.Run(ctx, sysexec.Cmd{
		Path: argv[0], Args: argv[1:], Dir: s.dir,
		Env:   append(os.Environ(), "TMPDIR="+s.inside, "LC_ALL=C.UTF-8"),
		Stdin: alive, Stdout: out, Stderr: out,
	})
	return out.last(), err
}

// path is where a file of the directory is inside.
func (s *sandbox) path(name string) string { return filepath.Join(s.inside, name) }

// buildDir is the part of a staging directory that sub-ids may write to.
const buildDir = "build"

// Remove removes a staging directory, including what in it belongs to sub-ids.
func Remove(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Geteuid() == 0 {
		return err
	}
	// What kind of error it is tells nothing: for a link in a directory of another's,
	// Go 1.26.0 has one of its own.
	// Let the sub-ids remove what is theirs; the rest is ours.
	s, serr := newSandbox(ctx, filepath.Join(dir, buildDir))
	if serr == nil {
		_, serr = s.run(ctx, nil, "find", ".", "-mindepth", "1", "-delete")
	}
	if err := os.RemoveAll(dir); err != nil {
		return errdefs.Wrap(errors.Join(err, serr), "remove %s", dir)
	}
	return nil
}
