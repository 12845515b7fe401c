package serve

import (
	"context"
	"strings"
	"testing"
	"time"

	"banger/internal/guest"
)

// firstOutput collects what is written and says when that begins.
type firstOutput struct {
	strings.Builder
	begun chan struct{}
}

func (f *firstOutput) Write(p []byte) (int, error) {
	if f.Len() == 0 {
		close(f.begun)
	}
	return f.Builder.Write(p)
}

// started runs a shell line until it prints something. The end of ctx hangs up on it.
func (w *world) started(ctx context.Context, line string, signal int) (ended <-chan guest.ExitStatus, out *firstOutput) {
	w.t.Helper()
	out = &firstOutput{begun: make(chan struct{})}
	over, conn := make(chan guest.ExitStatus, 1), w.dial()
	go func() {
		defer close(over)
		e := guest.Exec{Args: []string{"bash", "-c", line}, StopSignal: signal}
		st, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdout: out})
		if err == nil {
			over <- st
		}
	}()
	<-out.begun
	return over, out
}

// Before the machine goes down, a command gets the signal it wants, alone, and has time
// to end by it.
func TestStopSignal(t *testing.T) {
	w := newWorld(t)
	ended, out := w.started(w.context(), `
		bash -c 'trap "echo child" RTMIN+3; echo up; while :; do sleep 1000 & wait; done' & child=$!
		trap 'echo asked; sync; kill -HUP -- -$$; trap "exit 5" HUP' RTMIN+3; trap 'exit 5' HUP; while :; do wait; done`, 37)
	if _, err := w.call(guest.Request{Kind: guest.KindShutdown}); err != nil {
		t.Error(err)
	}
	if st := <-ended; st.Code != 5 || out.String() != "up\nasked\n" {
		t.Errorf("%+v %q", st, out.String())
	}
	w.serving.Wait()
	if !w.machine.off {
		t.Error("the machine was not turned off")
	}
	w.server.running.Wait()
	if len(w.server.stopping) != 0 {
		t.Error("a command that has ended is still to be stopped")
	}
}

// A command that does not care holds the machine up for the time it has, and no longer;
// one without a signal is left to the machine.
func TestStopSignalIgnored(t *testing.T) {
	w := newWorld(t)
	ctx, hangUp := context.WithCancel(w.context())
	defer hangUp()
	deaf, _ := w.started(ctx, "trap '' USR1; echo up; exec sleep 1000", 10)
	plain, _ := w.started(ctx, "echo up; exec sleep 1000", 0)
	began := time.Now()
	if _, err := w.call(guest.Request{Kind: guest.KindShutdown, Shutdown: &guest.Shutdown{GraceMillis: 60}}); err != nil {
		t.Error(err)
	}
	if got := <-w.machine.went; got.Sub(began) < 60*time.Millisecond {
		t.Errorf("the machine went down after %v", got.Sub(began))
	}
	for name, over := range map[string]<-chan guest.ExitStatus{"deaf": deaf, "plain": plain} {
		select {
		case st := <-over:
			t.Errorf("the command that is %s has ended: %+v", name, st)
		default:
		}
	}
}
