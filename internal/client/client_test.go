package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// stub is a daemon of the test's making. Procedures it does not implement answer
// as unimplemented; all are recorded.
type stub struct {
	bangerv1connect.UnimplementedVMServiceHandler
	bangerv1connect.UnimplementedOperationServiceHandler
	bangerv1connect.UnimplementedDaemonServiceHandler

	version  string
	protocol int
	list     func() (*bangerv1.ListResponse, error)
	watch    func(context.Context, *connect.ServerStream[bangerv1.Operation]) error
	stream   http.HandlerFunc

	mu    sync.Mutex
	calls []string
}

// vms and ops keep the method sets of the services apart.
type vms struct{ *stub }
type ops struct{ *stub }

func (s vms) List(context.Context, *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	if s.list == nil {
		return connect.NewResponse(&bangerv1.ListResponse{}), nil
	}
	res, err := s.list()
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(res), nil
}
func (s vms) Create(context.Context, *connect.Request[bangerv1.CreateRequest]) (*connect.Response[bangerv1.Operation], error) {
	return connect.NewResponse(&bangerv1.Operation{Id: "op-1", State: "running"}), nil
}
func (s vms) Get(ctx context.Context, r *connect.Request[bangerv1.VMRef]) (*connect.Response[bangerv1.VM], error) {
	return s.UnimplementedVMServiceHandler.Get(ctx, r)
}
func (s ops) List(ctx context.Context, r *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.OperationList], error) {
	return s.UnimplementedOperationServiceHandler.List(ctx, r)
}
func (s ops) Get(ctx context.Context, r *connect.Request[bangerv1.OperationRef]) (*connect.Response[bangerv1.Operation], error) {
	return s.UnimplementedOperationServiceHandler.Get(ctx, r)
}
func (s ops) Watch(ctx context.Context, _ *connect.Request[bangerv1.OperationRef], out *connect.ServerStream[bangerv1.Operation]) error {
	if s.watch == nil {
		return api.ToConnect(errdefs.NotFound("no operation"))
	}
	return s.watch(ctx, out)
}

// serve runs the stub on a socket until the test ends, or stop is called.
func (s *stub) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewVMServiceHandler(vms{s}))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(ops{s}))
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(bangerv1connect.UnimplementedDaemonServiceHandler{}))
	mux.Handle(bangerv1connect.NewImageServiceHandler(bangerv1connect.UnimplementedImageServiceHandler{}))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(bangerv1connect.UnimplementedKernelServiceHandler{}))
	mux.HandleFunc("POST /v1/vms/{ref}/stream", func(w http.ResponseWriter, r *http.Request) { s.stream(w, r) })
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.calls = append(s.calls, r.URL.Path)
		s.mu.Unlock()
		if s.protocol != 0 {
			w.Header().Set(api.HeaderVersion, s.version)
			w.Header().Set(api.HeaderProtocol, fmt.Sprint(s.protocol))
		}
		mux.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	stop = sync.OnceFunc(func() { _ = srv.Close(); <-done })
	t.Cleanup(stop)
	return stop
}

func (s *stub) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// shortDir is a directory in which a socket's path is short enough.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, s *stub) string {
	t.Helper()
	if s.protocol == 0 {
		s.protocol = api.Protocol
	}
	socket := filepath.Join(shortDir(t), "s")
	s.serve(t, socket)
	return socket
}

