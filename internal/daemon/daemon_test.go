package daemon

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/daemon/fakevm"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor/accel"
	"banger/internal/model"
	"banger/internal/nettest"
	"banger/internal/paths"
	"banger/internal/store/storetest"
)

// TestMain lets the test binary play the daemon's helper processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "fakevm":
			os.Exit(fakevm.ChildMain(os.Args[2:]))
		case "kvm-probe":
			os.Exit(accel.ChildMain(os.Args[2:]))
		case "daemon":
			os.Exit(victimMain(os.Args[2:]))
		}
	}
	if err := nettest.Move(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const testConfig = `driver: fake
vm:
  cpus: 1
  memory: 64M
  disk: 64M
  image: mini
  kernel: tiny
  net: none
`

// host is a state directory, and what daemons in it are started with.
type host struct {
	t    *testing.T
	opts Options

	usual map[string]string // what there is on it with a VM of that kind; see host_sweep_test.go
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	layout, err := paths.At(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, opts: Options{
		Layout: layout, ConfigFile: filepath.Join(dir, "config.yaml"), Self: []string{self},
		AgentPath: filepath.Join(dir, "agent"), Log: slog.New(slog.DiscardHandler),
	}}
	h.write(h.opts.ConfigFile, testConfig)
	h.write(h.opts.AgentPath, "not run by the fake driver")
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v (try: %s)", err, errdefs.HintOf(err))
	}
}

func (h *host) write(path, text string) {
	h.t.Helper()
	h.must(os.MkdirAll(filepath.Dir(path), 0o700))
	h.must(os.WriteFile(path, []byte(text), 0o600))
}

// artifacts puts a kernel and an image where no daemon runs.
func (h *host) artifacts() {
	h.t.Helper()
	dir := filepath.Dir(h.opts.ConfigFile)
	vmlinux, rootfs, early := filepath.Join(dir, "vmlinux"), filepath.Join(dir, "rootfs.ext4"), filepath.Join(dir, "early")
	h.write(vmlinux, "kernel")
	h.write(rootfs, strings.Repeat("\x00", 1<<20))
	h.write(filepath.Join(early, paths.EarlyOrderFile), "")
	h.must(os.MkdirAll(h.opts.Layout.State, 0o700))
	db := storetest.Open(h.t, h.opts.Layout.Database())
	k := storetest.Kernel(h.t, db, model.Kernel{Name: "tiny", VmlinuxPath: vmlinux, EarlyDir: early})
	storetest.Image(h.t, db, model.Image{Name: "mini", Path: rootfs, SizeBytes: 1 << 20, KernelID: k.ID})
	h.must(db.Close())
}

// running is a daemon that serves.
type running struct {
	*Daemon
	client *client.Client
	served chan error
	once   sync.Once
}

func (h *host) serve() *running {
	h.t.Helper()
	d, err := Open(context.Background(), h.opts)
	h.must(err)
	r := &running{Daemon: d, client: client.New(h.opts.Layout.Socket), served: make(chan error, 1)}
	go func() { r.served <- d.Serve(context.Background()) }()
	h.t.Cleanup(func() { r.end(h) })
	return r
}

// end stops the daemon as a signal would.
func (r *running) end(h *host) {
	h.t.Helper()
	r.once.Do(func() {
		r.stop()
		h.must(<-r.served)
		h.must(r.Close())
		r.client.Close()
	})
}

// refused opens a daemon that must not open, and returns why.
func (h *host) refused() error {
	h.t.Helper()
	d, err := Open(context.Background(), h.opts)
	if err == nil {
		h.must(d.Close())
		h.t.Fatal("the daemon opened")
	}
	if errdefs.HintOf(err) == "" {
		h.t.Errorf("no hint: %v", err)
	}
	return err
}

func TestTwoDaemonsInOneDirectory(t *testing.T) {
	h := newHost(t)
	first := h.serve()
	err := h.refused()
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := first.client.Info(context.Background()); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
	first.end(h)
	h.serve()
}

