package qemuproc

import (
	"fmt"
	"os"
	"strconv"

	"banger/internal/hypervisor/vmproc"
)

// outside are the files a VMM needs that do not lie in its directory. We open
// them and it inherits the descriptors: it runs as a user that may be unable to
// reach them by name, and it needs to reach nothing else there.
type outside struct {
	dir   string
	files []*os.File // descriptors firstOutside and up in QEMU
	args  []string   // what QEMU must be told of them
}

// firstOutside is the descriptor after the fixed ones.
const firstOutside = fdConsole + 1

// fdset returns a name for -blockdev: relative when the file lies in the VM
// directory, else that of a descriptor set.
func (o *outside) fdset(path string, readOnly bool) (string, error) {
	if rel := relative(o.dir, path); rel != path {
		return rel, nil
	}
	fd, err := o.open(path, readOnly)
	if err != nil {
		return "", err
	}
	// Set 1 is the console's.
	set := 2 + fd - firstOutside
	o.args = append(o.args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set))
	return "/dev/fdset/" + strconv.Itoa(set), nil
}

// file returns a name for options that open files the ordinary way.
func (o *outside) file(path string) (string, error) {
	if rel := relative(o.dir, path); rel != path {
		return rel, nil
	}
	fd, err := o.open(path, true)
	if err != nil {
		return "", err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

func (o *outside) open(path string, readOnly bool) (int, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return 0, vmproc.OpenError(err)
	}
	o.files = append(o.files, f)
	return firstOutside + len(o.files) - 1, nil
}

func (o *outside) close() {
	for _, f := range o.files {
		_ = f.Close()
	}
}
