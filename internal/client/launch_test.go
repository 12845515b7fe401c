package client_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"net"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// The test binary plays bangerd when a link of that name, beside it, is started.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == paths.DaemonProgram {
		os.Exit(playDaemon())
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	link := filepath.Join(filepath.Dir(self), paths.DaemonProgram)
	if err := os.Symlink(self, link); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.Remove(link)
	os.Exit(code)
}

// played is the daemon that playDaemon serves.
type played struct {
	bangerv1connect.UnimplementedDaemonServiceHandler
	end context.CancelFunc
}

func (p played) Shutdown(context.Context, *connect.Request[bangerv1.ShutdownRequest]) (*connect.Response[bangerv1.ShutdownResponse], error) {
	p.end()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}

func playDaemon() int {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	state, socket, fd := f.String("state-dir", "", ""), f.String("socket", "", ""), f.Int("ready-fd", 0, "")
	_ = f.Parse(os.Args[2:])
	ready := os.NewFile(uintptr(*fd), "ready")
	protocol := api.Protocol
	switch os.Getenv("PLAY") {
	case "older":
		protocol--
	case "newer":
		protocol++
	case "silent":
		fmt.Println("first line\nqemu ate my disk")
		return 1
	case "error":
		fmt.Fprintln(ready, `error: {"class":"failed_precondition","message":"the database is newer","hint":"upgrade"}`)
		_ = ready.Close()
		_ = os.WriteFile(filepath.Join(*state, "ended"), nil, 0o600)
		return 1
	case "nonsense":
		fmt.Fprintln(ready, "hello")
		return 0
	}
	fmt.Printf("started in %s\n", mustWd())
	lock, err := os.OpenFile(filepath.Join(*state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Fprintln(ready, `error: {"class":"busy","message":"another daemon holds the lock"}`)
		return 1
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		fmt.Fprintln(ready, "error: {}")
		return 1
	}
	ctx, end := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(played{end: end}))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderVersion, "played")
		w.Header().Set(api.HeaderProtocol, fmt.Sprint(protocol))
		mux.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	fmt.Fprintln(ready, "ready")
	_ = ready.Close()
	<-ctx.Done()
	_ = srv.Shutdown(context.Background())
	return 0
}

func mustWd() string { d, _ := os.Getwd(); return d }

func layoutIn(t *testing.T) paths.Layout {
	t.Helper()
	l, err := paths.At(filepath.Join(shortDir(t), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.StopDaemon(context.Background(), l.Socket, false) })
	return l
}

func TestStartDaemonsAtOnce(t *testing.T) {
	l := layoutIn(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := client.StartDaemon(t.Context(), l); err != nil {
				t.Errorf("StartDaemon: %v", err)
			}
		})
	}
	wg.Wait()
	log, err := os.ReadFile(l.DaemonLog())
	if err != nil || strings.Count(string(log), "started in /\n") != 1 {
		t.Errorf("log: %q, %v", log, err)
	}
	peer, err := client.PeerOf(t.Context(), l.Socket)
	if err != nil || peer.UID != os.Geteuid() || peer.PID == os.Getpid() {
		t.Errorf("peer %+v, %v", peer, err)
	}
	if err := client.StopDaemon(t.Context(), l.Socket, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/exe", peer.PID)); err == nil {
		t.Error("the daemon's process is still there")
	}
	if err := client.StopDaemon(t.Context(), l.Socket, false); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("second stop: %v", err)
	}
	// The lock of the starters must not live on in the daemon.
	if err := client.StartDaemon(t.Context(), l); err != nil {
		t.Errorf("start again: %v", err)
	}
}

func TestStartDaemonFailures(t *testing.T) {
	for play, want := range map[string]struct {
		class      error
		text, hint string
	}{
		"silent":   {errdefs.ErrUnavailable, "ended before it was ready: qemu ate my disk", "bangerd.log"},
		"error":    {errdefs.ErrFailedPrecondition, "start the daemon: the database is newer", "upgrade"},
		"nonsense": {errdefs.ErrInternal, `"hello"`, ""},
	} {
		t.Run(play, func(t *testing.T) {
			t.Setenv("PLAY", play)
			l := layoutIn(t)
			err := client.StartDaemon(t.Context(), l)
			if !errors.Is(err, want.class) || !strings.Contains(err.Error(), want.text) || !strings.Contains(errdefs.HintOf(err), want.hint) {
				t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
			}
			if _, err := os.Stat(filepath.Join(l.State, "ended")); play == "error" && err != nil {
				t.Errorf("the daemon that failed was not waited for: %v", err)
			}
		})
	}
	deep, err := paths.At(filepath.Join(shortDir(t), strings.Repeat("deep", 30)))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.StartDaemon(t.Context(), deep); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("deep: %v", err)
	}
	if _, err := os.Stat(deep.State); err == nil {
		t.Error("a directory was made for a socket that cannot be")
	}
}

// A daemon that somebody else started first is as good.
func TestStartDaemonThatIsRunning(t *testing.T) {
	l := layoutIn(t)
	if err := client.StartDaemon(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PLAY", "error")
	if err := client.StartDaemon(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// A daemon of another protocol can be ended all the same.
func TestStopDaemonOfAnotherProtocol(t *testing.T) {
	for _, play := range []string{"older", "newer"} {
		t.Setenv("PLAY", play)
		l := layoutIn(t)
		if err := client.StartDaemon(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if _, err := client.New(l.Socket).ListVMs(t.Context()); !errors.Is(err, errdefs.ErrUnsupported) ||
			!strings.Contains(errdefs.HintOf(err), "banger daemon stop") {
			t.Errorf("%s: %v (hint %q)", play, err, errdefs.HintOf(err))
		}
		if err := client.StopDaemon(t.Context(), l.Socket, true); err != nil {
			t.Errorf("%s: %v", play, err)
		}
	}
}

func TestReplaceRunningDaemon(t *testing.T) {
	l := layoutIn(t)
	if err := client.StartDaemon(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	before, err := client.PeerOf(t.Context(), l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	c := client.Open(client.Options{Sockets: []string{l.Socket}, Version: "newer", Outdated: func(ctx context.Context, r client.Remote) (bool, error) {
		if err := client.StopDaemon(ctx, r.Socket, true); err != nil {
			return false, err
		}
		return true, client.StartDaemon(ctx, l)
	}})
	if _, err := c.Info(t.Context()); errdefs.ClassOf(err) != errdefs.ClassUnsupported {
		t.Errorf("Info: %v", err) // the played daemon does not implement it
	}
	after, err := client.PeerOf(t.Context(), l.Socket)
	if err != nil || after.PID == before.PID {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
}
