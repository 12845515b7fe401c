package flatten_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/errdefs"
)

// sample is a tar of some hundred kB, and what it makes.
func sample(t testing.TB) ([]byte, string) {
	var all []ent
	var lines []string
	for i := range 9 {
		// Not all of it compresses, so that a cut or a stall can come anywhere.
		body := []byte(strings.Repeat(fmt.Sprint("line of ", i, "\n"), 3000))
		for j := 0; j < len(body); j += 7 {
			body[j] = byte(j * j * (i + 3) >> 5)
		}
		all = append(all, file(fmt.Sprint("f", i), string(body)))
		lines = append(lines, fmt.Sprint("f", i, "=", short(body)))
	}
	return tarOf(t, all...), strings.Join(lines, "\n")
}

// forms returns a tar in all forms that a layer may have.
func forms(t testing.TB, b []byte) map[string][]byte {
	half := len(b) / 2
	skippable := []byte("\x5a\x2a\x4d\x18\x04\x00\x00\x00skip")
	return map[string][]byte{
		ociTar:                      b,
		dockerTar:                   b,
		ociTar + "+gzip":            gz(b),
		ociTar + "+zstd":            zst(t, b),
		dockerTar + ".gzip":         append(gz(b[:half]), gz(b[half:])...),
		dockerTar + ".zstd":         append(append(bytes.Clone(skippable), zst(t, b[:half], zstd.WithWindowSize(1<<10))...), append(zst(t, b[half:]), skippable...)...),
		foreign("oci") + "+zstd":    zst(t, b, zstd.WithEncoderCRC(false)),
		foreign("docker") + ".gzip": gz(b),
	}
}

func foreign(of string) string {
	if of == "oci" {
		return "application/vnd.oci.image.layer.nondistributable.v1.tar"
	}
	return "application/vnd.docker.image.rootfs.foreign.diff.tar"
}

func TestForms(t *testing.T) {
	plain, want := sample(t)
	for media, blob := range forms(t, plain) {
		for _, said := range []string{media, ""} {
			if err := flatten.CheckMediaType(media); err != nil {
				t.Error(err)
			}
			var seen atomic.Int64
			s := newSink(t)
			root, stats, err := flatten.Flatten(t.Context(), []flatten.Layer{{Name: "L1", MediaType: said, DiffID: digest(plain), Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(iotest.HalfReader(bytes.NewReader(blob))), nil
			}}}, s, flatten.Limits{}, func(layer int, n int64) { seen.Add(n) })
			if err != nil {
				t.Errorf("%s: %v", media, err)
				continue
			}
			s.check(t, root)
			if got := s.render(root); got != want {
				t.Errorf("%s: the tree is\n%s", media, got)
			}
			if stats.Entries != 9 || stats.Inodes != 10 || stats.Bytes != int64(len(plain)) || seen.Load() != stats.Bytes || stats.DiffIDs[0] != digest(plain) {
				t.Errorf("%s: %+v, %d bytes reported", media, stats, seen.Load())
			}
		}
	}
	if flatten.CheckMediaType("application/vnd.oci.image.config.v1+json") == nil {
		t.Error("a config passes for a layer")
	}
}

