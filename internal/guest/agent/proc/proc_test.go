package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

func TestLookup(t *testing.T) {
	etc := t.TempDir()
	passwd := filepath.Join(etc, "passwd")
	write := func(p, text string) {
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(passwd, "root:x:0:0:root:/root:/bin/bash\nbroken\nbad:x:y:z::/:\n4242:x:6:6::/six:\nminus:x:4294967295:0::/:\ndev:x:1000:1000::/home/dev:/bin/zsh\nnohome:x:5:5:::\n")
	write(filepath.Join(etc, "group"), "root:x:0:\ndev:x:1000:\nsudo:x:27:dev,other\ndocker:x:99:dev\nself:x:1000:dev\n")
	u := NewUsers(etc)
	for spec, want := range map[string]User{
		"":           {Name: "root", Home: "/root", Shell: "/bin/bash"},
		"root":       {Name: "root", Home: "/root", Shell: "/bin/bash"},
		"dev":        {UID: 1000, GID: 1000, Groups: []uint32{27, 99}, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"1000":       {UID: 1000, GID: 1000, Groups: []uint32{27, 99}, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"dev:sudo":   {UID: 1000, GID: 27, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"77:88":      {UID: 77, GID: 88, Name: "77", Home: "/"},
		"77":         {UID: 77, Name: "77", Home: "/"},
		"dev:99":     {UID: 1000, GID: 99, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"1000:4321":  {UID: 1000, GID: 4321, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"77:docker":  {UID: 77, GID: 99, Name: "77", Home: "/"},
		"01000":      {UID: 1000, GID: 1000, Groups: []uint32{27, 99}, Name: "dev", Home: "/home/dev", Shell: "/bin/zsh"},
		"4242":       {UID: 4242, Name: "4242", Home: "/"},
		"6":          {UID: 6, GID: 6, Name: "4242", Home: "/six"},
		"nohome":     {UID: 5, GID: 5, Name: "nohome", Home: "/"},
		"4294967294": {UID: 4294967294, Name: "4294967294", Home: "/"},
	} {
		got, err := u.Lookup(spec)
		if err != nil || got.UID != want.UID || got.GID != want.GID || got.Name != want.Name || got.Home != want.Home ||
			got.Shell != want.Shell || len(got.Groups) != len(want.Groups) {
			t.Errorf("%q: %+v %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"nobody", "dev:none", ":", "dev:", ":dev", "-1", "4294967295", "bad", "minus", "99999999999", "dev:4294967295", "77:bad"} {
		if got, err := u.Lookup(spec); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %+v %v", spec, got, err)
		}
	}
	// The files may change while the VM runs.
	write(passwd, "late:x:8:8::/late:/bin/sh\n")
	if got, err := u.Lookup("late"); err != nil || got.UID != 8 {
		t.Errorf("after a change: %+v %v", got, err)
	}
	if _, err := u.Lookup("dev"); err == nil {
		t.Error("a user that is gone was found")
	}
	if _, err := u.Lookup("eve"); err == nil || !strings.Contains(err.Error(), `no user "eve"`) || errdefs.HintOf(err) == "" {
		t.Errorf("an unknown user: %v", err)
	}
}

// What is not an account file is no accounts: numbers and root are there all the same.
func TestLookupWithoutAccounts(t *testing.T) {
	for name, prepare := range map[string]func(path string) error{
		"missing":   func(string) error { return nil },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o644) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"loop":      func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"dangling":  func(path string) error { return os.Symlink("/nonexistent/accounts", path) },
		"below a file": func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.WriteFile(filepath.Dir(path), nil, 0o644))
		},
		"binary": func(path string) error { return os.WriteFile(path, []byte("\x00:::\xff\n:::::::\n"), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			etc := filepath.Join(t.TempDir(), "etc")
			if err := os.Mkdir(etc, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"passwd", "group"} {
				if err := prepare(filepath.Join(etc, file)); err != nil && name != "below a file" {
					t.Fatal(err)
				}
			}
			u := NewUsers(etc)
			for spec, want := range map[string]User{
				"": {Name: "root", Home: "/"}, "root": {Name: "root", Home: "/"}, "0": {Name: "root", Home: "/"},
				"1001": {UID: 1001, Name: "1001", Home: "/"}, "1001:33": {UID: 1001, GID: 33, Name: "1001", Home: "/"},
			} {
				if got, err := u.Lookup(spec); err != nil || got.UID != want.UID || got.GID != want.GID || got.Name != want.Name || got.Home != want.Home {
					t.Errorf("%q: %+v %v, want %+v", spec, got, err, want)
				}
			}
			if _, err := u.Lookup("dev"); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("a name: %v", err)
			}
		})
	}
}

// Of files that are too long only whole lines count, and no more groups than a process
// may have.
func TestLookupInLargeFiles(t *testing.T) {
	etc := t.TempDir()
	var group strings.Builder
	for n := range 3000 {
		fmt.Fprintf(&group, "g%d:x:%d:a,dev\n", n, n+1)
	}
	group.WriteString(strings.Repeat("#", maxAccounts-group.Len()-len("\ncut:x:12")) + "\ncut:x:1234:\n")
	passwd := "dev:x:1000:1000::/home/dev:/bin/sh\n" + strings.Repeat("x", maxAccounts) + "\nlate:x:7:7::/:\n"
	for name, text := range map[string]string{"passwd": passwd, "group": group.String()} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u := NewUsers(etc)
	if got, err := u.Lookup("dev"); err != nil || got.UID != 1000 || len(got.Groups) != 1024 {
		t.Errorf("%d %d groups, %v", got.UID, len(got.Groups), err)
	}
	for _, spec := range []string{"late", "dev:cut"} {
		if got, err := u.Lookup(spec); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %+v %v", spec, got, err)
		}
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/tool": 0o644, "b/tool": 0o755, "b/only": 0o700, "c/plain": 0o644} {
		p := filepath.Join(dir, name)
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/nowhere", "PATH=" + dir + "/a:" + dir + "/b::" + dir + "/c"}
	me, other := &User{UID: uint32(os.Getuid())}, &User{UID: 54321, GID: 54321}
	for _, c := range []struct {
		user *User
		name string
		want string
		err  error
	}{
		{me, "tool", "/b/tool", nil},
		{other, "tool", "/b/tool", nil},
		{me, "only", "/b/only", nil},
		{other, "only", "", errdefs.ErrPermission},
		{me, "plain", "", errdefs.ErrPermission},
		{me, "none", "", errdefs.ErrNotFound},
		{me, dir + "/b/tool", "/b/tool", nil},
		{me, "b/tool", "/b/tool", nil},
		{me, dir + "/b", "", errdefs.ErrPermission},
		{me, "./none", "", errdefs.ErrNotFound},
	} {
		got, err := LookPath(c.user, dir, c.name, env)
		if c.err != nil && !errors.Is(err, c.err) || c.err == nil && (err != nil || got != dir+c.want) {
			t.Errorf("%s as %d: %q %v", c.name, c.user.UID, got, err)
		}
	}
}

func TestProtectIsNotInherited(t *testing.T) {
	s := NewSpawner()
	if err := s.Protect(); err != nil {
		t.Skipf("not allowed here: %v", err)
	}
	t.Cleanup(func() { _ = s.adjust("0") })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := s.Start(Spec{
		Path: "/bin/cat", Args: []string{"cat", "/proc/self/oom_score_adj"}, Dir: "/",
		Files: [3]uintptr{0, w.Fd(), 2},
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	n, _ := r.Read(b)
	if st, err := p.Wait(); err != nil || st.Code != 0 {
		t.Fatal(st, err)
	}
	own, _ := os.ReadFile("/proc/self/oom_score_adj")
	if got := strings.TrimSpace(string(b[:n])); got != "0" || strings.TrimSpace(string(own)) != "-1000" {
		t.Errorf("the child has %s, the agent %s", got, own)
	}
}

// What cannot be executed says why: a program of another machine is not handed to a
// shell, a script without an interpreter line is.
func TestStartOfOddFiles(t *testing.T) {
	dir := t.TempDir()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		text string
		code int
		err  error
	}{
		"arm":            {"\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + "\xb7\x00" + strings.Repeat("\x00", 100), 0, errdefs.ErrPermission},
		"short":          {"\x7fELF", 0, errdefs.ErrPermission},
		"plain script":   {"exit 9\n", 9, nil},
		"no interpreter": {"#!/nonexistent/sh\n", 0, errdefs.ErrNotFound},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), 0o755); err != nil {
			t.Fatal(err)
		}
		p, err := NewSpawner().Start(Spec{Path: path, Args: []string{path}, Dir: "/", Files: [3]uintptr{null.Fd(), null.Fd(), null.Fd()}})
		if c.err != nil {
			if !errors.Is(err, c.err) || errdefs.HintOf(err) == "" || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v, want %v", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if st, err := p.Wait(); err != nil || st.Code != c.code {
			t.Errorf("%s: %+v %v", name, st, err)
		}
	}
}
