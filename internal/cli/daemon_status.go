package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
)

func newDaemonStatusCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "status",
		Short: "Say whether the daemon runs, and as what",
		Long:  "Status never starts a daemon. The exit code is 0 when one runs and 1 when none does.",
		Example: `  banger daemon status
  banger daemon status --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStatus(cmd.Context(), a, asJSON) },
	}
	jsonFlag(c, &asJSON)
	return c
}

// daemonView is what --json prints of the daemon; when it does not run only
// running and socket mean something.
type daemonView struct {
	Running    bool       `json:"running"`
	Socket     string     `json:"socket"`
	PID        int32      `json:"pid"`
	Version    string     `json:"version"`
	Commit     string     `json:"commit"`
	Protocol   int32      `json:"protocol"`
	StateDir   string     `json:"state_dir"`
	ConfigFile string     `json:"config_file"`
	StartedAt  *time.Time `json:"started_at"`
	Busy       []string   `json:"busy"`
}

func runDaemonStatus(ctx context.Context, a *app, asJSON bool) error {
	c, err := a.quietClient()
	if err != nil {
		return err
	}
	defer c.Close()
	info, err := c.Info(ctx)
	if errdefs.ClassOf(err) == errdefs.ClassUnavailable && err != nil {
		if asJSON {
			if err := printJSON(a.out, daemonView{Socket: c.Socket(), Busy: []string{}}); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(a.out, "the daemon does not run (%s)\n", c.Socket())
		}
		return &exitError{exitFailure, nil}
	}
	if err != nil {
		return err
	}
	for _, n := range info.GetNotices() {
		a.notice(n)
	}
	if asJSON {
		return printJSON(a.out, daemonView{
			Running: true, Socket: c.Socket(), PID: info.GetPid(), Version: info.GetVersion(), Commit: info.GetCommit(),
			Protocol: info.GetProtocol(), StateDir: info.GetStateDir(), ConfigFile: info.GetConfigFile(),
			StartedAt: viewTime(info.GetStartedAt()), Busy: list(info.GetBusy()),
		})
	}
	return printFields(a.out, [][2]string{
		{"Status", "running"},
		{"PID", fmt.Sprint(info.GetPid())},
		{"Version", info.GetVersion()},
		{"Commit", info.GetCommit()},
		{"Protocol", fmt.Sprint(info.GetProtocol())},
		{"Socket", c.Socket()},
		{"State", info.GetStateDir()},
		{"Config", info.GetConfigFile()},
		{"Started", showTime(info.GetStartedAt())},
		{"Busy", strings.Join(info.GetBusy(), ", ")},
	})
}
