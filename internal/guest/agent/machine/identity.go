package machine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/ifconf"
)

// setHostname names the machine, now and for an init that sets the name by its
// files later. The root disk is the VM's own, so its files may say its name.
//
// Whatever an image has in the place of the files, it boots: what cannot be written is
// said on the console.
func (m *Machine) setHostname(etc, name string) error {
	if len(name) > 64 || strings.ContainsAny(name, " \t\n\x00/#") {
		return errdefs.Invalid("host name %q is not one", name)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return errdefs.Wrap(err, "set the host name")
	}
	m.writeNames(etc, name)
	return nil
}

func (m *Machine) writeNames(etc, name string) {
	if err := replaceFile(filepath.Join(etc, "hostname"), []byte(name+"\n")); err != nil {
		m.log.Warn("the host name is not written down", "err", err)
	}
	hosts := filepath.Join(etc, "hosts")
	old, err := readFile(hosts)
	if err == nil {
		err = replaceFile(hosts, addHost(old, name))
	}
	if err != nil {
		m.log.Warn("the host name is not found by the image's programs", "err", err)
	}
}

// maxFile bounds how much of a file of the image is read, in bytes.
const maxFile = 1 << 20

// readFile reads a file of the image; what is missing is empty. Anything but a file is
// an error: a pipe would keep us for ever.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, errdefs.Invalid("%s is no file of at most %d bytes", path, maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// hostMark ends the line of /etc/hosts that is the agent's.
const hostMark = "# this machine"

// addHost makes name resolvable without a DNS server, which sudo insists on.
func addHost(old []byte, name string) []byte {
	var b strings.Builder
	local := false
	for line := range strings.Lines(string(old)) {
		if strings.HasSuffix(strings.TrimSpace(line), hostMark) {
			continue
		}
		if f := strings.Fields(line); len(f) > 1 && f[0] == "127.0.0.1" {
			local = true
		}
		b.WriteString(line)
		if !strings.HasSuffix(line, "\n") {
			b.WriteByte('\n')
		}
	}
	if !local {
		b.WriteString("127.0.0.1 localhost " + hostMark + "\n")
	}
	b.WriteString("127.0.1.1 " + name + " " + hostMark + "\n")
	return []byte(b.String())
}

// replaceFile puts data in place of what path holds. A symlink, a device or a
// mount there is somebody's arrangement and is written through.
func replaceFile(path string, data []byte) error {
	if old, err := readFile(path); err == nil && old != nil && string(old) == string(data) {
		return nil
	}
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return writeThrough(path, data)
	}
	tmp := path + ".banger-new"
	_ = os.Remove(tmp) // whatever the image has there
	err := writeFile(tmp, string(data))
	if err != nil {
		return err
	}
	err = os.Rename(tmp, path)
	if errors.Is(err, unix.EBUSY) { // a mount point
		_ = os.Remove(tmp)
		return writeThrough(path, data)
	}
	return err
}

// writeThrough writes to what is there, and to where a link leads, if nothing is there
// yet. Nobody may read a pipe, so it is not waited for.
func writeThrough(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		link, lerr := os.Readlink(path)
		if lerr != nil {
			return err
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		return writeFile(link, string(data))
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// makeDirs makes the directories that an image counts on; of those that cannot be made
// the console tells.
func (m *Machine) makeDirs(dirs []string) {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			m.log.Warn("a directory of the image's config is missing", "err", err)
		}
	}
}

// setDNS makes the C library and systemd-resolved use the given servers, and look up
// names of one label in the domain search first, unless it is empty.
//
// An image's /etc/resolv.conf is a file, missing, or a symlink to what a service
// writes below /run once it runs. The file is written, as a DHCP client would.
// The symlink is kept and its target written, which serves until the service
// comes; systemd-resolved is told by a drop-in if it is yet to start, and by its
// own tool if it runs already. Nothing is mounted over the file: packages that
// replace it would fail.
func (m *Machine) setDNS(root string, card ifconf.Card, servers []netip.Addr, search string) error {
	if len(servers) == 0 {
		return nil
	}
	names := make([]string, len(servers))
	domains := []string{"~."}
	var conf strings.Builder
	if search != "" {
		domains = append(domains, search)
		conf.WriteString("search " + search + "\n")
	}
	for i, s := range servers {
		names[i] = s.String()
		conf.WriteString("nameserver " + names[i] + "\n")
	}
	resolvedRuns := exists(filepath.Join(root, "run/systemd/resolve/io.systemd.Resolve"))
	dropIn := "[Resolve]\nDNS=" + strings.Join(names, " ") + "\nDomains=" + strings.Join(domains, " ") + "\n"
	if err := writeFile(filepath.Join(root, "run/systemd/resolved.conf.d/00-banger.conf"), dropIn); err != nil {
		return errdefs.Wrap(err, "write the servers for systemd-resolved")
	}
	target := filepath.Join(root, "etc/resolv.conf")
	link, err := os.Readlink(target)
	if err != nil {
		return errdefs.Wrap(replaceFile(target, []byte(conf.String())), "write the DNS servers")
	}
	if resolvedRuns && strings.Contains(link, "systemd/resolve/") {
		status, err := m.run(context.Background(), nil, append([]string{"resolvectl", "dns", card.Name}, names...)...)
		if err == nil && status.Code == 0 {
			_, _ = m.run(context.Background(), nil, append([]string{"resolvectl", "domain", card.Name}, domains...)...)
			return nil
		}
	}
	if filepath.IsAbs(link) {
		target = filepath.Join(root, link)
	} else {
		target = filepath.Join(filepath.Dir(target), link)
	}
	if _, err := os.Stat(target); err == nil {
		return errdefs.Wrap(writeThrough(target, []byte(conf.String())), "write the DNS servers")
	}
	return errdefs.Wrap(writeFile(target, conf.String()), "write the DNS servers")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
