package kmod

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxModinfo bounds the section read from a module, in bytes.
const maxModinfo = 1 << 20

// Info is what a module says of itself that matters for loading it.
type Info struct {
	Name     string   // normalised: '_' for '-'
	Depends  []string // normalised names that must be loaded before
	Vermagic string   // begins with the kernel release
}

// ReadInfo parses the .modinfo section of a module.
func ReadInfo(r io.ReaderAt) (Info, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return Info{}, fmt.Errorf("read module: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Size > maxModinfo {
		return Info{}, errors.New("read module: no usable .modinfo section")
	}
	data, err := s.Data()
	if err != nil {
		return Info{}, fmt.Errorf("read .modinfo: %w", err)
	}
	var info Info
	for _, field := range bytes.Split(data, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "name":
			info.Name = Normalise(value)
		case "vermagic":
			info.Vermagic = value
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					info.Depends = append(info.Depends, Normalise(d))
				}
			}
		}
	}
	return info, nil
}

// Normalise gives a module's one spelling: file names use '-' and '_' alike.
func Normalise(name string) string { return strings.ReplaceAll(name, "-", "_") }
