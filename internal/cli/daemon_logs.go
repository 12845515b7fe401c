package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/systemd"
)

func newDaemonLogsCmd(a *app) *cobra.Command {
	follow, tail := false, ""
	c := &cobra.Command{
		Use:   "logs",
		Short: "Print the daemon's log",
		Long:  "Logs prints what the daemon wrote since it was first started by banger.",
		Example: `  banger daemon logs
  banger daemon logs -f --tail 4K`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			last := int64(0)
			if tail != "" {
				var err error
				if last, err = parseTail(tail); err != nil {
					return err
				}
			}
			return runDaemonLogs(cmd.Context(), a, follow, last)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is added")
	c.Flags().StringVar(&tail, "tail", "", "only the last `size`, like 64K")
	return c
}

func runDaemonLogs(ctx context.Context, a *app, follow bool, tail int64) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	if systemd.RunsDaemon(l) {
		return errdefs.Precondition("systemd runs the daemon, which logs to the journal").WithHint("journalctl -u %s", systemd.Daemon)
	}
	f, err := os.Open(l.DaemonLog())
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.NotFound("there is no log at %s: banger never started a daemon there", l.DaemonLog()).
			WithHint("banger daemon start")
	}
	if err != nil {
		return fileErr("read the daemon's log", l.DaemonLog(), err)
	}
	defer func() { _ = f.Close() }()
	if size, err := f.Seek(0, io.SeekEnd); err != nil {
		return errdefs.Wrap(err, "read the daemon's log")
	} else if tail == 0 || tail > size {
		tail = size
	}
	if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
		return errdefs.Wrap(err, "read the daemon's log")
	}
	if !follow {
		_, err := io.Copy(a.out, f)
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	return interrupted(followFile(ctx, f, a.out))
}

// followFile copies a file that grows, until ctx ends.
func followFile(ctx context.Context, f *os.File, w io.Writer) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return errdefs.Wrap(err, "watch %s", f.Name())
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	defer context.AfterFunc(ctx, func() { _ = watch.Close() })()
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_MODIFY); err != nil {
		_ = watch.Close()
		return errdefs.Wrap(err, "watch %s", f.Name())
	}
	events := make([]byte, 4096)
	for {
		if _, err := io.Copy(w, f); err != nil {
			return errdefs.Wrap(err, "follow %s", f.Name())
		}
		if _, err := watch.Read(events); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return errdefs.Wrap(err, "watch %s", f.Name())
		}
	}
}