// Two directories may be told to use one socket: the first daemon keeps it.
func TestLiveSocketIsNotTaken(t *testing.T) {
	h, other := newHost(t), newHost(t)
	first := h.serve()
	other.opts.Layout.Socket = h.opts.Layout.Socket
	if err := other.refused(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	if info, err := first.client.Info(context.Background()); err != nil || info.GetStateDir() != h.opts.Layout.State {
		t.Errorf("the first daemon: %v, %v", info, err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	h := newHost(t)
	h.must(os.MkdirAll(h.opts.Layout.State, 0o700))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	h.must(err)
	h.must(unix.Bind(fd, &unix.SockaddrUnix{Name: h.opts.Layout.Socket}))
	h.must(unix.Close(fd))
	d := h.serve()
	_, err = d.client.Info(context.Background())
	h.must(err)
	st, err := os.Stat(h.opts.Layout.Socket)
	h.must(err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %o", st.Mode().Perm())
	}
}

func TestFileInPlaceOfTheSocket(t *testing.T) {
	h := newHost(t)
	h.write(h.opts.Layout.Socket, "precious")
	if err := h.refused(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(h.opts.Layout.Socket); err != nil || string(b) != "precious" {
		t.Errorf("the file now holds %q, %v", b, err)
	}
}

func TestLongSocketPathIsRefusedFirst(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(filepath.Dir(h.opts.Layout.State), strings.Repeat("x", 120))
	var err error
	h.opts.Layout, err = paths.At(dir)
	h.must(err)
	if err := h.refused(); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the state directory was made")
	}
}

// A directory like /tmp, named by mistake, is not closed to its users.
func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	h := newHost(t)
	dir := h.opts.Layout.State
	h.write(filepath.Join(dir, "thesis.tex"), "")
	h.must(os.Chmod(dir, 0o777))
	if err := h.refused(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	st, err := os.Stat(dir)
	h.must(err)
	if st.Mode().Perm() != 0o777 {
		t.Errorf("the directory's mode is now %o", st.Mode().Perm())
	}
	h.must(os.Remove(filepath.Join(dir, "thesis.tex")))
	h.serve()
	if st, err = os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the state directory: %v %v", st, err)
	}
}

func TestCorruptDatabaseIsKept(t *testing.T) {
	h := newHost(t)
	garbage := strings.Repeat("no database ", 1000)
	h.write(h.opts.Layout.Database(), garbage)
	d := h.serve()
	if all, err := d.client.ListVMs(context.Background()); err != nil || len(all) != 0 {
		t.Errorf("list: %v, %v", all, err)
	}
	kept, err := filepath.Glob(h.opts.Layout.Database() + paths.CorruptSuffix + "*")
	h.must(err)
	if len(kept) != 1 {
		t.Fatalf("kept: %v", kept)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || string(b) != garbage {
		t.Errorf("what was kept is not what was there: %v", err)
	}
	// It is spoken of until it is gone: by this daemon, the next, and doctor.
	told := func(when string, d *running, want bool) {
		t.Helper()
		info, err := d.client.Info(context.Background())
		h.must(err)
		notices := info.GetNotices()
		if (len(notices) == 1) != want || want && (!strings.Contains(notices[0].GetMessage(), kept[0]) || notices[0].GetHint() == "") {
			t.Errorf("%s: notices %v", when, notices)
		}
		r := h.doctor("state database")
		if (r.Status == doctor.StatusWarn) != want || want && (!strings.Contains(r.Detail, kept[0]) || r.Fix == "") {
			t.Errorf("%s: doctor says %+v", when, r)
		}
	}
	told("at the start", d, true)
	d.end(h)
	d = h.serve()
	told("at the next start", d, true)
	h.must(os.Remove(kept[0]))
	told("when it is gone", d, false)
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	db, err := sql.Open("sqlite", h.opts.Layout.Database())
	h.must(err)
	_, err = db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	h.must(errors.Join(err, db.Close()))
	was, err := os.ReadFile(h.opts.Layout.Database())
	h.must(err)
	if err := h.refused(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	if now, err := os.ReadFile(h.opts.Layout.Database()); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the database was changed (%v)", err)
	}
}

func TestShutdownEndsServe(t *testing.T) {
	h := newHost(t)
	d := h.serve()
	h.must(d.client.Shutdown(context.Background(), true))
	err := <-d.served
	h.must(err)
	d.served <- nil
	d.end(h)
	if _, err := os.Lstat(h.opts.Layout.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// asUser runs fn on a thread that is another user's, and ends that thread.
func asUser(uid int, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			done <- e
			return
		}
		done <- fn()
	}()
	return <-done
}

// The socket's mode keeps other users out; so does the daemon, should the mode change.
func TestOtherUsersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	h := newHost(t)
	d := h.serve()
	const nobody = 65534
	talk := func() (int, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: h.opts.Layout.Socket}); err != nil {
			return 0, err
		}
		_ = unix.Send(fd, []byte("GET / HTTP/1.0\r\n\r\n"), unix.MSG_NOSIGNAL)
		return unix.Read(fd, make([]byte, 16))
	}
	if n, err := talk(); n == 0 || err != nil {
		t.Fatalf("our own request: %d bytes, %v", n, err)
	}
	err := asUser(nobody, func() error { _, err := talk(); return err })
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("another user connects: %v", err)
	}
	for path := h.opts.Layout.State; strings.HasPrefix(path, os.TempDir()+"/"); path = filepath.Dir(path) {
		h.must(os.Chmod(path, 0o711))
	}
	h.must(os.Chmod(h.opts.Layout.Socket, 0o666))
	err = asUser(nobody, func() error {
		n, err := talk()
		if n > 0 {
			return fmt.Errorf("it was answered with %d bytes", n)
		}
		if errors.Is(err, unix.EACCES) {
			return fmt.Errorf("the test did not reach the socket: %w", err)
		}
		return nil
	})
	h.must(err)
	_, err = d.client.Info(context.Background())
	h.must(err)
}

