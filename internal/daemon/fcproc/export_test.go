package fcproc

import "banger/internal/errdefs"

// The parts below are tested by themselves.
var (
	CheckSpec = checkSpec
	Strip     = strip
)

// ParseVersion returns what is made of a program's answer.
func ParseVersion(out, program string) (major, minor int, text string, err error) {
	v, err := parseVersion(out, program)
	return v.major, v.minor, v.text, err
}

// Explain makes an error of what Firecracker said.
func Explain(text string) (errdefs.Class, string) {
	err := explain(text, facts{})
	return errdefs.ClassOf(err), errdefs.HintOf(err)
}
