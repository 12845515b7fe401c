package hypervisortest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Guest is a machine with a Linux guest and banger's agent in it, and the session that
// a daemon has with the agent.
type Guest struct {
	t       *testing.T
	ctx     context.Context
	driver  hypervisor.Driver
	spec    hypervisor.Spec
	machine hypervisor.Machine
	session *guest.Session
}

// BootGuest starts the machine of spec and returns once its agent has mounted the
// root. Nothing of the machine but its disks is left when it has ended, or the test.
func BootGuest(ctx context.Context, t *testing.T, d hypervisor.Driver, spec hypervisor.Spec) *Guest {
	t.Helper()
	g := &Guest{t: t, ctx: ctx, driver: d, spec: spec}
	begin := time.Now()
	m, err := d.Start(ctx, spec)
	if err != nil {
		t.Fatalf("%v (%s)", err, errdefs.HintOf(err))
	}
	g.machine = m
	t.Cleanup(g.close)
	cpus := time.Since(begin)
	g.connect()
	r := g.session.Ready()
	t.Logf("CPUs run after %s, agent ready after %s (guest: %d ms since its kernel began)", cpus, time.Since(begin), r.UptimeMillis)
	if !r.RootReady || r.Error != "" {
		t.Fatalf("ready %+v", r)
	}
	return g
}

func (g *Guest) connect() {
	g.t.Helper()
	conn, err := g.machine.DialAgent(g.ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	if g.session, err = guest.Connect(g.ctx, conn); err != nil {
		g.t.Fatal(err)
	}
}

// close removes the machine; it may be called twice.
func (g *Guest) close() {
	g.t.Helper()
	if g.machine == nil {
		return
	}
	m := g.machine
	g.machine = nil
	if g.session != nil {
		_ = g.session.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(g.driver.Cleanup(ctx, g.spec.Dir, m.Handle()), m.Close()); err != nil {
		g.t.Error(err)
	}
	if g.t.Failed() {
		for _, name := range []string{paths.ConsoleLog, paths.VMMLog} {
			b, _ := os.ReadFile(filepath.Join(g.spec.Dir, name))
			g.t.Logf("%s:\n%s", name, b)
		}
	}
}

// NextDaemon lets the daemon die with the channel open, and another take over.
func (g *Guest) NextDaemon() {
	g.t.Helper()
	if err := g.machine.Close(); err != nil {
		g.t.Fatal(err)
	}
	_ = g.session.Close()
	m, err := g.driver.Attach(g.ctx, g.spec, g.machine.Handle())
	if err != nil {
		g.t.Fatal(err)
	}
	g.machine = m
	g.connect()
}

// Run has the guest's shell run a script, which must end with this exit code.
func (g *Guest) Run(want int, script string) {
	g.t.Helper()
	if st, err := g.exec(script); err != nil || st.Code != want {
		g.t.Fatalf("%s: %+v, %v", script, st, err)
	}
}

func (g *Guest) exec(script string) (guest.ExitStatus, error) {
	conn, err := g.session.Open(g.ctx)
	if err != nil {
		return guest.ExitStatus{}, err
	}
	return guest.RunExec(g.ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sh", "-c", script}}}, guest.ExecIO{})
}

// Shutdown asks the agent to end the machine, and waits until it has.
func (g *Guest) Shutdown() hypervisor.Exit {
	g.t.Helper()
	conn, err := g.session.Open(g.ctx)
	if err == nil {
		_, err = guest.Call(g.ctx, conn, guest.Request{Kind: guest.KindShutdown})
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return g.ended()
}

// PowerButton presses it, and waits for the end of the machine.
func (g *Guest) PowerButton() hypervisor.Exit {
	g.t.Helper()
	if err := g.machine.PowerButton(g.ctx); err != nil {
		g.t.Fatal(err)
	}
	return g.ended()
}

// PowerOff has a script end the machine from inside, and waits until it has.
func (g *Guest) PowerOff(script string) hypervisor.Exit {
	g.t.Helper()
	go func() { _, _ = g.exec(script) }() // ends with the channel
	return g.ended()
}

func (g *Guest) ended() hypervisor.Exit {
	g.t.Helper()
	select {
	case <-g.machine.Done():
	case <-g.ctx.Done():
		g.t.Fatal("the guest does not end")
	}
	exit := g.machine.Exit()
	g.close()
	return exit
}
