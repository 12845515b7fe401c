package archtest

import (
	"strings"
	"testing"
)

// ring is how far out a package lies: it imports its own ring and those inside.
type ring int

const (
	ringWire      ring = iota // what everything may know: errors, the API's types
	ringModel                 // records and names, no I/O
	ringMechanism             // one external thing each, no state of the daemon's
	ringService               // own state and locks; never import each other
	ringDaemon                // the composition root
	ringCommand               // the only importer of the daemon
	ringProgram               // main packages, tests of whole programs
)

// rings places every package; the longest matching directory decides. A new
// package is added here first, which makes its author say what it is.
var rings = map[string]ring{
	"internal/errdefs":  ringWire,
	"internal/api":      ringWire,
	"internal/lockrank": ringWire,
	"internal/logkey":   ringWire,
	"internal/version":  ringWire,

	"internal/model": ringModel,
	"internal/paths": ringModel,

	"internal/archtest":   ringMechanism,
	"internal/client":     ringMechanism,
	"internal/config":     ringMechanism,
	"internal/disktest":   ringMechanism,
	"internal/doctor":     ringMechanism,
	"internal/durable":    ringMechanism,
	"internal/fcfetch":    ringMechanism,
	"internal/guest":      ringMechanism,
	"internal/hypervisor": ringMechanism,
	"internal/install":    ringMechanism,
	"internal/nettest":    ringMechanism,
	"internal/sshconf":    ringMechanism,
	"internal/sshkey":     ringMechanism,
	"internal/share":      ringMechanism,
	"internal/store":      ringMechanism,
	"internal/sysexec":    ringMechanism,
	"internal/systemd":    ringMechanism,
	"internal/workspace":  ringMechanism,

	"internal/daemon/dmsnap":          ringMechanism,
	"internal/daemon/ext4":            ringMechanism,
	"internal/daemon/fakevm":          ringMechanism,
	"internal/daemon/fcproc":          ringMechanism,
	"internal/daemon/firewalld":       ringMechanism,
	"internal/daemon/nat":             ringMechanism,
	"internal/daemon/qemuproc":        ringMechanism,
	"internal/daemon/relay":           ringMechanism,
	"internal/daemon/resolved":        ringMechanism,
	"internal/daemon/rootdisk":        ringMechanism,
	"internal/daemon/steps":           ringMechanism,
	"internal/daemon/steps/stepstest": ringMechanism,
	"internal/daemon/sysbus":          ringMechanism,
	"internal/daemon/tapdev":          ringMechanism,
	"internal/daemon/usernet":         ringMechanism,
	"internal/daemon/vmcap":           ringMechanism,
	"internal/daemon/vmlock":          ringMechanism,

	"internal/daemon/hostnet":   ringService,
	"internal/daemon/imagemgr":  ringService,
	"internal/daemon/networks":  ringService,
	"internal/daemon/opstate":   ringService,
	"internal/daemon/ports":     ringService,
	"internal/daemon/vm":        ringService,
	"internal/daemon/vmdns":     ringService,
	"internal/daemon/workspace": ringService,

	"internal/daemon": ringDaemon,

	"internal/cli":           ringMechanism, // narrowed below: it knows the client, not the daemon
	"internal/cli/daemoncmd": ringCommand,

	"cmd":          ringProgram,
	"bench":        ringProgram,
	"kernels":      ringMechanism, // what builds them
	"kernels/pack": ringProgram,
	"test":         ringProgram,
}

// only narrows what some packages may import of the project, beyond their ring.
var only = map[string][]string{
	"internal/errdefs":       {},
	"internal/lockrank":      {},
	"internal/logkey":        {},
	"internal/version":       {},
	"internal/model":         {"internal/errdefs"},
	"internal/paths":         {"internal/errdefs"},
	"internal/config":        {"internal/errdefs", "internal/model", "internal/paths"},
	"internal/disktest":      {},
	"internal/durable":       {},
	"internal/doctor":        {"internal/errdefs", "internal/model", "internal/paths", "internal/sysexec"},
	"internal/sysexec":       {"internal/errdefs"},
	"internal/archtest":      {},
	"internal/sshconf":       {"internal/errdefs", "internal/guest", "internal/paths", "internal/sshkey"},
	"internal/sshkey":        {"internal/errdefs"},
	"internal/daemon/dmsnap": {"internal/errdefs"},
	"internal/daemon/tapdev": {"internal/errdefs"},
	"internal/daemon/nat":    {"internal/errdefs", "internal/model"},
	"internal/client":        {"internal/api", "internal/errdefs", "internal/guest", "internal/model", "internal/paths", "internal/sysexec", "internal/systemd", "internal/version"},
	"internal/cli": {"internal/api", "internal/cli", "internal/client", "internal/config", "internal/doctor", "internal/errdefs", "internal/fcfetch",
		"internal/guest", "internal/install", "internal/model", "internal/paths", "internal/sshconf", "internal/share", "internal/sysexec", "internal/systemd", "internal/version", "internal/workspace", "kernels"},
	"cmd/banger-agent": {"internal/guest", "internal/version"},
}