func (r *running) create(h *host, req *bangerv1.CreateRequest) *bangerv1.VM {
	h.t.Helper()
	ctx := context.Background()
	op, err := r.client.CreateVM(ctx, req)
	h.must(err)
	op, err = r.client.WaitOperation(ctx, op, nil)
	h.must(err)
	v, err := r.client.GetVM(ctx, op.GetResult())
	h.must(err)
	return v
}

func (r *running) remove(h *host, ref string) {
	h.t.Helper()
	op, err := r.client.DeleteVM(context.Background(), ref, true)
	h.must(err)
	_, err = r.client.WaitOperation(context.Background(), op, nil)
	h.must(err)
}

// exec runs a command that ends only with its stream, and returns once it runs.
func (r *running) exec(ctx context.Context, ref string, ephemeral bool) <-chan error {
	ended := make(chan error, 1)
	conn, err := r.client.OpenStream(ctx, api.StreamPath(ref))
	if err != nil {
		ended <- err
		return ended
	}
	began, output := io.Pipe()
	go func() {
		_, err := guest.RunExec(ctx, conn, guest.Request{
			Kind: guest.KindExec, Ephemeral: ephemeral, Exec: &guest.Exec{Args: []string{"sh", "-c", "echo ready; hang"}},
		}, guest.ExecIO{Stdout: output})
		_ = output.CloseWithError(err)
		ended <- err
	}()
	_, _ = began.Read(make([]byte, 16)) // or it ended, as the channel says
	return ended
}

