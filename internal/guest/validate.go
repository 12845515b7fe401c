package guest

import (
	"path"
	"strings"

	"banger/internal/errdefs"
)

// maxBench bounds how many commands one bench-spawn may run.
const maxBench = 10000

// Validate reports, with class invalid_argument, a request that no agent can
// serve: an unknown kind, a missing member, or a string the kernel would cut at
// its NUL byte.
func (r *Request) Validate() error {
	missing := func() error { return errdefs.Invalid("%s request without its arguments", r.Kind) }
	switch r.Kind {
	case KindPing, KindSync, KindWaitSystem:
		return nil
	case KindShutdown:
		if r.Shutdown != nil && r.Shutdown.GraceMillis < 0 {
			return errdefs.Invalid("a shutdown after %d ms", r.Shutdown.GraceMillis)
		}
		return nil
	case KindConfigure:
		if r.Configure == nil {
			return missing()
		}
		for _, dir := range r.Configure.Dirs {
			if err := checkPath(dir); err != nil {
				return err
			}
		}
		return checkEnv(r.Configure.Env)
	case KindExec:
		if r.Exec == nil {
			return missing()
		}
		if err := checkArgs(r.Exec.Args); err != nil {
			return err
		}
		if strings.IndexByte(r.Exec.Workdir, 0) >= 0 {
			return errdefs.Invalid("working directory holds a NUL byte")
		}
		if n := r.Exec.StopSignal; n < 0 || n > MaxSignal {
			return errdefs.Invalid("signal %d: 1 to %d are allowed", n, MaxSignal)
		}
		return checkEnv(r.Exec.Env)
	case KindCopyIn:
		if r.CopyIn == nil {
			return missing()
		}
		return checkPath(r.CopyIn.Dest)
	case KindCopyOut:
		if r.CopyOut == nil {
			return missing()
		}
		return checkPath(r.CopyOut.Path)
	case KindWorkspacePut:
		if r.WorkspacePut == nil {
			return missing()
		}
		return checkWorkspace(r.WorkspacePut.ID, r.WorkspacePut.Dest)
	case KindWorkspaceChanges:
		if r.WorkspaceChanges == nil {
			return missing()
		}
		return checkWorkspace(r.WorkspaceChanges.ID, r.WorkspaceChanges.Dest)
	case KindWorkspaceForget:
		if r.WorkspaceForget == nil {
			return missing()
		}
		return checkWorkspace(r.WorkspaceForget.ID, "/")
	case KindStat:
		if r.Stat == nil {
			return missing()
		}
		return checkPath(r.Stat.Path)
	case KindDial:
		if r.Dial == nil {
			return missing()
		}
		if r.Dial.Port == 0 {
			return errdefs.Invalid("port 0 of the guest cannot be connected to")
		}
		return nil
	case KindSSH:
		if r.SSH == nil {
			return missing()
		}
		return checkSSH(r.SSH)
	case KindGrow:
		if r.Grow == nil {
			return missing()
		}
		if r.Grow.Bytes <= 0 {
			return errdefs.Invalid("a disk of %d bytes", r.Grow.Bytes)
		}
		return nil
	case KindMount:
		if r.Mount == nil {
			return missing()
		}
		return checkPath(r.Mount.Target)
	case KindBenchSpawn:
		if r.BenchSpawn == nil {
			return missing()
		}
		if len(r.BenchSpawn.Args) == 0 {
			return errdefs.Invalid("bench-spawn without a command")
		}
		if n := r.BenchSpawn.Count; n < 1 || n > maxBench {
			return errdefs.Invalid("bench-spawn of %d runs: 1 to %d are allowed", n, maxBench)
		}
		return checkArgs(r.BenchSpawn.Args)
	}
	return errdefs.Unsupported("request of unknown kind %q", cleanText(string(r.Kind), 40)).
		WithHint("the host and the guest run different versions of banger: restart the VM")
}

// checkWorkspace refuses an id that is no name of a file, and a directory that depends on
// whose command asks.
func checkWorkspace(id, dest string) error {
	if len(id) != 12 || strings.Trim(id, "0123456789abcdef") != "" {
		return errdefs.Invalid("%q is no id of a workspace", cleanText(id, 40))
	}
	if !path.IsAbs(dest) {
		return errdefs.Invalid("the directory %q of a workspace is not absolute", cleanText(dest, 200))
	}
	return checkPath(dest)
}

func checkArgs(args []string) error {
	for i, a := range args {
		if strings.IndexByte(a, 0) >= 0 {
			return errdefs.Invalid("argument %d of the command holds a NUL byte", i)
		}
	}
	if len(args) > 0 && args[0] == "" {
		return errdefs.Invalid("the command is an empty string")
	}
	return nil
}

func checkEnv(env []string) error {
	for _, e := range env {
		if i := strings.IndexByte(e, '='); i <= 0 {
			return errdefs.Invalid("environment entry %q is not KEY=VALUE", cleanText(e, 80))
		}
		if strings.IndexByte(e, 0) >= 0 {
			return errdefs.Invalid("environment entry %q holds a NUL byte", cleanText(e, 80))
		}
	}
	return nil
}

func checkPath(p string) error {
	switch {
	case p == "":
		return errdefs.Invalid("the path in the guest is empty")
	case len(p) > 4095:
		return errdefs.Invalid("the path in the guest is longer than 4095 bytes")
	case strings.IndexByte(p, 0) >= 0:
		return errdefs.Invalid("the path in the guest holds a NUL byte")
	}
	return nil
}

// checkSSH lets a host key be absent: the client's request has none yet.
func checkSSH(q *SSH) error {
	if n := len(q.HostKey); n != 0 && n != HostKeySize {
		return errdefs.Invalid("a host key of %d bytes: it has %d", n, HostKeySize)
	}
	if n := len(q.ClientKeys); n < 1 || n > MaxClientKeys {
		return errdefs.Invalid("%d client keys: 1 to %d are allowed", n, MaxClientKeys)
	}
	for _, k := range q.ClientKeys {
		if k == "" || len(k) > maxClientKey {
			return errdefs.Invalid("a client key of %d bytes: 1 to %d are allowed", len(k), maxClientKey)
		}
	}
	return nil
}
