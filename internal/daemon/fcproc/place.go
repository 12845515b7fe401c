package fcproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
)

// jailID is what the jailer calls every VM: its base directory is the VM's own.
const jailID = "vm"

// firstFile is the first descriptor that a VMM without a jail inherits.
const firstFile = 3

// place is the directory Firecracker works in. It belongs to the VMM's user, which
// may put there what it likes: nothing in it is opened but without following links,
// and who answers on a socket there is checked before a word is said.
//
// Without a jail it is fc/ in the VM directory. Files are handed over as open
// descriptors, as the VMM's user may be unable to reach them by name.
//
// With one it is jail/PROGRAM/vm/root/, which the jailer makes the root. Files are
// hard links in it, so they must be on its file system; what a link leads to keeps
// its owner and mode.
type place struct {
	dir    string
	jailed bool
	links  int        // made so far
	files  []*os.File // to inherit
}

// prepare makes the place of a VMM that does not run yet.
func prepare(spec hypervisor.Spec, f facts) (*place, error) {
	if err := remove(spec.Dir); err != nil {
		return nil, errdefs.Wrap(err, "remove what an earlier VMM left")
	}
	p := &place{dir: filepath.Join(spec.Dir, paths.FirecrackerDir), jailed: f.jailer != ""}
	if p.jailed {
		p.dir = filepath.Join(spec.Dir, paths.JailDir, filepath.Base(f.binary), jailID, "root")
	}
	err := os.MkdirAll(p.dir, 0o700)
	if err == nil && !p.jailed && os.Geteuid() == 0 {
		err = os.Lchown(p.dir, spec.UID, spec.GID)
	}
	if err != nil {
		return nil, errdefs.Wrap(err, "make the VMM's directory")
	}
	return p, nil
}

// placeOf finds the place of a VMM that was started in dir; "" when there is none.
func placeOf(dir string) string {
	jail := filepath.Join(dir, paths.JailDir)
	entries, _ := os.ReadDir(jail)
	for _, e := range entries {
		if e.IsDir() {
			return filepath.Join(jail, e.Name(), jailID, "root")
		}
	}
	fc := filepath.Join(dir, paths.FirecrackerDir)
	if _, err := os.Lstat(fc); err != nil {
		return ""
	}
	return fc
}

// remove removes the place of a VMM that has ended, and what was counted of it.
func remove(dir string) error {
	var errs []error
	for _, name := range []string{paths.JailDir, paths.FirecrackerDir, paths.MetricsSum, stagedSum} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// name makes a file of the VM reachable and returns how the VMM calls it.
func (p *place) name(path string, readOnly bool) (string, error) {
	if p.jailed {
		return p.link(path)
	}
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return "", vmproc.OpenError(err)
	}
	p.files = append(p.files, f)
	return "/proc/self/fd/" + strconv.Itoa(firstFile+len(p.files)-1), nil
}

func (p *place) link(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", vmproc.OpenError(err)
	}
	name := fmt.Sprintf("file%d", p.links)
	if err := os.Link(real, filepath.Join(p.dir, name)); err != nil {
		if errors.Is(err, unix.EXDEV) {
			return "", errdefs.Precondition("%s is on another file system than the jail %s", real, p.dir).
				WithHint("bring it there: kernel import and image pull make copies; or do without a jail: firecracker.jail: false in the config")
		}
		return "", vmproc.OpenError(err)
	}
	p.links++
	return name, nil
}

func (p *place) close() {
	for _, f := range p.files {
		_ = f.Close()
	}
}

// arguments is the command line: of Firecracker, or of the jailer.
func (p *place) arguments(spec hypervisor.Spec, f facts) (program string, args []string) {
	own := []string{
		"--api-sock", paths.APISocket,
		"--log-path", paths.VMMLog, "--level", "Warning",
	}
	if !p.jailed {
		return f.binary, append([]string{"--id", jailID}, own...)
	}
	return f.jailer, append([]string{
		"--id", jailID,
		"--exec-file", f.binary,
		"--uid", strconv.Itoa(spec.UID), "--gid", strconv.Itoa(spec.GID),
		"--chroot-base-dir", filepath.Join(spec.Dir, paths.JailDir),
		"--",
	}, own...)
}
