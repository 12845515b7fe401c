package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// page names a page of a file, whoever has it mapped.
type page struct {
	file   string // device and inode
	number uint64
}

// residentMB is the resident memory of processes together, in MB of 10^6 bytes: a
// page of a file that several of them map counts once. Of one process it is what
// ps calls its resident set.
func residentMB(pids ...int) (float64, error) {
	var bytes uint64
	files := make(map[page]struct{})
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		own, err := ownMemory(dir)
		if err == nil {
			err = filePages(dir, files)
		}
		if err != nil {
			return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		bytes += own
	}
	bytes += uint64(len(files) * os.Getpagesize())
	return float64(bytes) / 1e6, nil
}

// ownMemory is what a process holds that is no page of a file, in bytes.
func ownMemory(dir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0, err
	}
	var sum uint64
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "RssAnon:" && f[0] != "RssShmem:" {
			continue
		}
		kib, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += kib << 10
	}
	return sum, nil
}

// Bits of an entry of /proc/PID/pagemap.
const (
	pagePresent = 1 << 63
	pageOfFile  = 1 << 61
)

// filePages adds the pages of files that a process has resident.
func filePages(dir string, pages map[page]struct{}) error {
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return err
	}
	table, err := os.Open(filepath.Join(dir, "pagemap"))
	if err != nil {
		return err
	}
	defer table.Close()
	size := uint64(os.Getpagesize())
	for line := range strings.Lines(string(maps)) {
		var from, to, offset, inode uint64
		var mode, device string
		if _, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &from, &to, &mode, &offset, &device, &inode); err != nil {
			return fmt.Errorf("understand %q: %w", strings.TrimSpace(line), err)
		}
		if inode == 0 {
			continue
		}
		file := device + " " + strconv.FormatUint(inode, 10)
		entries := make([]byte, (to-from)/size*8)
		if _, err := table.ReadAt(entries, int64(from/size*8)); err != nil {
			return err
		}
		for i := uint64(0); i < uint64(len(entries)); i += 8 {
			if e := binary.NativeEndian.Uint64(entries[i:]); e&pagePresent != 0 && e&pageOfFile != 0 {
				pages[page{file, offset/size + i/8}] = struct{}{}
			}
		}
	}
	return nil
}
