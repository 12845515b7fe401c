package proc

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	write(passwd, "root:x:0:0:root:/root:/bin/bash\nbroken\nbad:x:y:z::/:\ndev:x:1000:1000::/home/dev:/bin/zsh\nnohome:x:5:5:::\n")
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
		"nohome":     {UID: 5, GID: 5, Name: "nohome", Home: "/"},
		"4294967294": {UID: 4294967294, Name: "4294967294", Home: "/"},
	} {
		got, err := u.Lookup(spec)
		if err != nil || got.UID != want.UID || got.GID != want.GID || got.Name != want.Name || got.Home != want.Home ||
			got.Shell != want.Shell || len(got.Groups) != len(want.Groups) {
			t.Errorf("%q: %+v %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"nobody", "dev:none", ":", "dev:", ":dev", "-1", "4294967295", "bad", "99999999999"} {
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
	// An image without accounts still has root.
	if got, err := NewUsers(t.TempDir()).Lookup("root"); err != nil || got.UID != 0 || got.Home != "/root" {
		t.Errorf("no files: %+v %v", got, err)
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
