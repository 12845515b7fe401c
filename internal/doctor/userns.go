package doctor

import (
	"bufio"
	"context"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/sysexec"
)

// minSubIDs is how many subordinate ids an image needs: all that 16 bits can name.
const minSubIDs = 65536

// UserNamespaces checks what building an image as an ordinary user takes: a range
// of subordinate ids, the programs that map it, and a kernel that lets this user
// make user and mount namespaces. Root needs none of it.
func UserNamespaces(d Distro) Check {
	return Check{Name: "user namespaces", Run: func(ctx context.Context) Result {
		if uid := os.Geteuid(); uid != 0 {
			return userNamespaces(ctx, d, "/", uid, helper)
		}
		return Pass("not needed: running as root")
	}}
}

func userNamespaces(ctx context.Context, d Distro, root string, uid int, helper []string) Result {
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	for _, file := range []string{"etc/subuid", "etc/subgid"} {
		file = filepath.Join(root, file)
		if n := subIDs(file, name, uid); n < minSubIDs {
			return Warn("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "+name,
				"%s gives %d ids to %s, building images needs %d", file, n, name, minSubIDs)
		}
	}
	for program, debianPackage := range map[string]string{"newuidmap": "uidmap", helper[0]: helper[0]} {
		if _, err := sysexec.Look(program); err != nil {
			return Warn(d.Install(program, debianPackage), "building images makes user namespaces: %v", err)
		}
	}
	if err := tryNamespaces(ctx, helper); err != nil {
		return Warn(namespaceFix(root, loadProfile), "building images cannot make a user namespace: %v", err)
	}
	return Pass("allowed, %s has subordinate ids", name)
}

// helper makes the namespaces in which images are built. It is asked rather than
// the kernel: hosts that restrict user namespaces by program (as Ubuntu does since
// 24.04, with AppArmor) name it as one that may.
var helper = []string{"mmdebstrap", "--unshare-helper"}

const loadProfile = "load the AppArmor profile that lets mmdebstrap make them: sudo apparmor_parser -r /etc/apparmor.d/mmdebstrap; or run the daemon as root"

// tryNamespaces makes the namespaces rather than reading the half dozen switches
// by which kernels and distributions forbid them.
func tryNamespaces(ctx context.Context, helper []string) error {
	return sysexec.Run(ctx, sysexec.Cmd{Path: helper[0], Args: append(helper[1:len(helper):len(helper)], "true")})
}

// NamespaceFix says what to do when an ordinary user may not make namespaces.
func NamespaceFix() string {
	return namespaceFix("/", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run the daemon as root")
}

// namespaceFix names the switch that is off below root, of those known. Where
// AppArmor decides by program, apparmor says what to do for the one in question.
func namespaceFix(root, apparmor string) string {
	for _, s := range []struct{ file, off, fix string }{
		{"proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"},
		{"proc/sys/user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"},
		{"proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", apparmor},
	} {
		if data, err := os.ReadFile(filepath.Join(root, s.file)); err == nil && strings.TrimSpace(string(data)) == s.off {
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