func TestStatsCountWhatIsDropped(t *testing.T) {
	l := layersOf(tarOf(t, file("f", "x").xattr("trusted.a", ""), sym("s", "f")), tarOf(t, hard("g", "s").xattr("user.b", "")))
	_, stats, err := try(t, flatten.Limits{}, l...)
	if err != nil || stats.Dropped != 2 || stats.Inodes != 3 || stats.Entries != 3 || len(stats.DiffIDs) != 2 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestAnyOrder: it does not matter which layer is there first.
func TestAnyOrder(t *testing.T) {
	tars := [][]byte{
		tarOf(t, file("a", "1"), file("d/x", "1"), file("e/y", "1")),
		tarOf(t, file("a", "2"), file(".wh.d", ""), hard("l", "e/y")),
		tarOf(t, file("d/x", "3"), file("e/.wh..wh..opq", "")),
	}
	want := tree("a=2", "d/", "d/x=3", "e/", "l=1")
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			all := layersOf(tars...)
			gates := make([]chan struct{}, len(all))
			for i := range all {
				gates[i] = make(chan struct{})
				open := all[i].Open
				all[i].Open = func(ctx context.Context) (io.ReadCloser, error) {
					<-gates[i]
					return open(ctx)
				}
			}
			s := newSink(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				root, _, err := flatten.Flatten(t.Context(), all, s, flatten.Limits{}, nil)
				want.check(t, s.render(root), err)
				s.check(t, root)
			}()
			for _, i := range order {
				close(gates[i])
				synctest.Wait() // till all that can be done is
			}
			<-done
		})
	}
}

// staller gives what it has and then waits to be closed.
type staller struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func newStaller(b []byte) *staller {
	return &staller{Reader: bytes.NewReader(b), closed: make(chan struct{})}
}

func (s *staller) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err == io.EOF {
		<-s.closed
		return 0, errors.New("read of a closed layer")
	}
	return n, err
}

func (s *staller) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// TestCancel: wherever a layer waits, Flatten ends with the context, and with it all of
// its goroutines: else synctest fails.
func TestCancel(t *testing.T) {
	plain, _ := sample(t)
	waiting := errors.New("the user has gone")
	opens := map[string]func(context.Context) (io.ReadCloser, error){
		"open": func(ctx context.Context) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	for media, blob := range forms(t, plain) {
		for _, n := range []int{0, 3, 100, len(blob) / 2, len(blob)} {
			opens[fmt.Sprint(media, " at ", n)] = func(context.Context) (io.ReadCloser, error) { return newStaller(blob[:n]), nil }
		}
	}
	for name, open := range opens {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSink(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				done := make(chan error)
				go func() {
					all := layersOf(plain)
					for range 5 { // more than are read at once
						all = append(all, flatten.Layer{Name: "waits", Open: open})
					}
					_, _, err := flatten.Flatten(ctx, all, s, flatten.Limits{}, nil)
					done <- err
				}()
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("ended before: %v", err)
				default:
				}
				cancel(waiting)
				if err := <-done; !errors.Is(err, waiting) {
					t.Errorf("%v", err)
				}
				s.check(t, nil)
			})
		})
	}
}

func TestCanceledBefore(t *testing.T) {
	plain, _ := sample(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newSink(t)
	_, _, err := flatten.Flatten(ctx, layersOf(plain, plain), s, flatten.Limits{}, nil)
	if !errors.Is(err, context.Canceled) || errdefs.ClassOf(err) != errdefs.ClassCanceled {
		t.Error(err)
	}
	s.check(t, nil)
}

// TestOneBadLayerEndsAll: nobody waits for the others.
func TestOneBadLayerEndsAll(t *testing.T) {
	plain, _ := sample(t)
	for _, bad := range [][]byte{tarOf(t, file("../x", "")), tarOf(t, hard("a", "b"))} {
		synctest.Test(t, func(t *testing.T) {
			s := newSink(t)
			all := layersOf(bad, plain)
			all = append(all, flatten.Layer{Name: "waits", Open: func(context.Context) (io.ReadCloser, error) { return newStaller(plain[:len(plain)/2]), nil }})
			_, _, err := flatten.Flatten(t.Context(), all, s, flatten.Limits{}, nil)
			refused(invalid, "layer L1").check(t, "", err)
			s.check(t, nil)
		})
	}
}

// TestReaderFails: the error of who reads the layer is the one that is reported.
func TestReaderFails(t *testing.T) {
	plain, _ := sample(t)
	gone := errdefs.Unavailable("the registry has hung up").WithHint("try again")
	for media, blob := range forms(t, plain) {
		for n := 0; n <= len(blob); n += max(len(blob)/37, 1) {
			s := newSink(t)
			_, _, err := flatten.Flatten(t.Context(), []flatten.Layer{{Name: "L1", MediaType: media, Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(gone))), nil
			}}}, s, flatten.Limits{}, nil)
			if !errors.Is(err, errdefs.ErrUnavailable) || !errors.Is(err, gone) || errdefs.HintOf(err) != "try again" || !strings.Contains(err.Error(), "layer L1") {
				t.Errorf("%s, after %d bytes: %v", media, n, err)
			}
			s.check(t, nil)
		}
	}
}

