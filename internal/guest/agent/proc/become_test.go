package proc

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// As takes the user's rights for one call, on one thread, and nothing of it lasts.
func TestAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes others")
	}
	dir, err := os.MkdirTemp("", "as")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	groupFile := filepath.Join(dir, "group")
	if err := os.WriteFile(groupFile, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(groupFile, 0, 61299); err != nil {
		t.Fatal(err)
	}
	u := &User{UID: 61234, GID: 61235, Groups: []uint32{61299}, Name: "tester"}
	sock := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(sock, 0o777); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := As(u, func() error {
				if _, err := os.Open(secret); !errors.Is(err, fs.ErrPermission) {
					t.Errorf("what is root's opens: %v", err)
				}
				f, err := os.Open(groupFile)
				if err != nil {
					return err
				}
				_ = f.Close()
				return os.WriteFile(filepath.Join(dir, "mine"), nil, 0o666)
			})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if unix.Geteuid() != 0 {
				t.Error("another goroutine is not root")
			}
			f, err := os.Open(secret)
			if err != nil {
				t.Error(err)
				return
			}
			_ = f.Close()
		})
	}
	wg.Wait()
	info, err := os.Stat(filepath.Join(dir, "mine"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != u.UID || st.Gid != u.GID {
		t.Errorf("the file belongs to %d:%d", st.Uid, st.Gid)
	}
	// Who listens sees the user, not root.
	var conn net.Conn
	if err := As(u, func() (err error) { conn, err = net.Dial("unix", sock); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	raw, _ := peer.(*net.UnixConn).SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || cred.Uid != u.UID {
			t.Errorf("the peer is %+v, %v", cred, err)
		}
	})
}

// All of a thread's ids are root's again, and its groups.
func TestAsIsUndone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes others")
	}
	before, err := unix.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	u := &User{UID: 61234, GID: 61235, Name: "tester"}
	for range 100 {
		if err := As(u, func() error {
			if r, e, s := unix.Getresuid(); r != 0 || e != int(u.UID) || s != 0 {
				t.Errorf("as the user the ids are %d %d %d", r, e, s)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			info, err := os.Stat("/proc/self/task/" + task.Name())
			if err == nil && info.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Fatalf("thread %s is %d's", task.Name(), info.Sys().(*syscall.Stat_t).Uid)
			}
		}
	}
	if after, err := unix.Getgroups(); err != nil || len(after) != len(before) {
		t.Errorf("groups %v became %v, %v", before, after, err)
	}
}
