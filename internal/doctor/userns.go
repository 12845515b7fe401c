package doctor

import (
	"bufio"
	"context"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/sysexec"
)

// minSubIDs is how many subordinate ids an image needs: all that 16 bits can name.
const minSubIDs = 65536

// UserNamespaces checks what building an image as an ordinary user takes: a range
// of subordinate ids, the programs that map it, and a kernel that lets this user
// make user and mount namespaces. Root needs none of it.
func UserNamespaces(d Distro) Check {
	return Check{Name: "user namespaces", Run: func(ctx context.Context) Result {
		uid := os.Geteuid()
		if uid == 0 {
			return Pass("not needed: running as root")
		}
		name := strconv.Itoa(uid)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
			if n := subIDs(file, name, uid); n < minSubIDs {
				return Warn("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "+name,
					"%s gives %d ids to %s, building images needs %d", file, n, name, minSubIDs)
			}
		}
		if _, err := sysexec.Look("newuidmap"); err != nil {
			return Warn(d.Install("newuidmap", "uidmap"), "newuidmap is not installed; building images needs it")
		}
		if err := tryNamespaces(ctx, uid, os.Getegid()); err != nil {
			return Warn(NamespaceFix(), "building images cannot make a user namespace: %v", err)
		}
		return Pass("allowed, %s has subordinate ids", name)
	}}
}

// tryNamespaces makes the namespaces rather than reading the half dozen switches
// by which kernels and distributions forbid them.
func tryNamespaces(ctx context.Context, uid, gid int) error {
	return sysexec.Run(ctx, sysexec.Cmd{Path: "true", Attr: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
	}})
}

// NamespaceFix says what to do when an ordinary user may not make namespaces: it
// names the switch that is off, of those known.
func NamespaceFix() string {
	for _, s := range []struct{ file, off, fix string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if data, err := os.ReadFile(s.file); err == nil && strings.TrimSpace(string(data)) == s.off {
			return s.fix
		}
	}
	return "allow unprivileged user namespaces, or run the daemon as root"
}

// subIDs is the size of the largest range that file gives to the user.
func subIDs(file, name string, uid int) int64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	var most int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		parts := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(parts) != 3 || (parts[0] != name && parts[0] != strconv.Itoa(uid)) {
			continue
		}
		if n, err := strconv.ParseInt(parts[2], 10, 64); err == nil {
			most = max(most, n)
		}
	}
	return most
}
