package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/daemon/rootdisk"
	"banger/internal/guest"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

const firecrackerLimit = 1.25

// onFirecracker are the flags of what runs on it where it runs at all.
var onFirecracker = []string{"--driver", "firecracker", "--net", "none"}

// measureFirecracker compares `vm run --rm -- true` on Firecracker with its floor: the
// same Firecracker with the same kernel, initramfs, devices and a fresh disk of the
// same image, started and configured by hand, until the agent says that it is ready.
// What the jailer, the configuration of the guest, the command and the deletion of
// the VM take is banger's to pay for.
func measureFirecracker(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 5
	}
	program := os.Getenv("FIRECRACKER_BIN")
	if program == "" {
		program, _ = exec.LookPath("firecracker")
	}
	if program == "" {
		l.say("  left out: there is no Firecracker, neither at FIRECRACKER_BIN nor in PATH")
		return nil, nil
	}
	d, err := l.ready(ctx)
	if err != nil {
		return nil, err
	}
	model, err := l.create(ctx, "bench-fire", onFirecracker...)
	if err != nil {
		return nil, err
	}
	t, err := model.fireTemplate(ctx, l, program)
	if err = errors.Join(err, model.remove(ctx)); err != nil {
		return nil, err
	}
	defer os.RemoveAll(t.dir)
	run := slices.Concat([]string{"vm", "run", "--rm"}, onFirecracker, []string{"--", "true"})
	value, floor, err := inTurns(1, n, time.Millisecond,
		func() (time.Duration, error) { return timed(d.cli(ctx, run...)) },
		func() (time.Duration, error) { return l.fireOnce(ctx, t) })
	if err != nil {
		return nil, err
	}
	f := figure("firecracker", "ms", value, floor, firecrackerLimit, onRatio)
	f.What = "banger vm run --rm -- true on Firecracker, whole process"
	f.FloorIs = "same Firecracker by hand, to the agent's ready event"
	f.Notes = "Firecracker " + model.VMMVersion
	return []Figure{f}, nil
}

// fireTemplate is how Firecracker was started for a VM of the daemon's.
type fireTemplate struct {
	program string
	dir     string // holds the files that do not change, under the names the configuration has for them
	config  fireConfig
	root    string // its name for the root disk
	image   image
	size    int64 // of the root disk, in bytes
}

// fireConfig is what Firecracker says of its machine, as far as it is made again.
type fireConfig struct {
	Machine fcapi.Machine   `json:"machine-config"`
	Boot    fcapi.Boot      `json:"boot-source"`
	Drives  []fcapi.Drive   `json:"drives"`
	Balloon fcapi.Balloon   `json:"balloon"`
	Vsock   fcapi.Vsock     `json:"vsock"`
	Entropy *map[string]any `json:"entropy"`
}

// fireTemplate asks the running Firecracker. In its jail files have names of their
// own; what they name is linked into a directory of ours under the same.
func (v *sandbox) fireTemplate(ctx context.Context, l *lab, program string) (t fireTemplate, err error) {
	t = fireTemplate{program: program, size: v.DiskBytes}
	place := filepath.Join(v.Dir, paths.JailDir, filepath.Base(program), "vm", "root")
	api := fcapi.New(func(ctx context.Context) (net.Conn, error) { return dirsock.Dial(ctx, place, paths.APISocket) })
	defer api.Close()
	if err := api.Get(ctx, "/vm/config", &t.config); err != nil {
		return t, fmt.Errorf("ask Firecracker for its configuration: %w", err)
	}
	if err := v.decode(ctx, &t.image, "image", "show", "--json", "debian"); err != nil {
		return t, err
	}
	if t.dir, err = os.MkdirTemp(l.scratch, "fire-"); err != nil {
		return t, err
	}
	names := []string{t.config.Boot.Kernel, t.config.Boot.Initrd}
	for _, drive := range t.config.Drives {
		if drive.ReadOnly {
			names = append(names, drive.Path)
		} else {
			t.root = drive.Path
		}
	}
	for _, name := range names {
		if err := os.Link(filepath.Join(place, name), filepath.Join(t.dir, name)); err != nil {
			return t, fmt.Errorf("take over what Firecracker boots: %w", err)
		}
	}
	return t, nil
}

