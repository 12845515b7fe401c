package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/boot"
	"banger/internal/guest/agent/machine"
	"banger/internal/guest/agent/port"
	"banger/internal/guest/agent/proc"
	"banger/internal/guest/agent/record"
	"banger/internal/guest/agent/serve"
	"banger/internal/version"
)

// portTimeout is how long the port may take to appear.
const portTimeout = 60 * time.Second

// Limits of open files that commands get.
const (
	softFiles = 16 << 10
	hardFiles = 512 << 10
)

// serveHost is the life of the agent proper.
func serveHost(ctx context.Context, log *slog.Logger) error {
	state := boot.State{Init: "none"}
	if err := json.Unmarshal([]byte(os.Getenv(stateEnv)), &state); err != nil {
		return errdefs.Wrap(err, "read the boot's state")
	}
	// Executed through a link in /proc, the process is called "exe".
	_ = os.WriteFile("/proc/self/comm", []byte("banger-agent"), 0)
	spawner := proc.NewSpawner()
	if err := spawner.Protect(); err != nil {
		log.Warn("the agent is not protected", "err", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: softFiles, Max: hardFiles}); err != nil {
		log.Warn("the limit of open files stays", "err", err)
	}
	if state.Init != "none" {
		if err := ownCgroup(); err != nil {
			log.Warn("the agent shares the root's control group", "err", err)
		}
	}
	late := make(chan struct{})
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() {
		defer close(late)
		if dir := boot.LateModules(); dir != nil {
			if err := boot.LoadLate(dir); err != nil {
				log.Warn("a module is missing", "err", err)
			}
		}
	})
	s := serve.New(serve.Deps{
		Log: log, Spawner: spawner, Users: proc.NewUsers("/etc"), Records: record.Records{Dir: record.Dir},
		Machine: machine.New(log, spawner, state, late), RootError: state.Error,
	})
	if err := s.Open(); err != nil {
		return err
	}
	defer s.Close()
	var p interface {
		host
		io.Closer
	}
	var err error
	if state.MMIO {
		p, err = port.Listen(guest.VsockPort)
	} else {
		p, err = port.Open(guest.PortName, portTimeout)
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return accept(ctx, p, s, func() guest.Ready { return ready(state) })
}

// host is a port that can tell when a host is there.
type host interface {
	guest.Port
	WaitConnected() error
}

// accept serves one host after the other.
func accept(ctx context.Context, p host, s *serve.Server, ready func() guest.Ready) error {
	channel := guest.NewChannel(p)
	for {
		session, err := channel.Accept(ready)
		if errors.Is(err, io.EOF) {
			if err := p.WaitConnected(); err != nil {
				return errdefs.Wrap(err, "wait for the host")
			}
			continue
		}
		if err != nil {
			return errdefs.Wrap(err, "accept the host")
		}
		serveSession(ctx, session, s)
	}
}

// serveSession serves the streams of a session until it ends. Commands that run
// then get their hang-up from the end of their streams. Nothing is waited for: a
// request that is stuck in a file system must not keep the next host out.
func serveSession(ctx context.Context, session *guest.Incoming, s *serve.Server) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer session.Close()
	for {
		conn, err := session.Accept()
		if err != nil {
			return
		}
		go s.Serve(ctx, conn)
	}
}

func ready(state boot.State) guest.Ready {
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	return guest.Ready{
		Protocol:     guest.ProtocolVersion,
		AgentVersion: version.String(),
		Release:      state.Release,
		RootReady:    state.Error == "",
		InitSystem:   state.Init,
		Error:        state.Error,
		UptimeMillis: up.Nano() / int64(time.Millisecond),
	}
}
