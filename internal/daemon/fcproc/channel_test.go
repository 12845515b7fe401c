package fcproc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// kvmAbsent is a host without KVM.
func kvmAbsent(context.Context) error {
	return errdefs.Unsupported("no KVM here").WithHint("get some")
}

// startFake starts a fake machine for the length of a test.
func startFake(t *testing.T, cmdline string) (hypervisor.Spec, hypervisor.Machine) {
	t.Helper()
	useFake(t)
	dir := t.TempDir()
	spec := testSpec(t, dir)
	spec.Cmdline = cmdline
	d := newDriver()
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v (%s)", err, errdefs.HintOf(err))
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Cleanup(context.Background(), dir, m.Handle()), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return spec, m
}

// echo sends something to the agent and waits until it comes back.
func echo(t *testing.T, m hypervisor.Machine) {
	t.Helper()
	conn, err := m.DialAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// An agent is reached whether it listens before the host comes or after that, and
// whether or not it can tell.
func TestChannel(t *testing.T) {
	for _, agent := range []string{"there", "late", "shy"} {
		t.Run(agent, func(t *testing.T) {
			spec, m := startFake(t, "fake.agent="+agent)
			echo(t, m)
			echo(t, m)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			found, err := newDriver().Attach(t.Context(), spec, m.Handle())
			if err != nil {
				t.Fatal(err)
			}
			defer found.Close()
			echo(t, found)
		})
	}
}

// The first daemon goes before the agent is there; the next one hears the bell.
func TestBellOfTheNextDaemon(t *testing.T) {
	spec, m := startFake(t, "fake.agent=late")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := newDriver().Attach(t.Context(), spec, m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	echo(t, found)
}

// Anyone in a guest can ring, and who does holds Firecracker's only thread until the
// ring is taken or refused: while the agent is connected, and when no daemon is there.
func TestBellNeverHolds(t *testing.T) {
	spec, m := startFake(t, "fake.agent=there")
	conn, err := m.DialAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // it is connected
		t.Fatal(err)
	}
	bell := fmt.Sprintf("%s_%d", paths.AgentSocket, guest.VsockPort)
	ring := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ring, err := dirsock.Dial(ctx, filepath.Join(spec.Dir, placeOf(t)), bell)
		if err == nil {
			_ = ring.Close()
		}
		return err
	}
	for i := range 40 {
		if err := ring(); err != nil {
			t.Fatalf("ring %d: %v", i, err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ring(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a ring that nobody hears: %v", err)
	}
}

// Nobody is held by a guest that has no agent.
func TestChannelWithoutAgent(t *testing.T) {
	_, m := startFake(t, "")
	conn, err := m.DialAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	past := time.Unix(1, 0)
	for name, wait := range map[string]func() error{
		"read":  func() error { _, err := conn.Read(make([]byte, 1)); return err },
		"write": func() error { _, err := conn.Write([]byte("x")); return err },
	} {
		if err := conn.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- wait() }()
		if err := conn.SetDeadline(past); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { _, err := conn.Read(make([]byte, 1)); done <- err }()
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("read from a machine that has ended")
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// The calls that make a machine, in their order: changing it breaks snapshots.
func TestCalls(t *testing.T) {
	useFake(t)
	spec, _ := startFake(t, "fake.calls")
	console := filepath.Join(spec.Dir, paths.ConsoleLog)
	waitFor(t, console, "InstanceStart")
	b, err := os.ReadFile(console)
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "PUT ") {
			calls = append(calls, strings.TrimSpace(line))
		}
	}
	want := []string{
		`PUT /metrics {"metrics_path":"metrics"}`,
		`PUT /machine-config {"vcpu_count":1,"mem_size_mib":64,"smt":false}`,
		`PUT /boot-source {"kernel_image_path":"`,
		`PUT /drives/disk0 {"drive_id":"disk0","path_on_host":"`,
		`PUT /balloon {"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":60}`,
		`PUT /vsock {"guest_cid":3,"uds_path":"agent.sock"}`,
		`PUT /entropy {}`,
		`PUT /actions {"action_type":"InstanceStart"}`,
	}
	if len(calls) != len(want) {
		t.Fatalf("got\n%s", strings.Join(calls, "\n"))
	}
	for i, c := range calls {
		if !strings.HasPrefix(c, want[i]) {
			t.Errorf("call %d: %s, want %s", i, c, want[i])
		}
	}
	const limits = `"is_root_device":false,"is_read_only":false,"cache_type":"Writeback",` +
		`"rate_limiter":{"bandwidth":{"size":104857600,"refill_time":1000},"ops":{"size":5000,"refill_time":1000}}}`
	if !strings.HasSuffix(calls[3], limits) {
		t.Errorf("disk: %s", calls[3])
	}
	if strings.Contains(string(b), spec.Dir) || strings.Contains(string(b), spec.VMID) {
		t.Errorf("something names the VM:\n%s", b)
	}
}

// A Firecracker that ends while it is being told what to do says why in its log.
func TestEndsEarly(t *testing.T) {
	useFake(t)
	spec := testSpec(t, t.TempDir())
	spec.Cmdline = "fake.end"
	_, err := newDriver().Start(t.Context(), spec)
	if err == nil || !strings.Contains(err.Error(), "it is broken") {
		t.Errorf("got %v", err)
	}
}

// A guest that powers itself off ends its machine, in order.
func TestGuestHalts(t *testing.T) {
	_, m := startFake(t, "fake.halt")
	<-m.Done()
	if e := m.Exit(); !e.Known || e.Code != 0 || e.Signal != 0 {
		t.Errorf("exit %+v", e)
	}
}

// What answers on a socket in the VMM's directory is not believed to be the VMM.
func TestForeignSocket(t *testing.T) {
	spec, m := startFake(t, "")
	place := filepath.Join(spec.Dir, placeOf(t))
	victim := filepath.Join(t.TempDir(), "victim")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: victim}), unix.Listen(l, 4)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{paths.APISocket, paths.AgentSocket} {
		if err := errors.Join(os.Remove(filepath.Join(place, name)), os.Symlink(victim, filepath.Join(place, name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := newDriver().Attach(t.Context(), spec, m.Handle()); err == nil || errdefs.ClassOf(err) != errdefs.ClassUnavailable {
		t.Errorf("attach: %v", err)
	}
	// It is found all the same, and the foreign listener left alone.
	if err := newDriver().Cleanup(t.Context(), spec.Dir, hypervisor.Handle{}); err != nil {
		t.Fatal(err)
	}
	if start, err := sysexec.StartTime(m.Handle().PID); err == nil && start == m.Handle().StartTime {
		t.Error("the VMM runs on")
	}
}

// A VMM without a jail that was taken over can clear its marks and its socket; where it
// works it cannot change.
func TestHiddenVMM(t *testing.T) {
	t.Setenv(noJailEnv, "1")
	spec, m := startFake(t, "fake.hide")
	h := m.Handle()
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", h.PID)); err != nil || bytes.Contains(env, []byte("BANGER")) {
		t.Fatalf("its environment is %q, %v", env, err)
	}
	api := filepath.Join(spec.Dir, placeOf(t), paths.APISocket)
	if err := errors.Join(m.Close(), os.Remove(api), os.WriteFile(api, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if found, err := newDriver().Find(t.Context(), spec.Dir); err != nil || found.PID != h.PID || found.StartTime != h.StartTime {
		t.Errorf("found %+v, %v; want %+v", found, err, h)
	}
	if err := newDriver().Cleanup(t.Context(), spec.Dir, hypervisor.Handle{}); err != nil {
		t.Fatal(err)
	}
	if start, err := sysexec.StartTime(h.PID); err == nil && start == h.StartTime {
		t.Error("the VMM runs on")
	}
}
