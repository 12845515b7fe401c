package main

import (
	"context"
	"fmt"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/guest"
)

const (
	execLimit    = 0.25
	execAPILimit = 1.25
)

// measureExec compares `exec VM -- true` with ssh, both whole processes, in turns:
// one asks the agent through the daemon, the other makes a new connection to an
// OpenSSH server in a VM of the same image and shape.
func measureExec(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 100
	}
	vm, err := l.settled(ctx)
	if err != nil {
		return nil, err
	}
	server, err := l.sshServer(ctx)
	if err != nil {
		return nil, err
	}
	value, floor, err := inTurns(2, n, time.Millisecond,
		func() (time.Duration, error) { return timed(vm.cli(ctx, "exec", vm.Name, "--", "true")) },
		func() (time.Duration, error) { return server.wire.thread.timed(server.ssh(ctx, "true")) })
	if err != nil {
		return nil, err
	}
	f := figure("exec", "ms", value, floor, execLimit, onRatio)
	f.What, f.FloorIs = "banger exec VM -- true, whole process", "ssh -- true, new connection"
	f.Notes = server.describe()
	return []Figure{f}, nil
}

// measureExecAPI measures a command through the API of a daemon that is connected
// to the guest: open a stream, run, read the status. The floor is what nobody can
// save: the agent's own fork, exec and wait of the same command, and one round
// trip of the channel that a no-op makes, each timed in turns with it.
func measureExecAPI(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 300
	}
	vm, err := l.settled(ctx)
	if err != nil {
		return nil, err
	}
	c := client.New(vm.layout.Socket)
	defer c.Close()
	path := api.StreamPath(vm.ID)
	conn, err := c.OpenStream(ctx, path)
	if err != nil {
		return nil, err
	}
	pinger, err := guest.OpenPing(ctx, conn)
	if err != nil {
		return nil, err
	}
	defer pinger.Close()
	var value, trip, spawn, floor samples
	for i := range n + 20 {
		took, err := execOnce(ctx, c, path)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		if err := pinger.Ping(ctx); err != nil {
			return nil, err
		}
		ping := time.Since(start)
		inside, err := spawnOnce(ctx, c, path)
		if err != nil {
			return nil, err
		}
		if i >= 20 {
			value.add(took, time.Millisecond)
			trip.add(ping, time.Millisecond)
			spawn.add(inside, time.Millisecond)
			floor.add(inside+ping, time.Millisecond)
		}
	}
	f := figure("exec-api", "ms", value, floor, execAPILimit, onRatio)
	f.Floor = spawn.median() + trip.median()
	f.Ratio = f.Value / f.Floor
	f.Pass = f.Ratio <= f.Limit
	f.What, f.FloorIs = "the same through the API", "the agent's fork+exec, and a round trip"
	f.Notes = fmt.Sprintf("fork+exec+wait in the guest %s ms, round trip of a no-op %s ms", number(spawn.median()), number(trip.median()))
	return []Figure{f}, nil
}

func execOnce(ctx context.Context, c *client.Client, path string) (time.Duration, error) {
	start := time.Now()
	conn, err := c.OpenStream(ctx, path)
	if err != nil {
		return 0, err
	}
	request := guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"true"}}}
	status, err := guest.RunExec(ctx, conn, request, guest.ExecIO{})
	took := time.Since(start)
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("true ended with status %d", status.Code)
	}
	return took, err
}

// spawnOnce has the agent run the same command and says how long that took there.
func spawnOnce(ctx context.Context, c *client.Client, path string) (time.Duration, error) {
	conn, err := c.OpenStream(ctx, path)
	if err != nil {
		return 0, err
	}
	request := guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: 1}}
	done, err := guest.Call(ctx, conn, request)
	if err != nil {
		return 0, err
	}
	if len(done.Nanos) != 1 {
		return 0, fmt.Errorf("the agent timed %d runs, not one", len(done.Nanos))
	}
	return time.Duration(done.Nanos[0]), nil
}
