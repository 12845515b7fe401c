package serve

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
)

// command turns a request into what is to be started; the files are still open.
func (s *Server) command(e *guest.Exec) (proc.Spec, error) {
	defaults := s.configured()
	if e.User == "" {
		e.User = defaults.User
	}
	user, err := s.Users.Lookup(e.User)
	if err != nil {
		return proc.Spec{}, err
	}
	dir, err := workdir(e.Workdir, defaults.Workdir, &user)
	if err != nil {
		return proc.Spec{}, err
	}
	shell := user.Shell
	if shell == "" {
		shell = "/bin/sh"
	}
	term := ""
	if e.TTY {
		term = "TERM=xterm-256color"
	}
	host, _ := os.Hostname()
	env := mergeEnv([]string{
		"PATH=" + proc.DefaultPath, "HOSTNAME=" + host, "HOME=" + user.Home, "USER=" + user.Name,
		"LOGNAME=" + user.Name, "SHELL=" + shell, term,
	}, defaults.Env, e.Env)
	spec := proc.Spec{Args: e.Args, Env: env, Dir: dir, User: &user, TTY: e.TTY}
	if len(e.Args) == 0 {
		if spec.Path, err = loginShell(&user, shell, env); err != nil {
			return proc.Spec{}, err
		}
		spec.Args = []string{"-" + path.Base(spec.Path)}
		return spec, nil
	}
	spec.Path, err = proc.LookPath(&user, dir, e.Args[0], env)
	if err != nil && (e.Args[0] == "sh" || e.Args[0] == "/bin/sh") {
		err = noShell()
	}
	return spec, err
}

func noShell() error {
	return errdefs.NotFound("the image has no /bin/sh").
		WithHint("name a program that the image has: banger exec VM -- /path/of/program")
}

// loginShell is the user's shell, or /bin/sh when the image lacks that.
func loginShell(u *proc.User, shell string, env []string) (string, error) {
	p, err := proc.LookPath(u, "/", shell, env)
	if errors.Is(err, errdefs.ErrNotFound) && shell != "/bin/sh" {
		p, err = proc.LookPath(u, "/", "/bin/sh", env)
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return "", noShell()
	}
	return p, err
}

// workdir picks the directory of a command. One that was asked for must exist; a
// home that the image lacks is replaced by the root.
func workdir(asked, fallback string, u *proc.User) (string, error) {
	dir := asked
	if dir == "" {
		dir = fallback
	}
	if dir == "" {
		if isDir(u.Home) {
			return u.Home, nil
		}
		return "/", nil
	}
	if !path.IsAbs(dir) {
		dir = path.Join(u.Home, dir)
	}
	if !isDir(dir) {
		return "", errdefs.Invalid("working directory %s is not a directory in the VM", dir).
			WithHint("make it first, or choose another with --workdir")
	}
	return dir, nil
}

func isDir(p string) bool {
	var st unix.Stat_t
	return unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// mergeEnv joins environments; of several entries of a name the last one counts.
func mergeEnv(lists ...[]string) []string {
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	env := make([]string, 0, n)
	at := make(map[string]int, n)
	for _, l := range lists {
		for _, e := range l {
			key, _, ok := strings.Cut(e, "=")
			if !ok {
				continue
			}
			if i, seen := at[key]; seen {
				env[i] = e
				continue
			}
			at[key] = len(env)
			env = append(env, e)
		}
	}
	return env
}

// bench runs a command again and again, each time in the way exec does but for
// the channel, and reports how long each run took. It ends early when the host
// hangs up.
func (s *Server) bench(ctx context.Context, r *guest.FrameReader, w *guest.FrameWriter, b *guest.BenchSpawn) error {
	ctx, cancel := s.untilHangup(ctx, r)
	defer cancel()
	nanos := make([]int64, 0, b.Count)
	for range b.Count {
		start := time.Now()
		spec, err := s.command(&guest.Exec{Args: b.Args})
		if err != nil {
			return err
		}
		ex, err := s.start(spec, &guest.Exec{}, discard{})
		if err != nil {
			return err
		}
		ex.begin()
		stop := context.AfterFunc(ctx, func() { _ = ex.process.Signal(int(unix.SIGKILL)) })
		_, err = ex.wait()
		if !stop() {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		nanos = append(nanos, int64(time.Since(start)))
	}
	return done(w, guest.Control{Nanos: nanos})
}

// discard is a sink that throws output away.
type discard struct{}

func (discard) WriteReserved(byte, []byte) error { return nil }
