// The bench command measures how fast banger is. Every figure stands beside its
// floor: what the same work costs without banger, or by the usual tool for it,
// measured in the same run, in turns with it. Only their ratio says anything on
// another machine.
//
//	BANGER_E2E_BIN=bin go run ./bench [-only run,exec] [-n 5] [-strict]
//
// It prints a table and writes bench/results.json. A missed limit is printed and
// no error, unless -strict is given: a slow or busy machine is no broken one.
//
// Image, kernel and a guest with sshd are made once and kept in a cache directory
// (BANGER_TEST_CACHE, else one of the user's). Everything else is removed at the
// end, also after Ctrl-C; what a killed run left is removed by the next one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// measurement makes one or more figures. n is how often to measure; 0 means as
// often as that figure needs.
type measurement struct {
	name string
	what string
	run  func(ctx context.Context, l *lab, n int) ([]Figure, error)
}

// measurements in the order they are taken: first those that need an idle machine
// without VMs.
var measurements = []measurement{
	{"list-1000", "banger vm list with 1,000 stopped VMs", measureList},
	{"daemon-rss", "memory of the daemon at rest, goroutines per stopped VM", measureDaemon},
	{"vmdns", "questions to the name server, against dnsmasq with the same 1,000 names", measureNames},
	{"host-start", "the host's side of a create on the bridge (root)", measureHost},
	{"run", "banger vm run --rm -- true, against the same QEMU started by hand", measureRun},
	{"firecracker", "the same on Firecracker, where KVM works and it is found, against it started by hand (root)", measureFirecracker},
	{"exec", "banger exec VM -- true, against a new connection of ssh", measureExec},
	{"exec-api", "the same through the API, against fork and exec in the guest and a round trip", measureExecAPI},
	{"ssh", "banger vm ssh VM -- true, against ssh to an sshd by network", measureSSH},
	{"ssh-stream", "output of a command by banger vm ssh, against banger exec", measureSSHStream},
	{"create-50", "50 creates at once, against 50 boots by hand", measureCrowd},
	{"pull-300", "banger image pull of 300 MB, against skopeo, umoci and mkfs.ext4", measurePull(300, 12_000)},
	{"image-size", "vm run from an image of 3 GB against one of 30 MB, and the disk that VMs share", measureImageSize},
	{"pull-3000", "the same of 3 GB", measurePull(3000, 60_000)},
	{"cp-1g", "banger cp of a file of 1 GB into a VM, against scp", measureCopyLarge},
	{"cp-50k", "banger cp of 50,000 small files into a VM, against tar through ssh", measureCopySmall},
	{"workspace", "banger vm workspace prepare of a repository of 60,000 files and 1 GB, against rsync and git; again; and export", measureWorkspace},
}

func main() {
	var only, out string
	var n int
	var strict bool
	flag.StringVar(&only, "only", "", "measure only these, separated by commas")
	flag.StringVar(&out, "o", "bench/results.json", "file to write")
	flag.IntVar(&n, "n", 0, "how often to measure each figure (default: as often as it needs)")
	flag.BoolVar(&strict, "strict", false, "end with status 1 when a limit is missed")
	flag.Usage = usage
	flag.Parse()
	chosen, err := choose(only)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "error:", errors.Join(err, unexpected(flag.Args())))
		usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	report, err := measure(ctx, chosen, n)
	stop()
	if len(report.Figures) > 0 {
		report.print(os.Stdout)
		err = errors.Join(err, report.write(out))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	if strict && report.missed() {
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprint(os.Stderr, "usage: bench [flags]\n\n")
	flag.PrintDefaults()
	fmt.Fprint(os.Stderr, "\nfigures:\n")
	for _, m := range measurements {
		fmt.Fprintf(os.Stderr, "  %-11s %s\n", m.name, m.what)
	}
}

func unexpected(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unexpected argument %q", args[0])
}

// choose finds the measurements a list names; an empty one names all.
func choose(only string) ([]measurement, error) {
	if only == "" {
		return measurements, nil
	}
	names := strings.Split(only, ",")
	for _, name := range names {
		if !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == name }) {
			return nil, fmt.Errorf("there is no figure %q", name)
		}
	}
	return slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool { return !slices.Contains(names, m.name) }), nil
}

// measure takes the measurements, and removes what they needed whatever happens.
func measure(ctx context.Context, chosen []measurement, n int) (report Report, err error) {
	l, err := openLab(ctx)
	if err != nil {
		return report, err
	}
	defer func() {
		err = errors.Join(err, l.close())
		report.Machine = l.machine
	}()
	var errs []error
	for _, m := range chosen {
		l.say("%s: %s", m.name, m.what)
		figures, err := m.run(ctx, l, n)
		if ctx.Err() != nil {
			return report, errors.Join(append(errs, errors.New("interrupted"))...)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("measure %s: %w", m.name, err))
			l.say("  %v", err)
			continue
		}
		report.Figures = append(report.Figures, figures...)
	}
	return report, errors.Join(errs...)
}
