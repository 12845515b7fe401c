package daemon

import (
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/logkey"
)

// peerListener accepts connections of the daemon's own user, of root, and of members of
// its group if it has one. The socket's mode says the same; this holds when somebody
// changes the mode.
type peerListener struct {
	net.Listener
	log   *slog.Logger
	group int // 0: none
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, groups, err := peerOf(conn)
		if err == nil && (uid == 0 || int(uid) == os.Geteuid() || l.group != 0 && slices.Contains(groups, uint32(l.group))) {
			return conn, nil
		}
		l.log.Warn("refused a connection", logkey.UID, uid, logkey.Err, err)
		_ = conn.Close()
	}
}

// peerOf returns the user at the other end and all of the groups it had when it
// connected.
func peerOf(conn net.Conn) (uid uint32, groups []uint32, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var cerr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); cerr != nil {
			return
		}
		uid = cred.Uid
		groups, cerr = peerGroups(fd)
		groups = append(groups, cred.Gid)
	})
	if err == nil {
		err = cerr
	}
	return uid, groups, err
}

// maxGroups is how many groups a user may be in, to the kernel.
const maxGroups = 1 << 16

// peerGroups are the supplementary ones.
func peerGroups(fd uintptr) ([]uint32, error) {
	list := make([]byte, 64*4)
	for {
		size := uint32(len(list))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == syscall.ERANGE && int(size) > len(list) && size <= maxGroups*4:
			list = make([]byte, size) // as many as there are
		case errno != 0:
			return nil, errno
		default:
			var groups []uint32
			for ; size >= 4; size -= 4 {
				groups = append(groups, binary.NativeEndian.Uint32(list[size-4:]))
			}
			return groups, nil
		}
	}
}
