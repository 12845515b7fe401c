package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	memoryLimit = 40 // MB of 10^6 bytes
	// restTime is how long a daemon has had nothing to do when it is measured.
	restTime = 3 * time.Second
)

// measureDaemon measures daemons of their own: what they keep resident without
// VMs, and how many goroutines 1,000 stopped VMs add.
func measureDaemon(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 3
	}
	empty, err := l.crowd(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(empty)
	full, err := l.crowd(ctx, stoppedVMs)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(full)
	var memory, memoryFull, floor, added, before samples
	for range n {
		mb, idle, err := l.atRest(ctx, empty)
		if err != nil {
			return nil, err
		}
		mbFull, crowded, err := l.atRest(ctx, full)
		if err != nil {
			return nil, err
		}
		least, err := l.leastMemory(ctx)
		if err != nil {
			return nil, err
		}
		memory, memoryFull, floor = append(memory, mb), append(memoryFull, mbFull), append(floor, least)
		added, before = append(added, float64(crowded-idle)), append(before, float64(idle))
	}
	rss := figure("daemon-rss", "MB", memory, floor, memoryLimit, onValue)
	rss.What, rss.FloorIs = "resident memory of bangerd at rest, 0 VMs", "bangerd before it reads its configuration"
	rss.Notes = fmt.Sprintf("with %d stopped VMs it is %s MB", stoppedVMs, number(memoryFull.median()))
	routines := figure("daemon-goroutines", "goroutines", added, before, 0, onValue)
	routines.What = fmt.Sprintf("goroutines that %d stopped VMs add", stoppedVMs)
	routines.FloorIs = "goroutines with 0 VMs"
	return []Figure{rss, routines}, nil
}

// atRest starts a daemon, lets it answer one call, and returns its resident
// memory once it has had nothing to do for a while, and its goroutines.
func (l *lab) atRest(ctx context.Context, state string) (mb float64, goroutines int, err error) {
	d, err := l.serve(ctx, state)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, d.stop(context.WithoutCancel(ctx))) }()
	if _, err := output(d.cli(ctx, "vm", "list", "-q")); err != nil {
		return 0, 0, err
	}
	if err := rest(ctx, d); err != nil {
		return 0, 0, err
	}
	if mb, err = residentMB(d.pid()); err != nil {
		return 0, 0, err
	}
	goroutines, err = d.goroutines(ctx)
	return mb, goroutines, err
}

// rest lets time pass: being at rest is what is measured.
func rest(ctx context.Context, d *daemon) error {
	select {
	case <-time.After(restTime):
		return nil
	case <-d.exited:
		return errors.New("the daemon ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startedBy is the last line of a goroutine's stack, which names who started it.
const startedBy = "created by "

// goroutines has the runtime print the stacks of all goroutines, which ends the
// daemon, and counts those of the program: the runtime starts and keeps workers of
// its own as it likes.
func (d *daemon) goroutines(ctx context.Context) (int, error) {
	if err := d.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return 0, err
	}
	select {
	case <-d.exited:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	f, err := os.Open(d.layout.DaemonLog())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	count := 1 // the first one was created by nobody
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if by, ok := strings.CutPrefix(lines.Text(), startedBy); ok && !strings.HasPrefix(by, "runtime.") {
			count++
		}
	}
	if count == 1 {
		return 0, errors.New("the daemon's log lists no goroutines")
	}
	return count, lines.Err()
}

// leastMemory is what the same program needs resident to do nothing yet: it is
// held up where it reads its configuration, which is a pipe that we do not fill.
func (l *lab) leastMemory(ctx context.Context) (mb float64, err error) {
	fifo := filepath.Join(l.scratch, "config")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(fifo)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.program("bangerd"), "config", "show", "--config", fifo)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		// Should it end without having read, nobody else lets go of the writer.
		if r, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = r.Close()
		}
	}()
	defer func() { <-ended }()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when it has begun to read
	if err != nil {
		cancel()
		return 0, err
	}
	defer w.Close()
	return residentMB(cmd.Process.Pid)
}

// measureUsedDaemon measures a daemon that ran VMs and has none now, with the
// network helper if it is still there.
func (l *lab) measureUsedDaemon(ctx context.Context, d *daemon) (Figure, error) {
	if err := rest(ctx, d); err != nil {
		return Figure{}, err
	}
	mb, err := residentMB(d.pid())
	if err != nil {
		return Figure{}, err
	}
	notes := fmt.Sprintf("bangerd %s MB, no network helper", number(mb))
	if helper := d.helper(ctx); helper != 0 {
		its, err := residentMB(helper)
		if err != nil {
			return Figure{}, err
		}
		notes = fmt.Sprintf("bangerd %s MB, network helper %s MB; what both map of their program counts once", number(mb), number(its))
		if mb, err = residentMB(d.pid(), helper); err != nil {
			return Figure{}, err
		}
	}
	least, err := l.leastMemory(ctx)
	if err != nil {
		return Figure{}, err
	}
	f := figure("daemon-rss-used", "MB", samples{mb}, samples{least}, memoryLimit, onValue)
	f.What, f.FloorIs, f.Notes = "the same after VMs ran, with the network helper", "bangerd before it reads its configuration", notes
	return f, nil
}
