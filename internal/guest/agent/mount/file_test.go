package mount_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/share"
	"banger/internal/sysexec"
)

// fileEnv makes this program one that works on a file of the guest: GUEST:HOST. Who answers
// must be another process: one that waits for memory cannot be interrupted.
const fileEnv = "BANGER_TEST_MOUNTED"

// TestFile does random things to one file, through its descriptor and through memory, and
// compares each with what it must be.
func TestFile(t *testing.T) {
	if dirs := os.Getenv(fileEnv); dirs != "" {
		there, here, _ := strings.Cut(dirs, ":")
		exercise(t, there+"/file", here+"/file")
		return
	}
	r := start(t, share.Options{Chown: true})
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{
		Path: os.Args[0], Args: []string{"-test.run", "^TestFile$", "-test.v"}, Env: append(os.Environ(), fileEnv+"="+r.guest+":"+r.host),
	})
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func exercise(t *testing.T, path, onHost string) {
	rng := seed(t)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	const most = 300_000
	var model []byte
	span := func(limit int) (int, int) {
		off := rng.IntN(max(limit, 1))
		return off, 1 + rng.IntN(max(min(limit-off, 90_000), 1))
	}
	grow := func(n int) {
		if n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	for step := range 3000 {
		what := rng.IntN(9)
		off, n := span(most)
		switch what {
		case 0, 1: // write
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			grow(off + n)
			copy(model[off:], data)
			if _, err := unix.Pwrite(fd, data, int64(off)); err != nil {
				t.Fatal(step, err)
			}
		case 2: // read
			buf := make([]byte, n)
			got, err := unix.Pread(fd, buf, int64(off))
			want := model[min(off, len(model)):min(off+n, len(model))]
			if err != nil || !bytes.Equal(buf[:got], want) {
				t.Fatalf("step %d: read of %d at %d: %d bytes, %v", step, n, off, got, err)
			}
		case 3: // truncate
			if err := unix.Ftruncate(fd, int64(off)); err != nil {
				t.Fatal(step, err)
			}
			grow(off)
			model = model[:off:off]
		case 4: // punch a hole
			if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil && err != unix.EOPNOTSUPP {
				t.Fatal(step, err)
			} else if err == nil {
				clear(model[min(off, len(model)):min(off+n, len(model))])
			}
		case 5: // close and open
			if err := unix.Close(fd); err != nil {
				t.Fatal(step, err)
			}
			if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				t.Fatal(step, err)
			}
		case 6, 7: // through memory
			if len(model) == 0 {
				continue
			}
			mem, err := unix.Mmap(fd, 0, len(model), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(step, err)
			}
			if !bytes.Equal(mem, model) {
				t.Fatalf("step %d: memory is not the file", step)
			}
			off, n := span(len(model))
			for i := range n {
				mem[off+i] ^= 0x55
				model[off+i] ^= 0x55
			}
			if what == 7 {
				if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
					t.Fatal(step, err)
				}
			}
			if err := unix.Munmap(mem); err != nil {
				t.Fatal(step, err)
			}
		case 8: // what the host has
			if err := unix.Fsync(fd); err != nil {
				t.Fatal(step, err)
			}
			got, err := os.ReadFile(onHost)
			if err != nil || !bytes.Equal(got, model) {
				t.Fatalf("step %d: the host has %d bytes, want %d, %v", step, len(got), len(model), err)
			}
		}
	}
	if _, err := read(path + "/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("%v", err)
	}
}
