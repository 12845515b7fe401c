package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/fakevm"
	"banger/internal/daemon/vm"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

// full is a world whose VM "dev" runs, until its disk is full.
type full struct {
	*world
	file  string     // is there while the disk is full
	bells chan *bell // of looks at the space
}

func newFull(t *testing.T) *full {
	t.Helper()
	f := &full{file: filepath.Join(t.TempDir(), "full"), bells: make(chan *bell, 100)}
	f.world = newWorldWith(t, func(w *world) {
		w.clock = func(_ time.Duration, ring func()) vm.Timer {
			b := &bell{ring: ring, set: true}
			f.bells <- b
			return b
		}
	})
	f.must(f.create("dev", false))
	f.knob(f.vms()[0].ID, fakevm.Knobs{FullFile: f.file})
	return f
}

func (f *full) fill() {
	f.t.Helper()
	f.must(os.WriteFile(f.file, nil, 0o600))
}

// bell is the clock that a stalled VM waits for.
func (f *full) bell() *bell {
	f.t.Helper()
	select {
	case b := <-f.bells:
		return b
	case <-time.After(30 * time.Second):
		f.t.Fatal("nobody waits for space")
		return nil
	}
}

func (f *full) get() *bangerv1.VM {
	f.t.Helper()
	resp, err := f.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: "dev"}))
	f.must(err)
	return resp.Msg
}

func shell(line string) guest.Request {
	return guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sh", "-c", line}}}
}

// exec runs a line in the guest; the result comes when it has ended.
func (f *full) exec(line string) <-chan string {
	f.t.Helper()
	conn, err := f.svc.OpenAgent(context.Background(), f.get().Id, shell(line))
	f.must(err)
	result := make(chan string, 1)
	go func() {
		defer conn.Close()
		var out bytes.Buffer
		for r := guest.NewFrameReader(conn); ; {
			channel, payload, err := r.Next()
			if err != nil {
				result <- "lost: " + err.Error()
				return
			}
			if channel == guest.ChanStdout {
				out.Write(payload)
				continue
			}
			if c, err := guest.DecodeControl(payload); err == nil && c.Type == guest.ControlExit {
				result <- out.String()
				return
			}
		}
	}()
	return result
}

func (f *full) refused(what string, err error) {
	f.t.Helper()
	if !errors.Is(err, errdefs.ErrExhausted) || !strings.Contains(err.Error(), "no space left on device") ||
		!strings.Contains(errdefs.HintOf(err), "free some space") {
		f.t.Errorf("%s: %v (%s, hint %q)", what, err, errdefs.ClassOf(err), errdefs.HintOf(err))
	}
}

// A guest that writes to a full disk waits for space, and loses nothing.
func TestFullDiskPausesAVM(t *testing.T) {
	f := newFull(t)
	f.must(f.start("dev"))
	if text := f.get().Paused; text != "" {
		t.Errorf("paused: %q", text)
	}
	f.fill()
	result := f.exec("echo kept >/root/file; cat /root/file")
	b := f.bell()
	f.paused()
	_, err := f.svc.Handlers().Rename(context.Background(), connect.NewRequest(&bangerv1.RenameRequest{Ref: "dev", Name: "other"}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("rename: %v", err)
	}
	// The host has space again, but not for this guest, which tries in vain.
	b.over()
	b = f.bell()
	f.must(os.Remove(f.file))
	f.goesOn(b)
	if got := <-result; got != "kept\n" {
		t.Errorf("the command said %q", got)
	}
	f.must(f.stop("dev"))
	f.checkLegal()
}

// A daemon that is started anew finds a paused VM so, and gets it going.
func TestFullDiskOutlivesADaemon(t *testing.T) {
	f := newFull(t)
	f.must(f.start("dev"))
	f.fill()
	f.exec("echo kept >/root/file")
	f.bell()
	f.restart()
	b := f.bell()
	f.paused()
	f.must(os.Remove(f.file))
	f.goesOn(b)
	if got := <-f.exec("echo runs"); got != "runs\n" {
		t.Errorf("the guest said %q", got)
	}
}

// A boot that finds the disk full fails at once, with nothing left.
func TestFullDiskFailsABoot(t *testing.T) {
	f := newFull(t)
	f.fill()
	f.refused("start", f.start("dev"))
	f.checkLegal()
	f.must(os.Remove(f.file))
	f.must(f.start("dev"))
}

// A VM that cannot write what it has is ended all the same when it is to stop, and
// whoever stopped it is told what that cost.
func TestStopOnAFullDisk(t *testing.T) {
	f := newFull(t)
	for _, during := range []bool{false, true} {
		f.must(f.start("dev"))
		f.fill()
		if !during {
			f.exec("echo lost >/root/file")
			f.bell()
		}
		err := f.stop("dev")
		f.refused("stop", err)
		if text := f.vms()[0].LastError; !strings.Contains(err.Error(), text) || !strings.Contains(text, "may be lost") {
			t.Errorf("last error %q of %v", text, err)
		}
		f.checkLegal()
		f.must(os.Remove(f.file))
	}
	// With space it stops in order, whether or not somebody looked already.
	f.must(f.start("dev"))
	f.fill()
	f.exec("echo kept >/root/file")
	f.bell()
	f.must(os.Remove(f.file))
	f.must(f.stop("dev"))
	f.checkLegal()
	// Kill and delete need no space.
	for _, end := range []func() error{func() error { return f.kill("dev") }, func() error { return f.delete("dev", true) }} {
		f.must(f.start("dev"))
		f.fill()
		f.exec("echo lost >/root/file")
		f.bell()
		f.must(end())
		f.checkLegal()
		f.must(os.Remove(f.file))
	}
}

// paused checks what is said of a paused VM, and refused of it.
func (f *full) paused() {
	f.t.Helper()
	if v := f.get(); v.State != string(model.StateRunning) || !strings.HasPrefix(v.Paused, "no space left on the host's disk, since ") {
		f.t.Errorf("the VM is %s, paused: %q", v.State, v.Paused)
	}
	_, err := f.svc.OpenAgent(context.Background(), f.get().Id, shell("true"))
	f.refused("exec", err)
}

// goesOn rings until the VM is no longer paused.
func (f *full) goesOn(b *bell) {
	f.t.Helper()
	b.over()
	for over := time.After(30 * time.Second); f.get().Paused != ""; {
		select {
		case b := <-f.bells:
			b.over()
		case <-time.After(10 * time.Millisecond):
		case <-over:
			f.t.Fatal("the VM does not go on")
		}
	}
}