// fireOnce boots a guest by hand, ends it, and returns how long the boot took.
func (l *lab) fireOnce(ctx context.Context, t fireTemplate) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(l.scratch, "floor-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	shared, err := os.ReadDir(t.dir)
	if err != nil {
		return 0, err
	}
	for _, e := range shared {
		if err := os.Link(filepath.Join(t.dir, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return 0, err
		}
	}
	disk := rootdisk.Disk{Dir: dir, Image: t.image.Path, Size: t.size}
	if err := rootdisk.Sparse().Create(ctx, disk); err != nil {
		return 0, err
	}
	if err := os.Rename(filepath.Join(dir, paths.RootRawFile), filepath.Join(dir, t.root)); err != nil {
		return 0, err
	}
	return l.fire(ctx, t, dir)
}

// fire starts Firecracker in dir, makes the machine over its API, and waits for the
// agent's ready event, of which the agent tells by a connection to us.
func (l *lab) fire(ctx context.Context, t fireTemplate, dir string) (took time.Duration, err error) {
	bellFile, err := dirsock.Listen(dir, fmt.Sprintf("%s_%d", paths.AgentSocket, guest.VsockPort))
	if err != nil {
		return 0, err
	}
	defer bellFile.Close()
	bell, err := net.FileListener(bellFile)
	if err != nil {
		return 0, err
	}
	defer bell.Close()
	log, err := os.Create(filepath.Join(dir, paths.VMMLog))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(t.program, "--id", "vm", "--api-sock", paths.APISocket)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, []string{}, log, log

	began := time.Now()
	if err := l.thread.start(cmd, unix.SIGKILL); err != nil {
		return 0, fmt.Errorf("start Firecracker by hand: %w", err)
	}
	up, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
		cancel(errors.New("it ended"))
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-exited
		if err != nil {
			said, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("boot by hand: %w: %s", err, bytes.TrimSpace(said))
		}
	}()
	stop := context.AfterFunc(up, func() { _ = bell.Close() })
	defer stop()
	if err := t.configure(up, dir); err != nil {
		return 0, err
	}
	conn, err := bell.Accept()
	if err != nil {
		return 0, errors.Join(context.Cause(up), err)
	}
	_ = conn.Close()
	session, err := reach(up, dir)
	took = time.Since(began)
	if err != nil {
		return 0, err
	}
	defer session.Close()
	if !session.Ready().RootReady {
		return 0, errors.New(session.Ready().Error)
	}
	return took, nil
}

// configure makes the machine and lets it run.
func (t fireTemplate) configure(ctx context.Context, dir string) error {
	if err := listens(ctx, dir); err != nil {
		return err
	}
	api := fcapi.New(func(ctx context.Context) (net.Conn, error) { return dirsock.Dial(ctx, dir, paths.APISocket) })
	defer api.Close()
	type call struct {
		path string
		body any
	}
	calls := []call{{fcapi.PathMachine, t.config.Machine}, {fcapi.PathBoot, t.config.Boot}}
	for _, drive := range t.config.Drives {
		calls = append(calls, call{fcapi.PathDrives + drive.ID, drive})
	}
	calls = append(calls, call{fcapi.PathBalloon, t.config.Balloon}, call{fcapi.PathVsock, t.config.Vsock})
	if t.config.Entropy != nil {
		calls = append(calls, call{fcapi.PathEntropy, struct{}{}})
	}
	for _, c := range append(calls, call{fcapi.PathActions, fcapi.Action{Type: fcapi.ActionStart}}) {
		if err := api.Put(ctx, c.path, c.body); err != nil {
			return err
		}
	}
	return nil
}

// listens returns when Firecracker does.
func listens(ctx context.Context, dir string) error {
	for {
		conn, err := dirsock.Dial(ctx, dir, paths.APISocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// reach connects to the agent of a guest.
func reach(ctx context.Context, dir string) (*guest.Session, error) {
	conn, err := dirsock.Dial(ctx, dir, paths.AgentSocket)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", guest.VsockPort); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var line strings.Builder
	for b := make([]byte, 1); b[0] != '\n'; line.Write(b) { // what follows the line is the agent's
		if _, err := conn.Read(b); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if !strings.HasPrefix(line.String(), "OK ") {
		return nil, errors.Join(fmt.Errorf("answered with %q", line.String()), conn.Close())
	}
	return guest.Connect(ctx, conn)
}
