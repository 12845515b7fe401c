package ports

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/store/storetest"
)

// world is a service over a real database, and guests that answer every port with its
// number and what they are sent.
type world struct {
	t   *testing.T
	db  *store.Store
	svc *Service
	cap vmcap.Capability

	mu     sync.Mutex
	refuse error         // of opening a stream
	silent chan struct{} // not nil: guests say nothing until it is closed
	open   int           // streams
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, db: storetest.Open(t, filepath.Join(t.TempDir(), paths.DatabaseFile))}
	storetest.Kernel(t, w.db, model.Kernel{})
	storetest.Image(t, w.db, model.Image{})
	w.start()
	t.Cleanup(func() { _ = w.svc.Close() })
	return w
}

// start makes a service as a new daemon does.
func (w *world) start() {
	w.svc = New(Deps{
		Store: w.db, Open: w.dial, Prefix: netip.MustParsePrefix("127.43.0.0/16"),
		Name: func(id string) string {
			v, _ := w.db.GetVM(context.Background(), id)
			return v.Name
		},
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	w.cap = w.svc.Capability()
}

func (w *world) dial(_ context.Context, _ string, req guest.Request) (net.Conn, error) {
	w.mu.Lock()
	refuse, silent := w.refuse, w.silent
	w.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	host, agent := net.Pipe()
	go func() {
		defer agent.Close()
		out, in := guest.NewFrameWriter(agent), guest.NewFrameReader(agent)
		if silent != nil {
			<-silent
			return
		}
		if out.Control(guest.Control{Type: guest.ControlStarted}) != nil {
			return
		}
		w.count(1)
		defer w.count(-1)
		_ = out.Write(guest.ChanStdout, fmt.Appendf(nil, "%d:", req.Dial.Port))
		for {
			_, p, err := in.Next()
			if err != nil {
				return
			}
			_ = out.Write(guest.ChanStdout, p)
			if len(p) == 0 {
				_ = out.Control(guest.Control{Type: guest.ControlDone})
				return
			}
		}
	}()
	return host, nil
}

func (w *world) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// vm makes the row of a VM with these ports.
func (w *world) vm(name string, ports ...string) *model.VM {
	w.t.Helper()
	v, err := w.tryVM(name, ports...)
	w.must(err)
	return v
}

func (w *world) tryVM(name string, ports ...string) (*model.VM, error) {
	w.t.Helper()
	ctx := context.Background()
	v := &model.VM{Name: name, Spec: model.VMSpec{Net: model.NetUser}}
	req := &bangerv1.CreateRequest{}
	for _, p := range ports {
		parsed, err := model.ParsePort(p)
		w.must(err)
		m := &bangerv1.Port{HostPort: uint32(parsed.Host), GuestPort: uint32(parsed.Guest)}
		if parsed.Addr.IsValid() {
			m.Address = parsed.Addr.String()
		}
		req.Ports = append(req.Ports, m)
	}
	if err := w.cap.Preflight(ctx, v, req); err != nil {
		return nil, err
	}
	made := storetest.VM(w.t, w.db, *v)
	for i := range v.Ports {
		v.Ports[i].VMID = made.ID
	}
	made.Ports = v.Ports
	return &made, w.cap.Reserve(ctx, &made)
}

func (w *world) run(v *model.VM) {
	w.t.Helper()
	w.must(w.cap.Prepare(context.Background(), v))
	w.must(w.cap.Running(context.Background(), v))
}

// ports are what the database says of a VM.
func (w *world) ports(v *model.VM) []model.Port {
	w.t.Helper()
	all, err := w.db.Ports(context.Background())
	w.must(err)
	return of(v.ID, all)
}

// freePort is a port of the host that nobody has.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := bind(model.Port{Guest: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	return l.port()
}

// ask sends something to an address of the host and returns all that comes back.
func ask(addr string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func (w *world) answers(addr, want string) {
	w.t.Helper()
	if got, err := ask(addr); got != want || err != nil {
		w.t.Errorf("%s answers %q, %v; want %q", addr, got, err, want)
	}
}

func (w *world) refused(addr string) {
	w.t.Helper()
	if got, err := ask(addr); !errors.Is(err, unix.ECONNREFUSED) {
		w.t.Errorf("%s answers %q, %v", addr, got, err)
	}
}

func loopback(port uint16) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// A port is listened on while its VM runs, on the loopback of both kinds and on the
// VM's own address, and no longer.
func TestForwarding(t *testing.T) {
	w := newWorld(t)
	v := w.vm("web", "8099")
	p := w.ports(v)[0]
	if p.Host == 0 || p.Guest != 8099 {
		t.Fatalf("the port is %+v", p)
	}
	w.refused(loopback(p.Host))
	w.must(w.cap.Prepare(context.Background(), v))
	early := make(chan string, 1)
	go func() { got, err := ask(loopback(p.Host)); early <- fmt.Sprint(got, err) }()
	w.must(w.cap.Running(context.Background(), v))
	if got := <-early; got != "8099:hello<nil>" {
		t.Errorf("a connection that came while the guest booted: %s", got)
	}
	own, err := w.svc.Addresses(context.Background())
	w.must(err)
	at := []string{loopback(p.Host), netip.AddrPortFrom(own[v.ID], 8099).String()}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		_ = l.Close()
		at = append(at, fmt.Sprintf("[::1]:%d", p.Host))
	}
	for _, addr := range at {
		w.answers(addr, "8099:hello")
	}
	for range 2 {
		w.must(w.cap.CleanUp(context.Background(), v))
		for _, addr := range at {
			w.refused(addr)
		}
	}
	w.run(v)
	w.answers(at[1], "8099:hello")
}

// Ports come and go while a VM runs; connections go with them.
func TestAddAndRemove(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.vm("web")
	w.run(v)
	a, b := freePort(t), freePort(t)
	w.must(w.svc.Add(ctx, v, true, []model.Port{{Host: a, Guest: 8097}, {Host: b, Guest: 8097}}))
	own, err := w.svc.Addresses(ctx)
	w.must(err)
	ownAt := netip.AddrPortFrom(own[v.ID], 8097).String()
	w.answers(loopback(a), "8097:hello")
	w.answers(loopback(b), "8097:hello")
	w.answers(ownAt, "8097:hello")

	c, err := net.Dial("tcp", loopback(a))
	w.must(err)
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	w.must(w.svc.Remove(ctx, v, []model.Port{{Host: a}}))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection through it reads %v", err)
	}
	w.refused(loopback(a))
	w.answers(ownAt, "8097:hello") // the other still leads there
	if err := w.svc.Remove(ctx, v, []model.Port{{Host: b}, {Host: a}}); !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) == "" {
		t.Errorf("removed again: %v", err)
	}
	w.answers(loopback(b), "8097:hello")
	w.must(w.svc.Remove(ctx, v, []model.Port{{Host: b}}))
	w.refused(loopback(b))
	w.refused(ownAt)
}

