// Package daemon is the composition root of bangerd: it opens what the services
// need, wires them together, restores them in order, and serves their handlers.
// No verb lives here, and no service holds a Daemon.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/paths"
)

// Options say where a daemon lives and how it was started.
type Options struct {
	Layout     paths.Layout
	ConfigFile string   // need not exist
	Self       []string // argv that runs this program, for its helper processes
	AgentPath  string   // banger-agent binary for the initramfs
	Log        *slog.Logger
	LogLevel   *slog.LevelVar // set from the config
	Group      int            // id of a group whose members may use the daemon; 0: none
	NoJailer   bool           // Firecracker runs without its jailer, whatever the config says

	faults func(step string, done bool) error // for tests of this package: see vm.Deps
}

// Daemon is one bangerd.
type Daemon struct {
	opts     Options
	conf     config.Loaded
	started  time.Time
	log      *slog.Logger
	listener net.Listener
	server   *http.Server
	stopping chan struct{} // closed when a client asks for shutdown
	stopOnce sync.Once
	resting  *time.Timer                   // see restTime
	onClose  []func(context.Context) error // in order of opening; run in reverse
	kept     []string                      // databases that could not be read, as of the start
}

// restTime is how long after a request the memory that it took goes back to the system.
// The runtime would keep it for minutes, and a daemon rests most of its life.
const restTime = 2 * time.Second

// closeTimeout bounds Close: operations get this long to undo.
const closeTimeout = 45 * time.Second

// Open takes the state directory, restores everything in it, and listens. When it
// fails nothing stays open.
func Open(ctx context.Context, opts Options) (d *Daemon, err error) {
	d = &Daemon{opts: opts, log: slog.New(logkey.Handler(opts.Log.Handler())), started: time.Now(), stopping: make(chan struct{})}
	d.resting = time.AfterFunc(restTime, debug.FreeOSMemory)
	d.closeLater(func(context.Context) error { d.resting.Stop(); return nil })
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
			d = nil
		}
	}()
	if err := paths.CheckSocket(opts.Layout.Socket); err != nil {
		return d, err
	}
	if d.conf, err = config.Load(opts.ConfigFile); err != nil {
		return d, err
	}
	if opts.NoJailer {
		d.conf.Config.Firecracker.Jail = false
	}
	if err := d.conf.CheckHost(config.DetectHost(opts.Layout.State)); err != nil {
		return d, errdefs.Wrap(err, "read %s", opts.ConfigFile)
	}
	if err := d.setLevel(); err != nil {
		return d, err
	}
	if err := d.lockState(); err != nil {
		return d, err
	}
	svc, err := d.wire(ctx)
	if err != nil {
		return d, err
	}
	if err := svc.restore(ctx); err != nil {
		return d, err
	}
	if err := d.listen(); err != nil {
		return d, err
	}
	d.server = &http.Server{
		Handler:           d.routes(svc),
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	return d, nil
}

func (d *Daemon) setLevel() error {
	level := d.conf.Config.LogLevel
	if env := os.Getenv(paths.EnvLogLevel); env != "" {
		level = env
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return errdefs.Invalid("log level %q is not known", level).WithHint("use debug, info, warn or error")
	}
	if d.opts.LogLevel != nil {
		d.opts.LogLevel.Set(l)
	}
	return nil
}

// lockState makes the state directory and keeps every other daemon out of it.
func (d *Daemon) lockState() error {
	dir := d.opts.Layout.State
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errdefs.Wrap(err, "make the state directory")
	}
	if err := protect(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(d.opts.Layout.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return errdefs.Wrap(err, "open the lock file")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		_ = f.Close()
		return errdefs.Precondition("another bangerd (pid %s) uses %s", pid[:n], dir).
			WithHint("stop it (banger daemon stop), or use another directory: set %s", paths.EnvStateDir)
	}
	d.onClose = append(d.onClose, func(context.Context) error { return f.Close() })
	if err := f.Truncate(0); err != nil {
		return errdefs.Wrap(err, "write the lock file")
	}
	if _, err := fmt.Fprintf(f, "%d", os.Getpid()); err != nil {
		return errdefs.Wrap(err, "write the lock file")
	}
	return nil
}

