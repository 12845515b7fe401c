package main

import (
	"context"
	"fmt"
	"time"
)

// streamBytes is what a command prints that is measured for how fast that comes.
const streamBytes = 512 << 20

// measureSSH compares SSH to a VM through the guest channel, which is served by the agent,
// with an OpenSSH server that is reached by network, both as whole processes with a new
// connection each.
func measureSSH(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 50
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
		func() (time.Duration, error) { return timed(vm.cli(ctx, "vm", "ssh", vm.Name, "--", "true")) },
		func() (time.Duration, error) { return server.wire.thread.timed(server.ssh(ctx, "true")) })
	if err != nil {
		return nil, err
	}
	f := figure("ssh", "ms", value, floor, 0, onNothing)
	f.What, f.FloorIs = "banger vm ssh VM -- true, whole process", "ssh -- true to an sshd by network"
	f.Notes = server.describe()
	return []Figure{f}, nil
}

// measureSSHStream compares how fast a command's output comes by SSH and by exec.
func measureSSHStream(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 5
	}
	vm, err := l.settled(ctx)
	if err != nil {
		return nil, err
	}
	print := fmt.Sprintf("head -c %d /dev/zero", streamBytes)
	value, floor, err := inTurns(1, n, time.Second,
		func() (time.Duration, error) { return timed(vm.cli(ctx, "vm", "ssh", vm.Name, "--", print)) },
		func() (time.Duration, error) { return timed(vm.cli(ctx, "exec", vm.Name, "--", "sh", "-c", print)) })
	if err != nil {
		return nil, err
	}
	f := figure("ssh-stream", "s", value, floor, 0, onNothing)
	f.What, f.FloorIs = "512 MiB of output by banger vm ssh", "by banger exec"
	f.Notes = fmt.Sprintf("%s MB/s, exec %s MB/s", number(streamBytes/1e6/f.Value), number(streamBytes/1e6/f.Floor))
	return []Figure{f}, nil
}
