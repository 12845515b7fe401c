package ports

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// by says who listens on a port of this host, as far as one may see: processes of
// other users have no names for us. Empty: nobody knows.
func by(at netip.AddrPort) string {
	inode, uid := socketOf(at.Port())
	if inode == "" {
		return ""
	}
	if pid, name := processOf(inode); pid != "" {
		return fmt.Sprintf(" by %s (pid %s)", name, pid)
	}
	return fmt.Sprintf(" by a process of the user with id %s", uid)
}

// socketOf finds a socket that listens on the port, at whichever address.
func socketOf(port uint16) (inode, uid string) {
	const listening = "0A"
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan() && inode == ""; {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			field := strings.Fields(s.Text())
			if len(field) < 10 || field[3] != listening {
				continue
			}
			_, hex, _ := strings.Cut(field[1], ":")
			if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
				inode, uid = field[9], field[7]
			}
		}
		_ = f.Close()
		if inode != "" {
			break
		}
	}
	return inode, uid
}

// processOf finds a process that has the socket open.
func processOf(inode string) (pid, name string) {
	want := "socket:[" + inode + "]"
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != want {
			continue
		}
		pid = filepath.Base(filepath.Dir(filepath.Dir(link)))
		b, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return pid, strings.TrimSpace(string(b))
	}
	return "", ""
}
