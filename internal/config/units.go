package config

import (
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"banger/internal/errdefs"
)

// Size is a number of bytes that reads and prints as "512M" or "16G". The
// letters are powers of 1024.
type Size int64

// Units of Size, in bytes.
const (
	KiB = 1 << 10
	MiB = 1 << 20
	GiB = 1 << 30
	TiB = 1 << 40
)

// AutoSize is a Size of which zero means "auto".
type AutoSize int64

// Count is a positive number of which zero means "auto".
type Count int

// Duration is a time.Duration that reads and prints as "90s" or "5m".
type Duration time.Duration

// Prefix is a network prefix of which the zero value means "auto".
type Prefix netip.Prefix

const sizeHint = "write a number with K, M, G or T, for example 512M or 2G"

// ParseSize reads a size: digits, an optional fraction, and K, M, G or T (also
// as KB or KiB, in either case; always powers of 1024). A number alone is bytes.
// It errors with class invalid_argument on anything else, on negative sizes and
// on sizes over 8 EiB.
func ParseSize(s string) (Size, error) {
	digits := strings.TrimSpace(s)
	unit := float64(1)
	lower := strings.ToLower(digits)
	for suffix, factor := range map[string]float64{"k": KiB, "m": MiB, "g": GiB, "t": TiB} {
		for _, tail := range []string{"", "b", "ib"} {
			if cut, ok := strings.CutSuffix(lower, suffix+tail); ok {
				digits, unit = strings.TrimSpace(cut), factor
			}
		}
	}
	if digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, errdefs.Invalid("%q is not a size", s).WithHint(sizeHint)
	}
	if whole, err := strconv.ParseInt(digits, 10, 64); err == nil && whole <= math.MaxInt64/int64(unit) {
		return Size(whole * int64(unit)), nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, errdefs.Invalid("%q is not a size", s).WithHint(sizeHint)
	}
	if f*unit >= math.MaxInt64 {
		return 0, errdefs.Invalid("size %q is too large", s).WithHint(sizeHint)
	}
	return Size(f * unit), nil
}

// String prints the size in the largest unit that loses nothing.
func (s Size) String() string {
	for _, u := range []struct {
		bytes  Size
		letter string
	}{{TiB, "T"}, {GiB, "G"}, {MiB, "M"}, {KiB, "K"}} {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.letter
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Bytes is the size as a plain number.
func (s Size) Bytes() int64 { return int64(s) }

// String prints "auto" or the size.
func (s AutoSize) String() string {
	if s == 0 {
		return Auto
	}
	return Size(s).String()
}

// Bytes is the size as a plain number; zero for auto.
func (s AutoSize) Bytes() int64 { return int64(s) }

// String prints "auto" or the number.
func (c Count) String() string {
	if c == 0 {
		return Auto
	}
	return strconv.Itoa(int(c))
}

// String prints the duration without the zero units time.Duration adds.
func (d Duration) String() string {
	s := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String prints "auto" or the prefix.
func (p Prefix) String() string {
	if !p.Std().IsValid() {
		return Auto
	}
	return p.Std().String()
}

// Std is the prefix as the standard library has it; the zero one for auto.
func (p Prefix) Std() netip.Prefix { return netip.Prefix(p) }

// UnmarshalYAML reads "auto" or "2G".
func (s *AutoSize) UnmarshalYAML(n *yaml.Node) error {
	if n.Value == Auto {
		*s = 0
		return nil
	}
	v, err := ParseSize(n.Value)
	if err == nil && v == 0 {
		err = errdefs.Invalid(`must be "auto" or more than zero`).WithHint(sizeHint)
	}
	*s = AutoSize(v)
	return err
}

// UnmarshalYAML reads "auto" or a positive whole number.
func (c *Count) UnmarshalYAML(n *yaml.Node) error {
	if n.Value == Auto {
		*c = 0
		return nil
	}
	v, err := strconv.Atoi(n.Value)
	if err != nil || v <= 0 {
		return errdefs.Invalid(`must be "auto" or a whole number above zero, not %q`, n.Value)
	}
	*c = Count(v)
	return nil
}

// UnmarshalYAML reads "90s".
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil {
		return errdefs.Invalid("%q is not a duration", n.Value).
			WithHint("write a number with s, m or h, for example 90s or 5m")
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML and its namesakes print what UnmarshalYAML reads: "auto" or "2G".
func (s AutoSize) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalYAML prints "auto" or the number.
func (c Count) MarshalYAML() (any, error) {
	if c == 0 {
		return Auto, nil
	}
	return int(c), nil
}

// MarshalYAML prints "90s".
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// UnmarshalYAML reads "auto" or "10.20.0.0/16".
func (p *Prefix) UnmarshalYAML(n *yaml.Node) error {
	if n.Value == Auto {
		*p = Prefix{}
		return nil
	}
	v, err := netip.ParsePrefix(n.Value)
	if err != nil {
		return errdefs.Invalid("%q is not a network prefix", n.Value).
			WithHint("write an address and a length, for example 10.20.0.0/16, or auto")
	}
	*p = Prefix(v)
	return nil
}

// MarshalYAML prints "auto" or "10.20.0.0/16".
func (p Prefix) MarshalYAML() (any, error) { return p.String(), nil }