// protect closes the state directory to others. One that is open to them and holds
// what is not ours is somebody's by mistake, /tmp or a home: it is left alone.
func protect(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return errdefs.Wrap(err, "protect the state directory")
	}
	if st.Mode().Perm()&0o077 == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errdefs.Wrap(err, "protect the state directory")
	}
	ours := func(e fs.DirEntry) bool { return e.Name() == paths.LockFile || e.Name() == paths.DatabaseFile }
	other := func(e fs.DirEntry) bool { return e.Name() != paths.DaemonLogFile } // the CLI's, from before our start
	if !slices.ContainsFunc(entries, ours) && slices.ContainsFunc(entries, other) {
		return errdefs.Precondition("%s is open to other users and holds files that are not banger's", dir).
			WithHint("use a directory of its own: set %s", paths.EnvStateDir)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return errdefs.Wrap(err, "protect the state directory")
	}
	return nil
}

// listen binds the API socket. The lock keeps other daemons out of the state
// directory, but a socket may lie anywhere: one that answers is not ours to take.
func (d *Daemon) listen() error {
	socket := d.opts.Layout.Socket
	if err := d.socketDir(filepath.Dir(socket)); err != nil {
		return err
	}
	if st, err := os.Lstat(socket); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return errdefs.Precondition("%s exists and is not a socket", socket).WithHint("move it away")
		}
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return errdefs.Precondition("another daemon serves on %s", socket).
				WithHint("stop it (banger daemon stop), or use another socket (bangerd serve --socket)")
		}
		if err := os.Remove(socket); err != nil {
			return errdefs.Wrap(err, "remove a stale socket")
		}
	}
	// The mode that a socket has when it is bound is that of its file: nobody may
	// connect in between.
	conf := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := conf.Listen(context.Background(), "unix", socket)
	if err != nil {
		return errdefs.Wrap(err, "listen on %s", socket)
	}
	d.listener = &peerListener{Listener: l, log: d.log, group: d.opts.Group}
	d.onClose = append(d.onClose, func(context.Context) error { return l.Close() })
	if d.opts.Group != 0 {
		// By now the process's mask has no say in the mode.
		if err := errors.Join(os.Lchown(socket, -1, d.opts.Group), os.Chmod(socket, 0o660)); err != nil {
			return errdefs.Wrap(err, "give the socket to the daemon's group")
		}
	}
	return nil
}

// socketDir makes the socket's directory. The system's is the daemon's group's to pass;
// any other is whoever's chose it.
func (d *Daemon) socketDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errdefs.Wrap(err, "make the socket's directory")
	}
	if d.opts.Group == 0 || dir != filepath.Dir(paths.SystemSocket) {
		return nil
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o001 == 0 { // not everybody's anyway
		err = errors.Join(os.Chown(dir, -1, d.opts.Group), os.Chmod(dir, 0o750))
	}
	if err != nil {
		return errdefs.Wrap(err, "give the socket's directory to the daemon's group")
	}
	return nil
}

// Serve answers requests until ctx ends or a client asks for shutdown.
func (d *Daemon) Serve(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- d.server.Serve(d.listener) }()
	d.log.InfoContext(ctx, "serving", logkey.Socket, d.opts.Layout.Socket, logkey.PID, os.Getpid())
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	case <-d.stopping:
	}
	return nil
}

// stop makes Serve return.
func (d *Daemon) stop() { d.stopOnce.Do(func() { close(d.stopping) }) }

// Close stops accepting, cancels operations and waits for them to undo, and closes
// everything in reverse order. VMs go on running.
func (d *Daemon) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	if d.server != nil {
		// Streams are long: what a client holds open does not keep us.
		grace, stop := context.WithTimeout(ctx, 200*time.Millisecond)
		if err := d.server.Shutdown(grace); err != nil {
			errs = append(errs, d.server.Close())
		}
		stop()
	}
	for _, fn := range slices.Backward(d.onClose) {
		errs = append(errs, fn(ctx))
	}
	return errors.Join(ignoreClosed(errs)...)
}

func ignoreClosed(errs []error) []error {
	return slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, net.ErrClosed) })
}
