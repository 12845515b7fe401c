// Package daemoncmd is bangerd's command line. It is the only package that
// imports internal/daemon.
//
// Most of its commands are for other programs: the CLI starts `serve` and
// `doctor`, the daemon starts the helpers.
package daemoncmd

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/daemon/fakevm"
	"banger/internal/daemon/usernet"
	"banger/internal/errdefs"
	"banger/internal/hypervisor/accel"
	"banger/internal/logkey"
	"banger/internal/paths"
	"banger/internal/sysexec"
	"banger/internal/systemd"
	"banger/internal/version"
)

const usage = `usage: bangerd COMMAND [flags]

commands:
  serve         run the daemon
  doctor        check this host (--json for programs)
  config show   print the configuration in force
  version       print the version

Users start it through the CLI: banger daemon start.
`

// Main runs bangerd and returns its exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	// The helpers come first: they are started on hot paths.
	switch args[0] {
	case "kvm-probe":
		return accel.ChildMain(args[1:])
	case "fakevm":
		return fakevm.ChildMain(args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch args[0] {
	case "serve":
		err = serve(ctx, args[1:], stderr)
	case "usernet":
		err = runUsernet(ctx, args[1:], stderr)
	case "doctor":
		return doctorMain(ctx, args[1:], stdout, stderr)
	case "config":
		err = showConfig(args[1:], stdout)
	case "version", "--version":
		v := version.Get()
		fmt.Fprintf(stdout, "bangerd %s\ncommit %s\nbuilt %s\n", v.Version, v.Commit, v.Date)
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
	default:
		err = errdefs.Invalid("bangerd has no command %q", args[0]).WithHint("bangerd help")
	}
	return report(stderr, err)
}

func report(stderr io.Writer, err error) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	if hint := errdefs.HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "try: %s\n", hint)
	}
	if errdefs.ClassOf(err) == errdefs.ClassInvalidArgument {
		return 2
	}
	return 1
}

// place holds the flags that say where a daemon lives.
type place struct{ state, socket, config string }

func (p *place) register(f *flag.FlagSet) {
	f.StringVar(&p.state, "state-dir", "", "state directory (default: this user's)")
	f.StringVar(&p.socket, "socket", "", "API socket (default: this user's)")
	f.StringVar(&p.config, "config", "", "config file (default: this user's)")
}

func (p *place) resolve() (paths.Layout, string, error) {
	layout, err := paths.Default()
	if p.state != "" {
		layout, err = paths.At(p.state)
	}
	if err != nil {
		return layout, "", err
	}
	if p.socket != "" {
		if layout.Socket, err = filepath.Abs(p.socket); err != nil {
			return layout, "", err
		}
	}
	file := p.config
	if file == "" {
		file = paths.ConfigFile()
	}
	return layout, file, nil
}

func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errdefs.Invalid("%w", err)
	}
	if f.NArg() > 0 {
		return errdefs.Invalid("unexpected argument %q", f.Arg(0))
	}
	return nil
}

func serve(ctx context.Context, args []string, stderr io.Writer) (err error) {
	var p place
	var readyFD int
	var group string
	f := flag.NewFlagSet("bangerd serve", flag.ContinueOnError)
	f.SetOutput(stderr)
	p.register(f)
	noJailer := f.Bool("no-jailer", false, "run Firecracker without its jailer, as firecracker.jail: false in the config says")
	f.IntVar(&readyFD, "ready-fd", 0, "descriptor to tell readiness or the error on (for the CLI)")
	f.StringVar(&group, "group", "", "group whose members may use the daemon, which gives them its rights")
	if err := parse(f, args); err != nil {
		return err
	}
	notify := systemd.Notifier()
	ready := announcer(readyFD)
	defer func() { ready(err) }()
	layout, file, err := p.resolve()
	if err != nil {
		return err
	}
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	self, agent, err := programs()
	if err != nil {
		return err
	}
	// What is private is made so by its mode. A stricter mask, as some shells have
	// it, would also hide kernels and images from the users that VMMs run as.
	syscall.Umask(0o022)
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	d, err := daemon.Open(ctx, daemon.Options{
		Layout: layout, ConfigFile: file, Self: []string{self}, AgentPath: agent, Log: log, LogLevel: level,
		Group: gid, NoJailer: *noJailer,
	})
	if err != nil {
		return err
	}
	ready(nil)
	tell := func(state string) {
		if err := notify(state); err != nil {
			log.WarnContext(ctx, "systemd is not told how the daemon is", logkey.Err, err)
		}
	}
	tell(systemd.Ready)
	err = d.Serve(ctx)
	tell(systemd.Stopping)
	return errors.Join(err, d.Close())
}