// What cannot be had is refused before anything is changed, saying who has it.
func TestTakenPorts(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	first := w.vm("first", fmt.Sprintf("%d:80", freePort(t)))
	taken := w.ports(first)[0].Host
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	defer foreign.Close()
	theirs := foreign.Addr().(*net.TCPAddr).AddrPort().Port()
	running := w.vm("running")
	w.run(running)
	stopped := w.vm("stopped")
	was := w.ports(first)
	for _, c := range []struct {
		ports []string
		want  error
		says  string
	}{
		{[]string{fmt.Sprintf("%d:81", taken)}, errdefs.ErrAlreadyExists, `vm "first"`},
		{[]string{"82", fmt.Sprintf("127.0.0.1:%d:81", taken)}, errdefs.ErrAlreadyExists, `vm "first"`},
		{[]string{fmt.Sprintf("%d:81", theirs)}, errdefs.ErrFailedPrecondition, fmt.Sprintf("(pid %d)", os.Getpid())},
		{[]string{"82", fmt.Sprintf("%d:81", theirs)}, errdefs.ErrFailedPrecondition, "is taken"},
		{[]string{"192.0.2.1:8080:80"}, errdefs.ErrUnavailable, "not an address of this host"},
		{[]string{"9999:80", "9999:81"}, errdefs.ErrInvalidArgument, "twice"},
	} {
		var ports []model.Port
		for _, text := range c.ports {
			p, err := model.ParsePort(text)
			w.must(err)
			ports = append(ports, p)
		}
		_, created := w.tryVM("other", c.ports...)
		for verb, err := range map[string]error{
			"create": created, "add to a running one": w.svc.Add(ctx, running, true, slices.Clone(ports)),
			"add to a stopped one": w.svc.Add(ctx, stopped, false, slices.Clone(ports)),
		} {
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%s with %v: %v", verb, c.ports, err)
			}
			if c.want != errdefs.ErrInvalidArgument && errdefs.HintOf(err) == "" {
				t.Errorf("%s with %v: no hint", verb, c.ports)
			}
		}
	}
	all, err := w.db.Ports(ctx)
	w.must(err)
	if !slices.Equal(all, was) {
		t.Errorf("ports are %v, were %v", all, was)
	}
	if _, err := w.db.FindVM(ctx, "other"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a VM was made: %v", err)
	}
	// One that was taken while the VM was stopped keeps it from starting.
	blocker, err := net.Listen("tcp", loopback(taken))
	w.must(err)
	defer blocker.Close()
	if err := w.cap.Prepare(ctx, first); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("start with a port that is taken: %v", err)
	}
}

