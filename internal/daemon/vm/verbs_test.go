package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/daemon/fakevm"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// knob makes the fakes of one VM directory misbehave.
func (w *world) knob(id string, k fakevm.Knobs) {
	w.t.Helper()
	b, err := json.Marshal(k)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(w.layout.VM(id), paths.FakeKnobs), b, 0o600))
}

// hung starts a VM whose agent never answers and returns its name's operation
// result on a channel, once the VMM runs.
func (w *world) hung(name string) (id string, result <-chan error) {
	w.t.Helper()
	w.must(w.create(name, false))
	id = w.vms()[0].ID
	w.knob(id, fakevm.Knobs{AgentNeverReady: true})
	booting := make(chan struct{})
	w.inject(func(step string) error {
		if step == "connect usernet" {
			close(booting)
		}
		return nil
	})
	out := make(chan error, 1)
	go func() { out <- w.start(name) }()
	<-booting
	w.inject(nil)
	return id, out
}

func TestKillDoesNotQueueBehindAHungStart(t *testing.T) {
	w := newWorld(t)
	id, result := w.hung("dev")
	if busy := w.busy("dev"); !strings.HasPrefix(busy, "start since ") {
		t.Errorf("busy is %q", busy)
	}
	w.must(w.kill("dev"))
	if err := <-result; !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("the start ended with %v", err)
	}
	w.checkLegal()
	w.knob(id, fakevm.Knobs{})
	w.must(w.start("dev"))
}

func TestForcedDeleteDoesNotQueueBehindAHungStart(t *testing.T) {
	w := newWorld(t)
	_, result := w.hung("dev")
	w.must(w.delete("dev", true))
	if err := <-result; !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("the start ended with %v", err)
	}
	if n := len(w.vms()); n != 0 {
		t.Errorf("%d VMs are left", n)
	}
	w.checkLegal()
}

func (w *world) busy(name string) string {
	w.t.Helper()
	resp, err := w.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: name}))
	w.must(err)
	return resp.Msg.Busy
}

func TestEndOfAVMMIsNoticed(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	resp, err := w.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: "dev"}))
	w.must(err)
	w.must(unix.Kill(int(resp.Msg.Pid), unix.SIGKILL))
	if got := w.settled("dev"); got != model.StateStopped {
		t.Errorf("settled as %s", got)
	}
	if v := w.vms()[0]; !strings.Contains(v.LastError, "signal 9") {
		t.Errorf("last error %q", v.LastError)
	}
	w.checkLegal()
	w.must(w.start("dev"))
}

func TestStopEndsAGuestThatIgnoresIt(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	w.knob(w.vms()[0].ID, fakevm.Knobs{ShutdownIgnored: true})
	w.must(w.stop("dev"))
	w.must(w.start("dev"))
	resp, err := w.svc.Handlers().Stop(context.Background(), connect.NewRequest(&bangerv1.StopRequest{Ref: "dev", TimeoutMillis: 50}))
	w.must(w.wait(resp, err))
	w.checkLegal()
}

// An agent that answers nothing does not use up the time that the power button needs.
func TestStopPressesTheButtonWhenTheAgentIsStuck(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", false))
	w.knob(w.vms()[0].ID, fakevm.Knobs{ShutdownUnanswered: true, ExitCode: 7})
	w.must(w.start("dev"))
	machine := *w.fake.last.Load()
	resp, err := w.svc.Handlers().Stop(context.Background(), connect.NewRequest(&bangerv1.StopRequest{Ref: "dev", TimeoutMillis: 6000}))
	w.must(w.wait(resp, err))
	if exit := machine.Exit(); exit.Code != 7 {
		t.Errorf("the VMM was ended: %+v", exit)
	}
	w.checkLegal()
}

func TestFailedBootSaysWhyAndLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		knobs fakevm.Knobs
		want  string
	}{
		{"the VMM does not start", fakevm.Knobs{StartError: "out of luck"}, "out of luck"},
		{"the VMM dies", fakevm.Knobs{StartCrash: true}, ""},
		{"the root is unusable", fakevm.Knobs{AgentRootError: "no init found"}, "no init found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.must(w.create("dev", false))
			w.knob(w.vms()[0].ID, c.knobs)
			err := w.start("dev")
			if err == nil || !strings.Contains(err.Error(), c.want) || errdefs.OpOf(err) == "" {
				t.Errorf("start: %v (op %q)", err, errdefs.OpOf(err))
			}
			w.checkLegal()
		})
	}
}

func TestManyCreatesAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := w.create("", true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(w.vms()); n != 10 {
		t.Errorf("%d VMs", n)
	}
	w.checkLegal()
}

// A create in progress counts as one VM, before it has a row and after.
func TestLimitCountsACreateOnce(t *testing.T) {
	w := newWorldWith(t, func(w *world) { w.max = 2 })
	for _, step := range []string{"directory", "reserve"} {
		there, goOn := make(chan struct{}), make(chan struct{})
		w.injectAt(func(p point) error {
			if p == (point{step, "", step == "directory"}) {
				close(there)
				<-goOn
			}
			return nil
		})
		first := make(chan error, 1)
		go func() { first <- w.create("first", false) }()
		<-there
		w.inject(nil)
		w.must(w.create("second", false))
		if err := w.create("third", false); !errors.Is(err, errdefs.ErrExhausted) {
			t.Errorf("beyond the limit: %v", err)
		}
		close(goOn)
		w.must(<-first)
		w.must(w.delete("first", false))
		w.must(w.delete("second", false))
	}
}

func TestOneNameIsGivenOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for range cap(errs) {
		wg.Go(func() { errs <- w.create("dev", false) })
	}
	wg.Wait()
	close(errs)
	made := 0
	for err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("%v", err)
		}
	}
	if made != 1 {
		t.Errorf("%d creates of one name succeeded", made)
	}
	// A failed create gives its name back.
	w.inject(func(string) error { return errInjected })
	if err := w.create("other", false); err == nil {
		t.Error("a create with a fault succeeded")
	}
	w.inject(nil)
	w.must(w.create("other", false))
}

func TestVMsRunOnWithoutTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	was := w.snapshot()
	w.restart()
	if now := w.snapshot(); now != was {
		t.Errorf("after a restart\n%swas\n%s", now, was)
	}
}

// Whatever becomes of its handle, a running VM runs on, and is written down anew.
func TestLostHandles(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	w.must(w.create("other", true))
	was, pid := w.snapshot(), w.pid("dev")
	path := func(name string) string {
		v, err := w.db.FindVM(context.Background(), name)
		w.must(err)
		return filepath.Join(w.layout.VM(v.ID), paths.HandlesFile)
	}
	whole, err := os.ReadFile(path("dev"))
	w.must(err)
	others, err := os.ReadFile(path("other"))
	w.must(err)
	for name, text := range map[string]string{
		"gone": "", "damaged": "{nonsense", "cut off": string(whole[:len(whole)/2]), "of another VM": string(others),
		"stale": strings.Replace(string(whole), `"start_time": `, `"start_time": 1`, 1),
	} {
		w.must(os.Remove(path("dev")))
		if text != "" {
			w.must(os.WriteFile(path("dev"), []byte(text), 0o600))
		}
		w.restart()
		if now := w.snapshot(); now != was || w.pid("dev") != pid {
			t.Errorf("%s: after a restart with pid %d\n%swas with %d\n%s", name, w.pid("dev"), now, pid, was)
		}
		if again, err := os.ReadFile(path("dev")); err != nil || string(again) != string(whole) {
			t.Errorf("%s: the handle is now %s, %v; was %s", name, again, err, whole)
		}
		w.checkLegal()
	}
	dev := path("dev")
	// One that ended meanwhile is not found, and its VM says what happened.
	w.close()
	w.must(unix.Kill(pid, unix.SIGKILL))
	w.must(os.Remove(dev))
	staged := filepath.Join(filepath.Dir(dev), paths.StagingPrefix+paths.HandlesFile)
	w.must(os.WriteFile(staged, nil, 0o600)) // a daemon died while it wrote
	w.open()
	w.must(w.svc.Restore(context.Background()))
	if v, err := w.db.FindVM(context.Background(), "dev"); err != nil || v.State != model.StateStopped || v.LastError == "" {
		t.Errorf("vm is %s: %q, %v", v.State, v.LastError, err)
	}
	if _, err := os.Stat(staged); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished handle is left: %v", err)
	}
	w.checkLegal()
}

func TestAutoRemovedVMsGoWithTheirClient(t *testing.T) {
	w := newWorld(t)
	create := func(name string) {
		w.must(w.wait(w.svc.Handlers().Create(context.Background(),
			connect.NewRequest(&bangerv1.CreateRequest{Name: name, AutoRemove: true}))))
	}
	create("crashed")
	w.restart()
	if n := len(w.vms()); n != 0 {
		t.Errorf("%d VMs outlived the daemon that served their client", n)
	}
	for name, end := range map[string]func(string) error{"stopped": w.stop, "killed": w.kill} {
		create(name)
		w.must(end(name))
		if n := len(w.vms()); n != 0 {
			t.Errorf("a %s VM that was to vanish is still there", name)
		}
		w.checkLegal()
	}
}

func TestBadRequestsChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("taken", false))
	was := w.snapshot()
	n32 := func(n int32) *int32 { return &n }
	n64 := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		req  *bangerv1.CreateRequest
		want error
	}{
		{&bangerv1.CreateRequest{Name: "taken"}, errdefs.ErrAlreadyExists},
		{&bangerv1.CreateRequest{Name: "Not_A_Label"}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Cpus: n32(0)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Cpus: n32(-1)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Cpus: n32(100000)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{MemoryMib: n64(0)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{MemoryMib: n64(1 << 40)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{DiskBytes: n64(-5)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{DiskBytes: n64(1 << 60)}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Net: "bridge9"}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Env: []string{"NOVALUE"}}, errdefs.ErrInvalidArgument},
		{&bangerv1.CreateRequest{Image: "no-such-image"}, errdefs.ErrNotFound},
	} {
		err := w.wait(w.svc.Handlers().Create(context.Background(), connect.NewRequest(c.req)))
		if !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.req, err, c.want)
		}
	}
	if _, err := w.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: "takn"})); !errors.Is(api.FromConnect(err), errdefs.ErrNotFound) {
		t.Errorf("unknown name: %v", err)
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
}

// The default disk grows to an image that is larger; one that was asked for is what
// it is, and the answer to one that is too large or too small is one that will do.
func TestDiskFitsTheImage(t *testing.T) {
	w := newWorld(t)
	image, err := w.db.ImageByName(context.Background(), "debian")
	w.must(err)
	create := func(size int64, disk *int64) error {
		image.SizeBytes = size
		w.must(w.db.PutImage(context.Background(), image))
		return w.wait(w.svc.Handlers().Create(context.Background(),
			connect.NewRequest(&bangerv1.CreateRequest{Name: "dev", NoStart: true, DiskBytes: disk})))
	}
	w.must(create(80<<20+1, nil))
	if got := w.vms()[0].Spec.DiskBytes; got != 81<<20 {
		t.Errorf("the disk of an image of 81 MiB has %d bytes", got)
	}
	w.must(w.delete("dev", false))
	small := int64(70 << 20)
	if err := create(80<<20, &small); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), "--disk 80M or more") {
		t.Errorf("smaller than the image: %v (%s)", err, errdefs.HintOf(err))
	}
	small = 80 << 20
	w.must(create(80<<20, &small))
	w.must(w.delete("dev", false))
	if err := create(1<<60, nil); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), `image "debian"`) {
		t.Errorf("an image larger than the host: %v", err)
	}
	huge := int64(1 << 60)
	if err := create(80<<20, &huge); !errors.Is(err, errdefs.ErrInvalidArgument) || strings.Contains(errdefs.HintOf(err), "e.g.") {
		t.Errorf("larger than the host: %v (%s)", err, errdefs.HintOf(err))
	}
	w.checkLegal()
}

func TestVerbsAreIdempotent(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	w.must(w.start("dev"))
	w.must(w.stop("dev"))
	w.must(w.stop("dev"))
	w.must(w.kill("dev"))
	if err := w.delete("dev", false); err != nil {
		t.Error(err)
	}
	if err := w.delete("dev", false); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("deleting what is gone: %v", err)
	}
}

func TestRunningVMsAreNotDeletedWithoutForce(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	was := w.snapshot()
	if err := w.delete("dev", false); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
}

func TestRenameAndRestart(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	w.must(w.create("other", false))
	rename := func(from, to string) error {
		_, err := w.svc.Handlers().Rename(context.Background(), connect.NewRequest(&bangerv1.RenameRequest{Ref: from, Name: to}))
		return api.FromConnect(err)
	}
	if err := rename("dev", "other"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("taken: %v", err)
	}
	if err := rename("dev", "No"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no label: %v", err)
	}
	w.must(rename("dev", "prod"))
	boot := w.vms()[0].BootID
	resp, err := w.svc.Handlers().Restart(context.Background(), connect.NewRequest(&bangerv1.StopRequest{Ref: "prod"}))
	w.must(w.wait(resp, err))
	if now := w.vms()[0]; now.BootID == boot || now.State != model.StateRunning || now.Name != "prod" {
		t.Errorf("after a restart %s is %s with boot id %s, was %s", now.Name, now.State, now.BootID, boot)
	}
}
