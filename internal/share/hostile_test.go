package share_test

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"banger/internal/guest"
	"banger/internal/share"
)

// kernel is a guest's that asks what it likes.
type kernel struct {
	t    *testing.T
	conn net.Conn
	r    *guest.FrameReader
	w    *guest.FrameWriter
	last uint64
}

// serve serves dir to a kernel.
func serve(t *testing.T, dir string, o share.Options) *kernel {
	t.Helper()
	s, err := share.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	var running sync.WaitGroup
	running.Go(func() {
		_ = s.Serve(t.Context(), here, guest.NewFrameReader(here), guest.NewFrameWriter(here), share.Guest{Thread: 4711}, func(guest.Control) error { return nil })
	})
	t.Cleanup(func() {
		_ = there.Close()
		running.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	k := &kernel{t: t, conn: there, r: guest.NewFrameReader(there), w: guest.NewFrameWriter(there)}
	init := make([]byte, 64)
	binary.NativeEndian.PutUint32(init, 7)
	binary.NativeEndian.PutUint32(init[4:], 31)
	if e, _ := k.ask(26, 0, init); e != 0 {
		t.Fatal(e)
	}
	return k
}

// ask returns the error, negative as errno is there, and what is answered.
func (k *kernel) ask(op uint32, node uint64, body []byte) (int32, []byte) {
	k.t.Helper()
	k.last++
	k.send(op, node, body)
	for {
		channel, p, err := k.r.Next()
		if err != nil {
			k.t.Fatal(err)
		}
		if channel == guest.ChanStdin && binary.NativeEndian.Uint64(p[8:]) == k.last {
			return int32(binary.NativeEndian.Uint32(p[4:])), bytes.Clone(p[16:])
		}
	}
}

func (k *kernel) send(op uint32, node uint64, body []byte) {
	k.t.Helper()
	m := make([]byte, 40, 40+len(body))
	binary.NativeEndian.PutUint32(m, uint32(40+len(body)))
	binary.NativeEndian.PutUint32(m[4:], op)
	binary.NativeEndian.PutUint64(m[8:], k.last)
	binary.NativeEndian.PutUint64(m[16:], node)
	if err := k.w.Write(guest.ChanStdout, append(m, body...)); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) lookup(dir uint64, name string) (int32, uint64) {
	k.t.Helper()
	e, out := k.ask(1, dir, append([]byte(name), 0))
	if e != 0 {
		return e, 0
	}
	return 0, binary.NativeEndian.Uint64(out)
}

// TestNoWayOut: whatever a kernel asks for, it is below the directory.
func TestNoWayOut(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	shared := filepath.Join(dir, "shared")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"up": "..", "abs": dir, "file": secret} {
		if err := os.Symlink(target, filepath.Join(shared, name)); err != nil {
			t.Fatal(err)
		}
	}
	k := serve(t, shared, share.Options{Chown: true})
	for _, name := range []string{"..", ".", "", "../secret", "up/secret", "abs/secret", "/etc", secret, string(bytes.Repeat([]byte("x"), 300))} {
		if e, id := k.lookup(1, name); e == 0 && id != 0 {
			t.Errorf("%q is node %d", name, id)
		}
	}
	for _, name := range []string{"up", "abs", "file"} {
		e, id := k.lookup(1, name)
		if e != 0 {
			t.Fatal(name, e)
		}
		// A link is no directory to look into, and no file to open or to change.
		if e, _ := k.lookup(id, "secret"); e == 0 {
			t.Errorf("%s leads out", name)
		}
		if e, _ := k.ask(14, id, make([]byte, 8)); e == 0 {
			t.Errorf("%s can be opened", name)
		}
		if e, _ := k.ask(27, id, make([]byte, 8)); e == 0 {
			t.Errorf("%s can be listed", name)
		}
		attr := make([]byte, 88)
		binary.NativeEndian.PutUint32(attr, 1) // the mode
		if e, _ := k.ask(4, id, attr); e == 0 {
			t.Errorf("%s can be changed", name)
		}
	}
	// To rename, link, make and remove with such names is refused as well.
	for _, name := range []string{"..", "../secret", "abs/secret"} {
		if e, _ := k.ask(10, 1, append([]byte(name), 0)); e == 0 {
			t.Errorf("%q was removed", name)
		}
		both := append(append(make([]byte, 8), "up\x00"...), append([]byte(name), 0)...)
		binary.NativeEndian.PutUint64(both, 1)
		if e, _ := k.ask(12, 1, both); e == 0 {
			t.Errorf("renamed to %q", name)
		}
		made := append(make([]byte, 8), append([]byte(name), 0)...)
		if e, _ := k.ask(9, 1, made); e == 0 {
			t.Errorf("%q was made", name)
		}
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	if st, err := os.Stat(secret); err != nil || st.Mode() != 0o644 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// TestNonsense sends what no kernel does. All of it is answered, or is the end of this
// guest's stream; nothing but the directory changes.
func TestNonsense(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	for range 30 {
		dir := t.TempDir()
		beside := filepath.Join(dir, "beside")
		if err := os.WriteFile(beside, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		shared := filepath.Join(dir, "shared")
		if err := os.MkdirAll(filepath.Join(shared, "d"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // whatever modes it has got
			_ = filepath.WalkDir(shared, func(path string, d fs.DirEntry, _ error) error { return os.Chmod(path, 0o700) })
		})
		k := serve(t, shared, share.Options{})
		var reading sync.WaitGroup
		reading.Go(func() {
			for {
				if _, _, err := k.r.Next(); err != nil {
					return
				}
			}
		})
		for range 500 {
			k.last++
			body := make([]byte, rng.IntN(200))
			for i := range body {
				if body[i] = byte(rng.Uint32()); rng.IntN(2) == 0 {
					body[i] = 0
				}
			}
			if len(body) > 8 && rng.IntN(2) == 0 {
				copy(body[rng.IntN(len(body)-4):], "d\x00..\x00"[:4])
			}
			k.send(uint32(rng.IntN(60)), uint64(rng.IntN(8)), body)
		}
		_ = k.conn.Close()
		reading.Wait()
		if got, err := os.ReadFile(beside); err != nil || string(got) != "x" {
			t.Errorf("%q, %v", got, err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
			t.Errorf("%d entries, %v", len(all), err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, file + "-absent", file + "/below"} {
		if s, err := share.Open(path, share.Options{}); err == nil {
			t.Errorf("%s: %v", path, s.Close())
		}
	}
}