// A new daemon takes over the ports of VMs that run; one that is taken meanwhile is
// told of, and the others go on.
func TestRestore(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v := w.vm("web", "8096", "8095")
	w.run(v)
	w.must(w.svc.Close())
	p := w.ports(v)
	w.refused(loopback(p[0].Host))
	blocker, err := net.Listen("tcp", loopback(p[1].Host))
	w.must(err)
	w.start()
	w.must(w.cap.Restore(ctx, []*model.VM{v}))
	w.answers(loopback(p[0].Host), fmt.Sprintf("%d:hello", p[0].Guest))
	describe, err := w.cap.Describe(ctx)
	w.must(err)
	var out bangerv1.VM
	describe(v, &out)
	if len(out.Ports) != 2 || out.Ports[0].Problem != "" || !strings.Contains(out.Ports[1].Problem, "is taken") || len(out.Addresses) != 1 {
		t.Errorf("described as %v", &out)
	}
	w.must(blocker.Close())
	w.must(w.cap.CleanUp(ctx, v))
	w.run(v)
	w.answers(loopback(p[1].Host), fmt.Sprintf("%d:hello", p[1].Guest))
}

// A guest that cannot be reached, or says nothing, keeps no client waiting for ever.
func TestGuestThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	v := w.vm("web", "8094")
	w.run(v)
	p := w.ports(v)[0]
	w.mu.Lock()
	w.refuse = errdefs.Unavailable("the guest is paused")
	w.mu.Unlock()
	if got, err := ask(loopback(p.Host)); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("the client reads %q, %v", got, err)
	}
	w.mu.Lock()
	w.refuse, w.silent = nil, make(chan struct{})
	w.mu.Unlock()
	got := make(chan error, 1)
	go func() { _, err := ask(loopback(p.Host)); got <- err }()
	// The time that a guest has is the context's, which ends early with the VM.
	w.must(w.cap.CleanUp(context.Background(), v))
	if err := <-got; err == nil {
		t.Error("the client of a VM that ended was answered")
	}
	close(w.silent)
}

// A VM has so many connections under way, and the next waits for one to end.
func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t)
	v := w.vm("web", "8093")
	w.run(v)
	p := w.ports(v)[0]
	var conns []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", loopback(p.Host))
		w.must(err)
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	next, err := net.Dial("tcp", loopback(p.Host))
	w.must(err)
	defer next.Close()
	_ = next.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := next.Read(make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more is answered: %d bytes, %v", n, err)
	}
	w.mu.Lock()
	if w.open != maxConns {
		t.Errorf("%d streams are open", w.open)
	}
	w.mu.Unlock()
	_ = conns[0].Close()
	_ = next.SetReadDeadline(time.Now().Add(20 * time.Second))
	var b [5]byte
	if _, err := io.ReadFull(next, b[:]); err != nil || !bytes.Equal(b[:], []byte("8093:")) {
		t.Errorf("when one has ended: %q, %v", b, err)
	}
}

func TestOwnAddresses(t *testing.T) {
	prefix := netip.MustParsePrefix("127.43.0.0/28")
	used := map[netip.Addr]bool{}
	for i := range 14 { // without the first and the last
		a, err := choose(prefix, fmt.Sprint(i), used)
		if err != nil || used[a] || !prefix.Contains(a) || a == prefix.Addr() || a == netip.MustParseAddr("127.43.0.15") {
			t.Fatalf("address %v, %v; used %v", a, err, used)
		}
		if again, _ := choose(prefix, fmt.Sprint(i), used); again != a {
			t.Errorf("%v the first time, %v the second", a, again)
		}
		used[a] = true
	}
	if a, err := choose(prefix, "x", used); !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" {
		t.Errorf("one more: %v, %v", a, err)
	}
}

// A VM on the bridge has an address already.
func TestNoOwnAddressOnTheBridge(t *testing.T) {
	w := newWorld(t)
	v := storetest.VM(t, w.db, model.VM{Name: "web", Spec: model.VMSpec{Net: model.NetBridge}})
	w.must(w.svc.Add(context.Background(), &v, false, []model.Port{{Guest: 80}}))
	own, err := w.svc.Addresses(context.Background())
	if err != nil || len(own) != 0 {
		t.Errorf("own addresses %v, %v", own, err)
	}
}