func TestErrorsKeepClassHintAndOperation(t *testing.T) {
	s := &stub{list: func() (*bangerv1.ListResponse, error) {
		e := errdefs.NotFound("no vm %q", "x").WithHint("make one")
		e.Op = "op-7"
		return nil, e
	}}
	c := client.New(start(t, s))
	_, err := c.ListVMs(t.Context())
	if !errors.Is(err, errdefs.ErrNotFound) || err.Error() != `no vm "x"` || errdefs.HintOf(err) != "make one" || errdefs.OpOf(err) != "op-7" {
		t.Errorf("%#v", err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := shortDir(t)
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	long := filepath.Join(dir, strings.Repeat("x", paths.MaxSocketPath))
	for _, tc := range []struct {
		socket string
		want   error
		text   string
	}{
		{filepath.Join(dir, "none"), errdefs.ErrUnavailable, "does not exist"},
		{stale, errdefs.ErrUnavailable, "nothing listens"},
		{long, errdefs.ErrInvalidArgument, "the kernel allows 107"},
	} {
		_, err := client.New(tc.socket).ListVMs(t.Context())
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", tc.socket, err, errdefs.HintOf(err))
		}
		_, err = client.New(tc.socket).OpenStream(t.Context(), api.StreamPath("x"))
		if !errors.Is(err, tc.want) {
			t.Errorf("stream of %s: %v", tc.socket, err)
		}
	}
}

func TestFirstSocketThatAcceptsIsUsed(t *testing.T) {
	s := &stub{}
	socket := start(t, s)
	c := client.Open(client.Options{Sockets: []string{filepath.Join(shortDir(t), "none"), socket}})
	if _, err := c.ListVMs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Socket() != socket {
		t.Errorf("Socket() = %s", c.Socket())
	}
}

func TestMissingDaemonIsStartedOnce(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	starts := 0
	c := client.Open(client.Options{Sockets: []string{socket}, Missing: func(context.Context) error {
		starts++
		(&stub{protocol: api.Protocol}).serve(t, socket)
		return nil
	}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.ListVMs(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if starts != 1 {
		t.Errorf("started %d times", starts)
	}
	want := errors.New("no way")
	c = client.Open(client.Options{Sockets: []string{socket + "2"}, Missing: func(context.Context) error {
		return errdefs.Wrap(want, "start it")
	}})
	if _, err := c.ListVMs(t.Context()); !errors.Is(err, want) || err.Error() != "start it: no way" {
		t.Errorf("failed start: %v", err)
	}
}

// upgrade makes a client whose Outdated replaces the stub by one of version "new".
func upgrade(t *testing.T, socket string, stopOld func()) (*client.Client, *int, *stub) {
	fresh := &stub{version: "new", protocol: api.Protocol}
	asked := 0
	c := client.Open(client.Options{Sockets: []string{socket}, Version: "new", Outdated: func(_ context.Context, r client.Remote) (bool, error) {
		asked++
		if r.Version != "old" || r.Socket != socket {
			t.Errorf("Outdated(%+v)", r)
		}
		stopOld()
		fresh.serve(t, socket)
		return true, nil
	}})
	return c, &asked, fresh
}

func TestOutdatedDaemonIsReplacedBeforeAnythingChanges(t *testing.T) {
	old := &stub{version: "old", protocol: api.Protocol}
	socket := filepath.Join(shortDir(t), "s")
	c, asked, fresh := upgrade(t, socket, old.serve(t, socket))
	if _, err := c.CreateVM(t.Context(), &bangerv1.CreateRequest{}); err != nil {
		t.Fatal(err)
	}
	if *asked != 1 || slices.Contains(old.seen(), "/banger.v1.VMService/Create") {
		t.Errorf("asked %d times; the old one got %v", *asked, old.seen())
	}
	if want := []string{"/banger.v1.VMService/Create"}; !slices.Equal(fresh.seen(), want) {
		t.Errorf("the new one got %v", fresh.seen())
	}
}

func TestReadingChecksTheVersionForFree(t *testing.T) {
	s := &stub{version: "v", protocol: api.Protocol}
	socket := start(t, s)
	c := client.Open(client.Options{Sockets: []string{socket}, Version: "v", Outdated: func(context.Context, client.Remote) (bool, error) {
		t.Error("asked")
		return false, nil
	}})
	for range 2 {
		if _, err := c.ListVMs(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.seen()) != 2 {
		t.Errorf("calls: %v", s.seen())
	}

	old := &stub{version: "old", protocol: api.Protocol}
	socket = filepath.Join(shortDir(t), "s")
	c, asked, fresh := upgrade(t, socket, old.serve(t, socket))
	if _, err := c.ListVMs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if *asked != 1 || len(fresh.seen()) != 1 {
		t.Errorf("asked %d times; the new one got %v", *asked, fresh.seen())
	}
}

func TestProtocols(t *testing.T) {
	for protocol, want := range map[int]error{api.Protocol + 1: errdefs.ErrUnsupported, -1: errdefs.ErrUnsupported} {
		socket := start(t, &stub{version: "other", protocol: protocol})
		if _, err := client.New(socket).ListVMs(t.Context()); !errors.Is(err, want) || errdefs.HintOf(err) == "" {
			t.Errorf("protocol %d: %v", protocol, err)
		}
	}
	// Some other HTTP server.
	socket := filepath.Join(shortDir(t), "s")
	(&stub{}).serve(t, socket)
	if _, err := client.New(socket).ListVMs(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("no headers: %v", err)
	}
}

func TestWaitOperation(t *testing.T) {
	states := []string{"running", "running", "failed"}
	s := &stub{watch: func(_ context.Context, out *connect.ServerStream[bangerv1.Operation]) error {
		for i, st := range states {
			op := &bangerv1.Operation{Id: "op-1", Kind: "vm.create", State: st, Stages: make([]*bangerv1.Stage, i)}
			for j := range op.Stages {
				op.Stages[j] = &bangerv1.Stage{Name: "s"}
			}
			if st == "failed" {
				op.Error = &bangerv1.ErrorDetail{Class: "exhausted", Message: "no space", Hint: "free some"}
			}
			if err := out.Send(op); err != nil {
				return err
			}
		}
		return nil
	}}
	c := client.New(start(t, s))
	updates := 0
	op, err := c.WaitOperation(t.Context(), &bangerv1.Operation{Id: "op-1", State: "running"}, func(*bangerv1.Operation) { updates++ })
	if !errors.Is(err, errdefs.ErrExhausted) || errdefs.OpOf(err) != "op-1" || errdefs.HintOf(err) != "free some" || op.GetState() != "failed" {
		t.Errorf("%v, %v", op, err)
	}
	if updates != 3 {
		t.Errorf("%d updates", updates)
	}
	// One that has ended needs no call.
	calls := len(s.seen())
	if _, err := c.WaitOperation(t.Context(), &bangerv1.Operation{State: "succeeded"}, nil); err != nil || len(s.seen()) != calls {
		t.Errorf("ended operation: %v", err)
	}
}

func TestWaitOperationLosesTheDaemon(t *testing.T) {
	s := &stub{}
	ended := make(chan struct{})
	s.watch = func(ctx context.Context, out *connect.ServerStream[bangerv1.Operation]) error {
		if err := out.Send(&bangerv1.Operation{Id: "op-1", State: "running"}); err != nil {
			return err
		}
		<-ctx.Done()
		close(ended)
		return nil
	}
	s.protocol = api.Protocol
	socket := filepath.Join(shortDir(t), "s")
	stop := s.serve(t, socket)
	c := client.New(socket)
	_, err := c.WaitOperation(t.Context(), &bangerv1.Operation{Id: "op-1", State: "running"}, func(*bangerv1.Operation) { go stop() })
	if !errors.Is(err, errdefs.ErrUnavailable) || errdefs.OpOf(err) != "op-1" || !strings.Contains(err.Error(), "lost the connection") {
		t.Errorf("%v", err)
	}
	<-ended
}

func TestContextEndsACall(t *testing.T) {
	s := &stub{watch: func(ctx context.Context, out *connect.ServerStream[bangerv1.Operation]) error {
		_ = out.Send(&bangerv1.Operation{Id: "op-1", State: "running"})
		<-ctx.Done()
		return ctx.Err()
	}}
	c := client.New(start(t, s))
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := c.WaitOperation(ctx, &bangerv1.Operation{Id: "op-1", State: "running"}, func(*bangerv1.Operation) { cancel(cause) })
	if !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

func TestOpenStream(t *testing.T) {
	s := &stub{stream: func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("ref") {
		case "echo":
			if r.Header.Get("Upgrade") != api.UpgradeProtocol {
				t.Errorf("headers: %v", r.Header)
			}
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			// The first bytes of the stream come with the answer.
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: banger-stream\r\n"+
				api.HeaderVersion+": v\r\n"+api.HeaderProtocol+": 1\r\n\r\nhello ")
			line, _ := rw.ReadString('\n')
			_, _ = io.WriteString(conn, line)
		case "gone":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"class":"not_found","message":"no vm \"gone\"","hint":"banger vm list","operation_id":"op-3"}`)
		case "endless":
			w.WriteHeader(http.StatusInternalServerError)
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		case "silent":
			<-r.Context().Done()
		default:
			http.Error(w, "what?", http.StatusTeapot)
		}
	}}
	c := client.New(start(t, s))
	conn, err := c.OpenStream(t.Context(), api.StreamPath("echo"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "world\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello world\n" {
		t.Errorf("read %q, %v", b, err)
	}
	_ = conn.Close()

	_, err = c.OpenStream(t.Context(), api.StreamPath("gone"))
	if !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) != "banger vm list" || errdefs.OpOf(err) != "op-3" {
		t.Errorf("gone: %v", err)
	}
	if _, err = c.OpenStream(t.Context(), api.StreamPath("what")); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "418") {
		t.Errorf("teapot: %v", err)
	}
	if _, err = c.OpenStream(t.Context(), api.StreamPath("endless")); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("endless: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go cancel(cause)
	if _, err = c.OpenStream(ctx, api.StreamPath("silent")); !errors.Is(err, cause) {
		t.Errorf("silent: %v", err)
	}
}

func TestOpenStreamRefusesGarbage(t *testing.T) {
	for _, answer := range []string{
		"", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 101\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 100),
	} {
		socket := filepath.Join(shortDir(t), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}()
		if conn, err := client.New(socket).OpenStream(t.Context(), api.StreamPath("x")); err == nil {
			_ = conn.Close()
			t.Errorf("%.40q was accepted", answer)
		}
		_ = l.Close()
	}
}

// Every procedure of the schema has a method, and every method its procedure.
func TestEveryProcedureHasAMethod(t *testing.T) {
	s := &stub{}
	c := client.New(start(t, s))
	ctx := t.Context()
	for _, call := range []func(){
		func() { _, _ = c.Info(ctx) },
		func() { _ = c.Shutdown(ctx, true) },
		func() { _, _ = c.CreateVM(ctx, &bangerv1.CreateRequest{}) },
		func() { _, _ = c.StartVM(ctx, "x") },
		func() { _, _ = c.StopVM(ctx, &bangerv1.StopRequest{}) },
		func() { _, _ = c.RestartVM(ctx, &bangerv1.StopRequest{}) },
		func() { _, _ = c.KillVM(ctx, "x") },
		func() { _, _ = c.DeleteVM(ctx, "x", true) },
		func() { _, _ = c.ListVMs(ctx) },
		func() { _, _ = c.GetVM(ctx, "x") },
		func() { _, _ = c.VMStats(ctx, "x") },
		func() { _, _ = c.RenameVM(ctx, "x", "y") },
		func() { _, _ = c.SetVM(ctx, &bangerv1.SetRequest{}) },
		func() { _, _ = c.WaitVM(ctx, "x") },
		func() { _, _ = c.GetSSH(ctx, "x") },
		func() { _, _ = c.AddPorts(ctx, "x", nil) },
		func() { _ = c.RemovePorts(ctx, "x", nil) },
		func() { _ = c.VMLogs(ctx, &bangerv1.LogsRequest{}, io.Discard) },
		func() { _, _ = c.ListImages(ctx) },
		func() { _, _ = c.GetImage(ctx, "x") },
		func() { _, _ = c.PullImage(ctx, &bangerv1.PullRequest{Name: "x"}) },
		func() { _, _ = c.RegisterImage(ctx, &bangerv1.RegisterImageRequest{}) },
		func() { _ = c.RemoveImage(ctx, "x") },
		func() { _, _ = c.TagImage(ctx, &bangerv1.TagImageRequest{Source: "x", Name: "y"}) },
		func() { _, _ = c.SaveImage(ctx, &bangerv1.SaveImageRequest{Name: "x", To: "oci:/d"}) },
		func() { _, _ = c.LoadImages(ctx, &bangerv1.LoadImagesRequest{File: "/f"}) },
		func() { _, _ = c.PushImage(ctx, &bangerv1.PushImageRequest{Name: "x"}) },
		func() { _, _ = c.PromoteImage(ctx, &bangerv1.PromoteRequest{Vm: "x", Name: "y"}) },
		func() { _, _ = c.PrepareBuild(ctx, &bangerv1.PrepareBuildRequest{}) },
		func() { _, _ = c.SendImage(ctx, &bangerv1.SendImageRequest{Name: "x"}) },
		func() { _, _ = c.FinishBuild(ctx, &bangerv1.FinishBuildRequest{Names: []string{"x"}}) },
		func() { _, _ = c.PruneImages(ctx, &bangerv1.PruneImagesRequest{}) },
		func() { _, _ = c.ImageCache(ctx) },
		func() { _, _ = c.PruneImageCache(ctx, &bangerv1.PruneCacheRequest{}) },
		func() { _, _ = c.OfferedImages(ctx) },
		func() { _, _ = c.OfferedKernels(ctx) },
		func() { _, _ = c.ListKernels(ctx) },
		func() { _, _ = c.GetKernel(ctx, "x") },
		func() { _, _ = c.PullKernel(ctx, "x", false) },
		func() { _, _ = c.ImportKernel(ctx, &bangerv1.ImportKernelRequest{Name: "x", Dir: "/d"}) },
		func() { _ = c.RemoveKernel(ctx, "x") },
		func() { _, _ = c.ListNetworks(ctx) },
		func() { _, _ = c.GetNetwork(ctx, "x") },
		func() { _, _ = c.CreateNetwork(ctx, "x") },
		func() { _ = c.RemoveNetwork(ctx, "x") },
		func() { _, _ = c.ListWorkspaces(ctx, "x") },
		func() { _, _ = c.BeginWorkspace(ctx, &bangerv1.BeginWorkspaceRequest{}) },
		func() { _, _ = c.FinishWorkspace(ctx, &bangerv1.FinishWorkspaceRequest{}) },
		func() { _, _ = c.WorkspaceManifest(ctx, "x") },
		func() { _ = c.RemoveWorkspace(ctx, "x") },
		func() { _, _ = c.ListOperations(ctx) },
		func() { _, _ = c.GetOperation(ctx, "x") },
		func() { _, _ = c.WaitOperation(ctx, &bangerv1.Operation{State: "running"}, nil) },
		func() { _, _ = c.CancelOperation(ctx, "x") },
	} {
		call()
	}
	var want []string
	services := bangerv1.File_bangerv1_banger_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			want = append(want, fmt.Sprintf("/%s/%s", services.Get(i).FullName(), services.Get(i).Methods().Get(j).Name()))
		}
	}
	got := s.seen()
	slices.Sort(want)
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("called  %v\nin schema %v", got, want)
	}
}
