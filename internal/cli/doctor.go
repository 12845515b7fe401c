package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

func newDoctorCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host for what banger needs",
		Long: `Doctor checks what banger needs of this host and says how to fix what is missing.
It needs no running daemon. The exit code is 1 when a check failed.`,
		Example: `  banger doctor
  banger doctor --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, asJSON) },
	}
	jsonFlag(c, &asJSON)
	return c
}

func runDoctor(ctx context.Context, a *app, asJSON bool) error {
	program, err := client.FindDaemon()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	args := []string{"doctor", "--json"}
	if a.socket != "" {
		args = append(args, "--socket", a.socket)
	}
	out, err := sysexec.Output(ctx, sysexec.Cmd{Path: program, Args: args})
	var ended *sysexec.Error
	if err != nil && (!errors.As(err, &ended) || ended.Code != 1 || len(out) == 0) {
		return interrupted(errdefs.Wrap(err, "run the checks"))
	}
	var results []doctor.Result
	if err := json.Unmarshal(out, &results); err != nil {
		return errdefs.Internal("read the results of %s doctor: %w", program, err)
	}
	if asJSON {
		if err := printJSON(a.out, results); err != nil {
			return err
		}
	} else {
		a.printResults(results)
	}
	if doctor.Worst(results) == doctor.StatusFail {
		return &exitError{exitFailure, nil}
	}
	return nil
}

func (a *app) printResults(results []doctor.Result) {
	width := 0
	for _, r := range results {
		width = max(width, len(r.Name))
	}
	colours := map[doctor.Status]colour{doctor.StatusPass: green, doctor.StatusWarn: yellow, doctor.StatusFail: red}
	for _, r := range results {
		status := fmt.Sprintf("%-4s", strings.ToUpper(string(r.Status)))
		fmt.Fprintf(a.out, "%s  %-*s  %s\n", a.paintOut(colours[r.Status], status), width, r.Name, oneLine(r.Detail))
		if r.Fix != "" {
			fmt.Fprintf(a.out, "%s  %s %s\n", strings.Repeat(" ", 4+2+width), a.paintOut(bold, "try:"), indented(r.Fix, 4+2+width+2+5))
		}
	}
}
