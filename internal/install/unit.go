package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

// unitText is the unit. Its last section is ours: systemd passes over sections that
// begin with X-.
const unitText = `# Written by "banger system install"; "banger system uninstall" removes it.
# Changes are lost at the next install: put them into a drop-in (systemctl edit bangerd).
[Unit]
Description=banger, disposable Linux machines
After=network.target nftables.service firewalld.service

[Service]
Type=notify
ExecStart=%[1]s/bin/bangerd serve%[2]s
Restart=on-failure
RestartSec=1
# Finding many VMs again on a busy host takes its time; cut off, it would begin anew.
TimeoutStartSec=infinity
TimeoutStopSec=60

# VMs are processes of this unit and outlive the daemon: nothing here may end them with
# it, nor end it because of one of them, nor count them.
KillMode=process
SendSIGKILL=no
OOMPolicy=continue
TasksMax=infinity

# What neither the daemon nor a VMM needs. /home can be read, for images registered there.
ProtectSystem=full
ProtectHome=read-only
ProtectHostname=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=~CAP_SYS_BOOT CAP_SYS_TIME CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_LINUX_IMMUTABLE CAP_SYS_PACCT

[Install]
WantedBy=multi-user.target

[X-Banger]
Prefix=%[1]s
Group=%[3]s
Made=%[4]s
`

func (s Service) unit() string {
	flags := ""
	if s.Group != "" {
		flags = " --group " + s.Group
	}
	return fmt.Sprintf(unitText, s.Prefix, flags, s.Group, strings.Join(s.made, " "))
}

// word is a path or a name that means in a unit what it says: systemd splits at spaces
// and gives a meaning to %, $, quotes and backslashes.
var word = regexp.MustCompile(`^[A-Za-z0-9/._+@-]+$`)

// Find reads what is installed from the unit in file; its class is not_found when
// there is none.
func Find(file string) (Service, error) {
	s := Service{Unit: file}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, errdefs.NotFound("banger is not installed as a service: there is no %s", file)
	}
	if err != nil {
		return s, errdefs.Wrap(err, "read the unit of the daemon")
	}
	foreign := errdefs.Precondition("%s was not written by banger", file).WithHint("move it away, or manage that service by systemctl")
	_, ours, ok := strings.Cut(string(text), "\n[X-Banger]\n")
	if !ok {
		return s, foreign
	}
	for line := range strings.Lines(ours) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "Prefix":
			s.Prefix = value
		case "Group":
			s.Group = value
		case "Made":
			s.made = strings.Fields(value)
		}
	}
	if err := s.check(); err != nil {
		return s, foreign
	}
	return s, nil
}

// check refuses what cannot stand in a unit.
func (s Service) check() error {
	if !strings.HasPrefix(s.Prefix, "/") || !word.MatchString(s.Prefix) {
		return errdefs.Invalid("the prefix must be an absolute path of letters, digits and ./_+@-, not %q", s.Prefix)
	}
	if s.Group != "" && (!word.MatchString(s.Group) || strings.HasPrefix(s.Group, "-")) {
		return errdefs.Invalid("%q is not the name of a group", s.Group)
	}
	return nil
}

// programs are what is installed, the daemon last: once it is there, all are.
var programs = []string{paths.AgentProgram, paths.CLIProgram, paths.DaemonProgram}