// nobodyElse names packages with one kind of importer.
var nobodyElse = map[string][]string{
	"internal/daemon":        {"internal/cli/daemoncmd", "internal/daemon"},
	"internal/cli/daemoncmd": {"cmd"},
	"internal/guest/agent":   {"cmd/banger-agent", "internal/guest/agent"},
}

// forbidden are packages a program must not be built from, and why.
var forbidden = map[string]map[string]string{
	"cmd/banger-agent": {
		"net/http":                   "every page of the agent is faulted in after a restore",
		"crypto/tls":                 "the channel is the VM's own",
		"os/exec":                    "the agent starts processes by itself, with the identity and terminal they need",
		"google.golang.org/protobuf": "the guest protocol is frames and JSON",
		"banger/internal/api":        "a guest has no part in the API",
		"banger/internal/daemon":     "the agent is not the daemon",
	},
	"cmd/banger": {
		"banger/internal/daemon": "the CLI talks to a daemon, it is none",
		"modernc.org/sqlite":     "the CLI keeps no state",
	},
}

func ringOf(pkg string) (ring, bool) {
	best, found := "", false
	for dir := range rings {
		if within(pkg, dir) && len(dir) >= len(best) {
			best, found = dir, true
		}
	}
	// A new package under the daemon has to say which kind it is.
	if best == "internal/daemon" && pkg != best {
		return 0, false
	}
	return rings[best], found
}

// serviceOf is the service a package belongs to: itself or the one it lies in.
func serviceOf(pkg string) string {
	for dir, r := range rings {
		if r == ringService && within(pkg, dir) {
			return dir
		}
	}
	return pkg
}

func TestImportRings(t *testing.T) {
	files, _ := goFiles(t)
	for _, f := range files {
		if f.test || within(f.pkg, "tools") {
			continue
		}
		own, ok := ringOf(f.pkg)
		if !ok {
			t.Errorf("%s: package has no ring; place it in internal/archtest", f.pkg)
			continue
		}
		for _, path := range f.imports {
			imported, ours := strings.CutPrefix(path, module)
			if !ours || within(imported, f.pkg) {
				continue
			}
			other, _ := ringOf(imported)
			switch {
			case other > own:
				t.Errorf("%s imports %s, which lies further out", f.path, imported)
			case own == ringService && other == ringService && serviceOf(f.pkg) != serviceOf(imported):
				t.Errorf("%s: service imports service %s; declare the one to three methods it needs", f.path, imported)
			}
		}
	}
}

func TestNarrowedImports(t *testing.T) {
	files, _ := goFiles(t)
	for _, f := range files {
		if f.test {
			continue
		}
		for _, path := range f.imports {
			imported, ours := strings.CutPrefix(path, module)
			if !ours || within(imported, f.pkg) {
				continue
			}
			if allowed, narrowed := only[f.pkg]; narrowed && !withinAny(imported, allowed...) {
				t.Errorf("%s imports %s; of the project it may know only %v", f.path, imported, allowed)
			}
			if importers, reserved := nobodyElse[imported]; reserved && !withinAny(f.pkg, importers...) {
				t.Errorf("%s imports %s, which is only for %v", f.path, imported, importers)
			}
		}
	}
}

func TestForbiddenDependencies(t *testing.T) {
	for program, reasons := range forbidden {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			for dep := range deps(t, program) {
				for bad, why := range reasons {
					if dep == bad || strings.HasPrefix(dep, bad+"/") {
						t.Errorf("is built from %s: %s", dep, why)
					}
				}
			}
		})
	}
}