// A daemon that ends, with requests of every kind under way, lets its VMs run; the
// next one finds them. VMs of a client that is gone are not among them.
func TestVMsOutliveTheDaemon(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	first := h.serve()
	v := first.create(h, &bangerv1.CreateRequest{Name: "dev"})
	first.create(h, &bangerv1.CreateRequest{Name: "brief", AutoRemove: true})
	ctx := context.Background()
	commands := []<-chan error{first.exec(ctx, "dev", false), first.exec(ctx, "brief", true)}
	followed, waited := make(chan error, 1), make(chan error, 1)
	go func() {
		followed <- first.client.VMLogs(ctx, &bangerv1.LogsRequest{Ref: "dev", Vmm: true, Follow: true}, new(bytes.Buffer))
	}()
	go func() { _, err := first.client.WaitVM(ctx, "dev"); waited <- err }()

	began := time.Now()
	first.end(h)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the daemon took %s to end", took)
	}
	for _, c := range append(commands, followed, waited) {
		if err := <-c; err == nil {
			t.Error("a request that was under way succeeded")
		}
	}
	second := h.serve()
	now, err := second.client.GetVM(ctx, "dev")
	h.must(err)
	if now.GetPid() != v.GetPid() || now.GetState() != string(model.StateRunning) {
		t.Errorf("the VM is %s with pid %d, was %d", now.GetState(), now.GetPid(), v.GetPid())
	}
	if _, err := second.client.GetVM(ctx, "brief"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a VM whose client is gone: %v", err)
	}
	second.remove(h, "dev")
}

// A daemon that is asked to end when it is idle does not cut off what clients do.
func TestBusyDaemonStays(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	d := h.serve()
	ctx := context.Background()
	busyWith := func(want ...string) {
		t.Helper()
		info, err := d.client.Info(ctx)
		h.must(err)
		if !slices.Equal(info.GetBusy(), want) {
			t.Errorf("busy with %q, want %q", info.GetBusy(), want)
		}
		err = d.client.Shutdown(ctx, true)
		if !errors.Is(err, errdefs.ErrBusy) || !strings.Contains(err.Error(), strings.Join(want, ", ")) || errdefs.HintOf(err) == "" {
			t.Errorf("shutdown: %v", err)
		}
	}
	d.create(h, &bangerv1.CreateRequest{Name: "dev"})
	d.create(h, &bangerv1.CreateRequest{Name: "brief", AutoRemove: true})
	brief := `vm "brief", which goes with its client`
	busyWith(brief) // its client has not opened a stream yet

	conn, err := d.client.OpenStream(ctx, api.StreamPath("dev"))
	h.must(err)
	busyWith(brief) // nothing was asked of the VM
	command, hangUp := context.WithCancel(ctx)
	ended := d.exec(command, "dev", false)
	busyWith(`exec of vm "dev"`, brief)
	h.must(conn.Close())
	hangUp()
	<-ended

	d.remove(h, "brief")
	d.remove(h, "dev")
	// The daemon notices the end of a stream a little after its client.
	for err = d.client.Shutdown(ctx, true); errors.Is(err, errdefs.ErrBusy); {
		err = d.client.Shutdown(ctx, true)
	}
	h.must(err)
}

// Following a log ends when the VM does, and not before; so does waiting.
func TestFollowersEndWithTheVM(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	d := h.serve()
	ctx := context.Background()
	for range 5 {
		d.create(h, &bangerv1.CreateRequest{Name: "dev"})
		var ended []chan error
		for range 4 {
			c := make(chan error, 2)
			ended = append(ended, c)
			go func() {
				c <- d.client.VMLogs(ctx, &bangerv1.LogsRequest{Ref: "dev", Vmm: true, Follow: true}, new(bytes.Buffer))
			}()
			go func() { _, err := d.client.WaitVM(ctx, "dev"); c <- err }()
		}
		d.remove(h, "dev")
		for _, c := range ended {
			for range 2 {
				// One that came too late is told that there is no such VM.
				if err := <-c; err != nil && !errors.Is(err, errdefs.ErrNotFound) {
					t.Error(err)
				}
			}
		}
	}
}

// A client that goes away in the middle of its command takes its VM along.
func TestEphemeralVMGoesWithItsClient(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	d := h.serve()
	d.create(h, &bangerv1.CreateRequest{Name: "brief", AutoRemove: true})
	ctx, cancel := context.WithCancel(context.Background())
	command := d.exec(ctx, "brief", true)
	cancel()
	if err := <-command; err == nil {
		t.Error("the command ended well")
	}
	if _, err := d.client.WaitVM(context.Background(), "brief"); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
}
