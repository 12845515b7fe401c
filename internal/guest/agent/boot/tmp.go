package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// vendorTmpfiles are where an image says what its init is to make and to remove when
// it starts. What an administrator wrote to /etc counts more than anything of ours.
var vendorTmpfiles = []string{"/usr/lib/tmpfiles.d", "/usr/local/lib/tmpfiles.d"}

// Bounds of those files; they have a few kB.
const (
	maxTmpfiles    = 256
	maxTmpfileSize = 64 << 10
)

// keepTmp has the init leave alone what is in /tmp. Commands run before it has
// started, and would lose their files to it: it mounts something over the directory,
// or empties it. Where each boot is to begin with an empty one, it does: this is
// before the first command.
func keepTmp(run string, vendor []string, tmp string) error {
	units := filepath.Join(run, "systemd/system")
	errs := []error{mkdirs(units)}
	// Masked: so it is on the root disk, as large as that.
	if err := os.Symlink("/dev/null", filepath.Join(units, "tmp.mount")); !errors.Is(err, os.ErrExist) {
		errs = append(errs, err)
	}
	empty := false
	for _, dir := range vendor {
		entries, _ := os.ReadDir(dir) // most images lack one of them, some both
		for _, e := range entries[:min(len(entries), maxTmpfiles)] {
			if filepath.Ext(e.Name()) != ".conf" {
				continue
			}
			b, err := readConf(filepath.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			text, changed := withoutEmptying(string(b))
			if !changed {
				continue
			}
			empty = true
			// A file of the same name in /run takes the place of the vendor's.
			own := filepath.Join(run, "tmpfiles.d", e.Name())
			errs = append(errs, mkdirs(filepath.Dir(own)), os.WriteFile(own, []byte(text), 0o644))
		}
	}
	if empty {
		errs = append(errs, emptyDir(tmp))
	}
	return errors.Join(errs...)
}

// readConf reads a small file of the image.
func readConf(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTmpfileSize {
		return nil, errors.New(name + " is no small file")
	}
	return os.ReadFile(name)
}

// cleanMark tells the scripts of Debian's sysvinit, with which its OpenRC starts as well,
// that a directory was empty when the machine started. The last of them removes it. (There
// is ".clean", too, but the first of them does not believe that one.)
const cleanMark = ".tmpfs"

// cleanTmp has those scripts leave alone what is in /tmp, as keepTmp does for systemd: it
// empties the directory where they would. Root is the image's.
func cleanTmp(root string) error {
	if info, err := os.Stat(filepath.Join(root, "lib/init/bootclean.sh")); err != nil || !info.Mode().IsRegular() {
		return nil // there are none
	}
	conf, err := readConf(filepath.Join(root, "etc/default/rcS"))
	if err == nil && !emptiesTmp(string(conf)) {
		return nil // only what is old goes, or nothing
	}
	tmp := filepath.Join(root, "tmp")
	if info, err := os.Lstat(tmp); err != nil || !info.IsDir() || info.Mode()&0o002 == 0 {
		return nil // nor would they
	}
	if err := emptyDir(tmp); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(tmp, cleanMark), nil, 0o644)
}

// emptiesTmp reads of the configuration of those scripts whether all of /tmp is to go.
func emptiesTmp(conf string) bool {
	days := ""
	for line := range strings.Lines(conf) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "TMPTIME="); ok {
			days = strings.Trim(v, `"'`)
		}
	}
	return days == "" || days == "0"
}

// withoutEmptying makes of each line that empties /tmp one that makes it.
func withoutEmptying(conf string) (string, bool) {
	var b strings.Builder
	changed := false
	for line := range strings.Lines(conf) {
		if f := strings.Fields(line); len(f) > 1 && f[0][0] == 'D' && strings.TrimSuffix(strings.Trim(f[1], `"'`), "/") == "/tmp" {
			line = strings.Replace(line, "D", "d", 1)
			changed = true
		}
		b.WriteString(line)
	}
	return b.String(), changed
}

// emptyDir removes what is in a directory.
func emptyDir(dir string) error {
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil // and what a link leads to, no init would empty
	}
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
