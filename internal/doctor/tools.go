package doctor

import (
	"bufio"
	"context"
	"os"
	"slices"
	"strings"

	"banger/internal/sysexec"
)

// Distro is the Linux distribution of this host, as /etc/os-release has it.
type Distro struct {
	ID      string // "debian", "ubuntu", "fedora", …; "linux" when unknown
	Like    []string
	Version string
	Name    string // for people
}

// HostDistro reads the distribution of this host.
func HostDistro() Distro { return readDistro("/etc/os-release") }

func readDistro(file string) Distro {
	d := Distro{ID: "linux", Name: "Linux"}
	f, err := os.Open(file)
	if err != nil {
		return d
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			d.ID = value
		case "ID_LIKE":
			d.Like = strings.Fields(value)
		case "VERSION_ID":
			d.Version = value
		case "PRETTY_NAME":
			d.Name = value
		}
	}
	return d
}

// Install says how to get a program: the command line where packages come by apt,
// elsewhere the program and the name Debian has for its package.
func (d Distro) Install(program, debianPackage string) string {
	if d.ID == "debian" || d.ID == "ubuntu" || slices.Contains(d.Like, "debian") || slices.Contains(d.Like, "ubuntu") {
		return "sudo apt-get install " + debianPackage
	}
	return "install the package of " + d.Name + " that has " + program + " (Debian's is " + debianPackage + ")"
}

// Tool describes a program that banger starts.
type Tool struct {
	Program  string // name in PATH, or an absolute path
	Package  string // Debian's package of it
	Purpose  string // what cannot be done without, e.g. "build images"
	Optional bool   // missing is a warning
}

// Check checks that the tool is installed.
func (t Tool) Check(d Distro) Check {
	return Check{Name: "tool " + t.Program, Run: func(context.Context) Result {
		path, err := sysexec.Look(t.Program)
		if err == nil {
			return Pass("%s", path)
		}
		r := Fail(d.Install(t.Program, t.Package), "not installed; needed to %s", t.Purpose)
		if t.Optional {
			r.Status = StatusWarn
		}
		return r
	}}
}

// Tools checks several tools as one, for a short report. The remedy installs all
// that are missing.
func Tools(name string, d Distro, tools ...Tool) Check {
	return Check{Name: name, Run: func(ctx context.Context) Result {
		var missing, packages []string
		status := StatusPass
		for _, t := range tools {
			r := t.Check(d).Run(ctx)
			if r.Status == StatusPass {
				continue
			}
			missing = append(missing, t.Program+" (to "+t.Purpose+")")
			if !slices.Contains(packages, t.Package) {
				packages = append(packages, t.Package)
			}
			if status != StatusFail {
				status = r.Status
			}
		}
		if len(missing) == 0 {
			return Pass("all %d installed", len(tools))
		}
		return Result{
			Status: status,
			Detail: "not installed: " + strings.Join(missing, ", "),
			Fix:    d.Install("them", strings.Join(packages, " ")),
		}
	}}
}
