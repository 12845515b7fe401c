package cli

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/paths"
	"banger/internal/systemd"
	"banger/internal/version"
)

// app is what all commands share: the streams, what is known of them, and the
// one client.
type app struct {
	in, out, err          *os.File
	inTTY, outTTY, errTTY bool
	color                 bool

	socket string // of --socket or the environment; empty: the usual ones

	status *status // the stage line on stderr; does nothing unless that and stdout are terminals
	cached *client.Client
}

func newApp(stdin, stdout, stderr *os.File) *app {
	a := &app{in: stdin, out: stdout, err: stderr}
	a.inTTY = term.IsTerminal(int(stdin.Fd()))
	a.outTTY = term.IsTerminal(int(stdout.Fd()))
	a.errTTY = term.IsTerminal(int(stderr.Fd()))
	a.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	// Where the output goes elsewhere, nothing but what matters is said beside it.
	a.status = newStatus(stderr, a.errTTY && a.outTTY)
	return a
}

func (a *app) close() {
	if a.cached != nil {
		a.cached.Close()
	}
}

// colour is a terminal attribute.
type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	bold   colour = "1"
	dim    colour = "2"
)

// paint colours text that goes to stderr.
func (a *app) paint(c colour, text string) string { return paint(a.color && a.errTTY, c, text) }

// paintOut colours text that goes to stdout.
func (a *app) paintOut(c colour, text string) string { return paint(a.color && a.outTTY, c, text) }

func paint(on bool, c colour, text string) string {
	if !on {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// note tells the person at the terminal something; nobody else.
func (a *app) note(format string, args ...any) {
	if a.status.on {
		a.status.clear()
		fmt.Fprintln(a.err, a.paint(dim, oneLine(fmt.Sprintf(format, args...))))
	}
}

// terminal reports whether a shell could be used: both ends are terminals.
func (a *app) terminal() bool { return a.inTTY && a.outTTY }

// warn says something that matters even when nobody watches.
func (a *app) warn(format string, args ...any) {
	a.status.clear()
	fmt.Fprintln(a.err, a.paint(yellow, "note:")+" "+oneLine(fmt.Sprintf(format, args...)))
}

// notice passes on what the daemon wants its user to know.
func (a *app) notice(n *bangerv1.Notice) {
	a.warn("%s", n.GetMessage())
	a.try(n.GetHint())
}

// layout is where this user's own daemon lives. A socket named by hand takes the
// place of the usual one.
func (a *app) layout() (paths.Layout, error) {
	l, err := paths.Default()
	if err == nil && a.socket != "" {
		l.Socket = a.socket
	}
	return l, err
}

// client returns the client of the daemon, which is started if need be. Nothing
// is dialled before the first call.
func (a *app) client() (*client.Client, error) {
	if a.cached != nil {
		return a.cached, nil
	}
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	opts := client.Options{Sockets: a.sockets(l), Version: version.String(), Outdated: a.replaceDaemon(l), Notice: a.notice}
	if a.mayStart() {
		opts.Missing = func(ctx context.Context) error {
			a.note("starting the daemon")
			return client.StartDaemon(ctx, l)
		}
	}
	a.cached = client.Open(opts)
	return a.cached, nil
}

// quietClient never starts or replaces a daemon.
func (a *app) quietClient() (*client.Client, error) {
	l, err := a.layout()
	if err != nil {
		return nil, err
	}
	return client.Open(client.Options{Sockets: a.sockets(l), AnyProtocol: true}), nil
}

// sockets are the candidates in order: the one named by hand alone, else the
// user's own daemon and the system's. A state directory named by hand means its
// own daemon.
func (a *app) sockets(l paths.Layout) []string {
	if a.socket != "" || os.Getenv(paths.EnvStateDir) != "" || l.Socket == paths.SystemSocket {
		return []string{l.Socket}
	}
	return []string{l.Socket, paths.SystemSocket}
}

// mayStart reports whether a daemon that is not there is ours to start: behind a
// socket named by hand somebody else's is expected, unless its state directory
// was named too.
func (a *app) mayStart() bool { return a.socket == "" || os.Getenv(paths.EnvStateDir) != "" }

// replaceDaemon restarts a daemon of another build, if it is this user's own and
// does nothing that a restart would cut off. VMs go on running. A busy one will do,
// as long as it speaks our protocol.
func (a *app) replaceDaemon(l paths.Layout) func(context.Context, client.Remote) (bool, error) {
	return func(ctx context.Context, r client.Remote) (bool, error) {
		if r.Socket != l.Socket || !a.mayStart() {
			return false, nil
		}
		if systemd.RunsDaemon(l) {
			// It would come back as it is.
			if r.Protocol != api.Protocol {
				return false, errdefs.Precondition("the daemon is version %s, which banger %s cannot work with", r.Version, version.String()).
					WithHint("install this version for systemd as well: banger system install")
			}
			return false, nil
		}
		peer, err := client.PeerOf(ctx, r.Socket)
		if err != nil || peer.UID != os.Geteuid() {
			return false, err
		}
		err = client.StopDaemon(ctx, r.Socket, true)
		switch {
		case errdefs.ClassOf(err) == errdefs.ClassBusy && err != nil:
			if r.Protocol != api.Protocol {
				return false, errdefs.Wrap(err, "the daemon is version %s, which banger %s cannot work with, and it cannot be restarted now",
					r.Version, version.String())
			}
			a.warn("the daemon is version %s and not restarted as %s yet: %v", r.Version, version.String(), err)
			return false, nil
		case err != nil:
			return false, errdefs.Wrap(err, "restart the daemon")
		}
		a.note("restarting the daemon: it was version %s, banger is %s", r.Version, version.String())
		return true, client.StartDaemon(ctx, l)
	}
}
