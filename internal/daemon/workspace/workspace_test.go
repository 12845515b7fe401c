package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/store/storetest"
)

// guests are VMs whose agents are the test's.
type guests struct {
	agents map[string]chan net.Conn // by VM: our ends of the streams that were opened
}

func (g *guests) CheckRunning(_ context.Context, ref string) (string, error) {
	if g.agents[ref] == nil {
		return "", errdefs.NotFound("no VM named %q", ref)
	}
	return ref, nil
}

func (g *guests) OpenAgent(_ context.Context, id string, _ guest.Request) (net.Conn, error) {
	ours, theirs := net.Pipe()
	g.agents[id] <- ours
	return theirs, nil
}

type world struct {
	*Service
	guests *guests
	db     *store.Store
	socket string
}

func newWorld(t *testing.T, vms ...string) *world {
	t.Helper()
	db := storetest.New(t)
	storetest.Kernel(t, db, model.Kernel{})
	storetest.Image(t, db, model.Image{})
	layout, err := paths.At(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g := &guests{agents: map[string]chan net.Conn{}}
	for _, id := range vms {
		storetest.VM(t, db, model.VM{ID: id, Name: id})
		g.agents[id] = make(chan net.Conn, 8)
		if err := os.MkdirAll(layout.VM(id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{guests: g, db: db, Service: New(Deps{
		VMs: g, Store: db, Layout: layout, Locks: &vmlock.Set{Noun: "workspace of vm"}, Log: slog.New(slog.DiscardHandler),
	})}
	w.socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.WorkspacePattern, w.ServeImport)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return w
}

// open asks for a stream to a VM and sends the request of an import.
func (w *world) open(t *testing.T, vm string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", api.WorkspacePath(vm), api.UpgradeProtocol)
	req := guest.Request{Kind: guest.KindWorkspacePut, WorkspacePut: &guest.WorkspacePut{ID: "0123456789ab", Dest: "/w"}}
	if err := guest.NewFrameWriter(conn).Request(req); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (w *world) agent(t *testing.T, vm string) net.Conn {
	t.Helper()
	select {
	case conn := <-w.guests.agents[vm]:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(30 * time.Second):
		t.Fatalf("nothing came to the agent of %s", vm)
		return nil
	}
}

// Two imports into one VM run one after another; another VM's does not wait for either.
func TestImportsTakeTurns(t *testing.T) {
	w := newWorld(t, "a", "b")
	first := w.open(t, "a")
	stalled := w.agent(t, "a") // which does nothing
	second := w.open(t, "a")
	w.open(t, "b")
	w.agent(t, "b")
	// Who waits for its turn has no answer yet, and b has had one meanwhile.
	_ = second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatalf("the second import did not wait: %d bytes", n)
	}
	if len(w.guests.agents["a"]) > 0 || w.Locks.Holder("a") == "" {
		t.Fatal("the second import did not wait")
	}
	_ = first.Close()
	_ = stalled.Close()
	w.agent(t, "a")
}

func begin(w *world, vm, at, from, mode string) (*bangerv1.Workspace, error) {
	res, err := w.Begin(context.Background(), connect.NewRequest(&bangerv1.BeginWorkspaceRequest{
		Ref: vm, GuestPath: at, HostPath: from, Spec: &bangerv1.WorkspaceSpec{Mode: mode, Depth: 5, Include: []string{"*.o"}},
	}))
	if err != nil {
		return nil, api.FromConnect(err)
	}
	return res.Msg, nil
}

func TestRecords(t *testing.T) {
	w := newWorld(t, "a", "b")
	for _, bad := range [][4]string{
		{"a", "relative", "/src", "default"}, {"a", "/w/../x", "/src", "default"}, {"a", "/", "/src", "default"},
		{"a", "/w", "", "default"}, {"a", "/w", "/src", "other"}, {"a", "/w\x00", "/src", "default"},
	} {
		if _, err := begin(w, bad[0], bad[1], bad[2], bad[3]); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := begin(w, "c", "/w", "/src", "default"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an unknown VM: %v", err)
	}
	one, err := begin(w, "a", "/w", "/src", "default")
	if err != nil || one.State != "preparing" || one.Generation != 1 || one.Vm != "a" {
		t.Fatalf("%v, %v", one, err)
	}
	again, err := begin(w, "a", "/w", "/src", "full")
	if err != nil || again.Id != one.Id || again.Generation != 2 {
		t.Fatalf("%v, %v", again, err)
	}
	finish := func(id string, generation int64, list string) error {
		_, err := w.Finish(t.Context(), connect.NewRequest(&bangerv1.FinishWorkspaceRequest{Id: id, Generation: generation, Manifest: []byte(list)}))
		return api.FromConnect(err)
	}
	if err := finish(one.Id, 1, "old"); !errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("a generation that is over: %v", err)
	}
	if err := finish("ffffffffffff", 1, ""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
	if err := finish(one.Id, 2, "new"); err != nil {
		t.Fatal(err)
	}
	list, err := w.Manifest(t.Context(), connect.NewRequest(&bangerv1.WorkspaceID{Id: one.Id}))
	if err != nil || string(list.Msg.Manifest) != "new" {
		t.Errorf("%v, %v", list, err)
	}
	// One that the VM refused leaves the list as it was.
	third, err := begin(w, "a", "/w", "/src", "full")
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(t.Context(), connect.NewRequest(&bangerv1.FinishWorkspaceRequest{Id: third.Id, Generation: third.Generation, Refused: true}))
	if err != nil || res.Msg.State != "ready" {
		t.Errorf("%v, %v", res, err)
	}
	if list, err := w.Manifest(t.Context(), connect.NewRequest(&bangerv1.WorkspaceID{Id: one.Id})); err != nil || string(list.Msg.Manifest) != "new" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := begin(w, "b", "/w", "/src", "default"); err != nil {
		t.Fatal(err)
	}
	all, err := w.List(t.Context(), connect.NewRequest(&bangerv1.ListWorkspacesRequest{}))
	if err != nil || len(all.Msg.Workspaces) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	ofA, err := w.List(t.Context(), connect.NewRequest(&bangerv1.ListWorkspacesRequest{Ref: "a"}))
	if err != nil || len(ofA.Msg.Workspaces) != 1 || ofA.Msg.Workspaces[0].State != "ready" || ofA.Msg.Workspaces[0].Spec.Mode != "full" {
		t.Errorf("%v, %v", ofA, err)
	}

	// What no row knows goes when a daemon starts; what one knows stays.
	stray := filepath.Join(filepath.Dir(w.manifestFile(&model.Workspace{VMID: "a", ID: one.Id})), "ffffffffffff")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stray); err == nil {
		t.Error("a list that no row knows is left")
	}
	if b, err := os.ReadFile(w.manifestFile(&model.Workspace{VMID: "a", ID: one.Id})); err != nil || !bytes.Equal(b, []byte("new")) {
		t.Errorf("%q, %v", b, err)
	}

	// The guest is told to forget, and need not answer.
	go func() {
		if conn, ok := <-w.guests.agents["a"]; ok {
			_ = conn.Close()
		}
	}()
	if _, err := w.Remove(t.Context(), connect.NewRequest(&bangerv1.WorkspaceID{Id: one.Id})); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Manifest(t.Context(), connect.NewRequest(&bangerv1.WorkspaceID{Id: one.Id})); !errors.Is(api.FromConnect(err), errdefs.ErrNotFound) {
		t.Errorf("after removal: %v", err)
	}
	if err := w.db.DeleteVM(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if all, err := w.db.ListWorkspaces(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("of a VM that is gone: %v, %v", all, err)
	}
}
