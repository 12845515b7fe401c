package model

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"banger/internal/errdefs"
)

// Command is what to run, as docker run has it: args behind the image's entrypoint, or
// its Cmd where there are none. An entrypoint that is given, if only as an empty
// string, takes the place of the image's, and then its Cmd does not count either.
//
// A command that would be the machine's init is none: where the image has an init it
// runs already, and nothing else can be process 1. Nil means that nothing is named.
func (c ImageConfig) Command(entrypoint *string, args []string) []string {
	entry, own := withoutEmpty(c.Entrypoint), c.Cmd
	if entrypoint != nil {
		entry, own = withoutEmpty([]string{*entrypoint}), nil
	}
	if len(args) > 0 {
		return slices.Concat(entry, args)
	}
	command := slices.Concat(entry, own)
	if len(command) == 0 || entrypoint == nil && isInit(command[0]) {
		return nil
	}
	return command
}

// withoutEmpty is Docker's rule for an entrypoint that was cleared: one empty string.
func withoutEmpty(entry []string) []string {
	if len(entry) == 1 && entry[0] == "" {
		return nil
	}
	return entry
}

// isInit reports whether a program is one that only makes sense as process 1.
func isInit(program string) bool {
	switch path.Clean(program) {
	case "/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd", "/usr/bin/systemd", "/sbin/openrc-init":
		return true
	}
	return false
}

// Exposed are the ports of the guest that the image names for TCP, and what else it
// names there, which is not forwarded. An entry that names no port is an error of class
// invalid_argument.
func (c ImageConfig) Exposed() (tcp []uint16, others []string, err error) {
	for _, text := range c.ExposedPorts {
		number, proto, _ := strings.Cut(text, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			return nil, nil, errdefs.Invalid("the image exposes %.40q, which is no port", text).
				WithHint("forward ports one by one with -p instead of -P")
		}
		switch {
		case proto != "" && !strings.EqualFold(proto, "tcp"):
			others = append(others, text)
		case !slices.Contains(tcp, uint16(n)):
			tcp = append(tcp, uint16(n))
		}
	}
	slices.Sort(tcp)
	return tcp, others, nil
}