// groupID is the id of a group given by name or number; 0: none was given.
func groupID(group string) (int, error) {
	if group == "" {
		return 0, nil
	}
	gid, err := strconv.Atoi(group)
	if err != nil {
		g, lookErr := user.LookupGroup(group)
		if lookErr != nil {
			return 0, errdefs.NotFound("find the daemon's group: %w", lookErr).WithHint("groupadd --system %s", group)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return 0, errdefs.Invalid("the id of group %s is %q", group, g.Gid)
		}
	}
	if gid <= 0 {
		return 0, errdefs.Invalid("group %s cannot be the daemon's", group).WithHint("leave --group out: root may use every daemon")
	}
	return gid, nil
}

// announcer returns a function that tells the starter once how the start went.
func announcer(fd int) func(error) {
	if fd <= 2 {
		return func(error) {}
	}
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ready")
	told := false
	return func(err error) {
		if told {
			return
		}
		told = true
		if err == nil {
			fmt.Fprintln(f, "ready")
		} else if b, merr := json.Marshal(api.Detail(err)); merr == nil {
			fmt.Fprintf(f, "error: %s\n", b)
		}
		_ = f.Close()
	}
}

// programs finds this program, for the helpers, and the agent, which lies beside
// it or in ../lib/banger. self is known even when the agent is not found.
func programs() (self, agent string, err error) {
	if self, err = os.Executable(); err != nil {
		return "", "", fmt.Errorf("find this program: %w", err)
	}
	dir := filepath.Dir(self)
	for _, p := range []string{filepath.Join(dir, paths.AgentProgram), filepath.Join(dir, "..", "lib", "banger", paths.AgentProgram)} {
		if _, err := os.Stat(p); err == nil {
			return self, filepath.Clean(p), nil
		}
	}
	if agent, err = sysexec.Look(paths.AgentProgram); err == nil {
		return self, agent, nil
	}
	return self, "", errdefs.Unavailable("%s is not beside %s", paths.AgentProgram, self).
		WithHint("install the three programs together: make build leaves them in bin/")
}

func runUsernet(ctx context.Context, args []string, stderr io.Writer) error {
	var socket string
	f := flag.NewFlagSet("bangerd usernet", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&socket, "socket", "", "control socket")
	if err := parse(f, args); err != nil {
		return err
	}
	return usernet.Serve(ctx, usernet.HelperConfig{
		Socket: socket, Log: slog.New(slog.NewTextHandler(stderr, nil)),
	})
}

func showConfig(args []string, stdout io.Writer) error {
	if len(args) == 0 || args[0] != "show" {
		return errdefs.Invalid("config has one command: show")
	}
	var p place
	f := flag.NewFlagSet("bangerd config show", flag.ContinueOnError)
	p.register(f)
	if err := parse(f, args[1:]); err != nil {
		return err
	}
	layout, file, err := p.resolve()
	if err != nil {
		return err
	}
	loaded, err := config.Load(file)
	if err != nil {
		return err
	}
	return loaded.Show(stdout, config.DetectHost(layout.State))
}

func doctorMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var p place
	var asJSON bool
	f := flag.NewFlagSet("bangerd doctor", flag.ContinueOnError)
	f.SetOutput(stderr)
	p.register(f)
	f.BoolVar(&asJSON, "json", false, "print JSON")
	if err := parse(f, args); err != nil {
		return report(stderr, err)
	}
	layout, file, err := p.resolve()
	if err != nil {
		return report(stderr, err)
	}
	self, agent, agentErr := programs()
	if self == "" {
		return report(stderr, agentErr)
	}
	results := daemon.Doctor(ctx, daemon.Options{Layout: layout, ConfigFile: file, Self: []string{self}, AgentPath: agent})
	if asJSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(results); err != nil {
			return report(stderr, err)
		}
	} else {
		for _, r := range results {
			fmt.Fprintf(stdout, "%-5s %-20s %s\n", r.Status, r.Name, r.Detail)
			if r.Fix != "" {
				fmt.Fprintf(stdout, "      %-20s try: %s\n", "", r.Fix)
			}
		}
	}
	if daemon.Failed(results) {
		return 1
	}
	return 0
}