func TestOpenFails(t *testing.T) {
	_, _, err := try(t, flatten.Limits{}, flatten.Layer{Name: "L1", Open: func(context.Context) (io.ReadCloser, error) {
		return nil, errdefs.NotFound("no blob")
	}})
	refused(errdefs.ErrNotFound, "L1", "no blob").check(t, "", err)
}

// TestCut: a layer that ends early is refused, wherever it does.
func TestCut(t *testing.T) {
	small := tarOf(t, dir("d"), file("d/f", strings.Repeat("text ", 300)), sym("s", "d").xattr("security.selinux", "x"), hard("h", "d/f"))
	for media, blob := range forms(t, small) {
		for n := range blob {
			if strings.HasSuffix(media, "tar") && n%17 != 0 {
				continue // long, and much the same everywhere
			}
			got, _, err := try(t, flatten.Limits{}, flatten.Layer{Name: "L1", MediaType: media, DiffID: digest(small), Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(blob[:n])), nil
			}})
			if err == nil && len(blob)-n <= 12 && strings.HasSuffix(media, ".zstd") {
				continue // but for a frame that is skipped
			}
			if !errors.Is(err, invalid) {
				t.Errorf("%s, cut at %d of %d: %v\n%s", media, n, len(blob), err, got)
			}
		}
	}
}

func TestSinkFails(t *testing.T) {
	plain, _ := sample(t)
	s := newSink(t)
	s.fail = errdefs.Exhausted("the disk is full").WithHint("make room")
	_, _, err := flatten.Flatten(t.Context(), layersOf(plain), s, flatten.Limits{}, nil)
	refused(exhausted, "layer L1", `entry "f0"`, "the disk is full").check(t, "", err)
	if errdefs.HintOf(err) != "make room" {
		t.Errorf("the hint of %v is lost", err)
	}
}

// lazy stores all but the last byte.
type lazy struct{ *sink }

func (l lazy) Write(ctx context.Context, r io.Reader, size int64) (ext4.Data, error) {
	return l.sink.Write(ctx, r, size-1)
}

func TestSinkStoresLess(t *testing.T) {
	plain, _ := sample(t)
	s := newSink(t)
	_, _, err := flatten.Flatten(t.Context(), layersOf(plain), lazy{s}, flatten.Limits{}, nil)
	refused(errdefs.ErrInternal, `entry "f0"`, "stored").check(t, "", err)
	s.check(t, nil)
}

// TestClosed: every layer that was opened is closed, once.
func TestClosed(t *testing.T) {
	plain, _ := sample(t)
	for _, bad := range []bool{false, true} {
		var opened, closed atomic.Int32
		var all []flatten.Layer
		for i := range 7 {
			b := plain
			if bad && i == 3 {
				b = plain[:len(plain)/2]
			}
			all = append(all, flatten.Layer{Name: "L", Open: func(context.Context) (io.ReadCloser, error) {
				opened.Add(1)
				return closer{bytes.NewReader(b), &closed}, nil
			}})
		}
		if _, _, err := try(t, flatten.Limits{}, all...); (err != nil) != bad {
			t.Error(err)
		}
		if opened.Load() != closed.Load() {
			t.Errorf("%d opened, %d times closed", opened.Load(), closed.Load())
		}
	}
}

type closer struct {
	io.Reader
	n *atomic.Int32
}

func (c closer) Close() error {
	c.n.Add(1)
	return nil
}
