package imagemgr

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
)

// remote is where a process pulls from that is killed.
type remote struct {
	Ref   string // of what becomes the image "it"
	Certs string // file of the authority
	Auth  string // file of the credentials
}

// sources is how it is pulled.
func (r remote) sources(src Sources) (Sources, error) {
	pem, err := os.ReadFile(r.Certs)
	if err != nil {
		return src, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	src.Transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	src.Keychain = oci.Files{Paths: []string{r.Auth}}
	src.Retry = oci.Retry{Attempts: 5, Pause: time.Millisecond, MaxPause: 4 * time.Millisecond, Silence: 10 * time.Second}
	return src, nil
}

func (r remote) pull(s *Service) error {
	_, err := s.PullImage(context.Background(), Pull{From: r.Ref, As: "it"}, nobody{})
	return err
}

// cutter is a proxy that cuts connections, and tells when so many bytes have come.
type cutter struct {
	target string
	host   string // HOST:PORT

	mu      sync.Mutex
	cut     func() int64  // after how many bytes a new connection is cut; 0: never
	relayed int64         // of what the registry has sent
	alarm   int64         // after so many of them …
	reached chan struct{} // … this is closed; nil: it is not
}

func newCutter(t *testing.T, target string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{target: target, host: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { c.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return c
}

// disturb says what is done to connections from now on.
func (c *cutter) disturb(cut func() int64, alarm int64) (reached chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut, c.relayed, c.alarm, c.reached = cut, 0, alarm, nil
	if alarm > 0 {
		c.reached = make(chan struct{})
	}
	return c.reached
}

func (c *cutter) sent() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relayed
}

func (c *cutter) serve(conn net.Conn) {
	defer conn.Close()
	up, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer up.Close()
	c.mu.Lock()
	left := int64(0)
	if c.cut != nil {
		left = c.cut()
	}
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, conn)
		_ = up.Close()
	}()
	buf := make([]byte, 4<<10)
	for {
		n, err := up.Read(buf)
		cut := left > 0 && int64(n) >= left
		if cut {
			n = int(left)
		}
		left -= min(left, int64(n))
		if _, werr := conn.Write(buf[:n]); werr != nil || err != nil || cut {
			break
		}
		c.count(int64(n))
	}
	_ = conn.(*net.TCPConn).SetLinger(0) // reset, as by something in between
	_ = conn.Close()
	<-done
}

func (c *cutter) count(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relayed += n
	if c.reached != nil && c.relayed >= c.alarm {
		close(c.reached)
		c.reached = nil
	}
}

// noisy is an image of three layers that do not compress.
func noisy(t *testing.T, rng *rand.ChaCha8, sizes ...int) ocitest.Made {
	t.Helper()
	i := ocitest.Image{Config: author}
	for n, size := range sizes {
		noise := make([]byte, size)
		_, _ = rng.Read(noise)
		i.Layers = append(i.Layers, ocitest.Layer(t, ocitest.Files{"etc/": "", fmt.Sprint("etc/noise", n): string(noise), "etc/hello": fmt.Sprint(n)}))
	}
	return ocitest.Make(t, i, nil)
}

// Pulls from a real registry are killed and cut off, wherever chance says. None leaves a
// wrong image or a wrong blob, and the next ones go on where they ended.
func TestKillsOfPulls(t *testing.T) {
	d := ocitest.StartRegistry(t)
	number := func(name string, otherwise uint64) uint64 {
		n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err != nil {
			return otherwise
		}
		return n
	}
	rounds := number("BANGER_TEST_PULL_KILLS", 20)
	seed := number("BANGER_TEST_SEED", rand.Uint64())
	t.Logf("BANGER_TEST_SEED=%d BANGER_TEST_PULL_KILLS=%d", seed, rounds)
	rng := rand.New(rand.NewPCG(seed, 1))

	made := noisy(t, rand.NewChaCha8([32]byte{1}), 250_000, 600_000, 60_000)
	size := int64(len(made.Manifest))
	for _, b := range made.Blobs {
		size += int64(len(b))
	}
	dir := t.TempDir()
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"new": made, "old": noisy(t, rand.NewChaCha8([32]byte{2}), 90_000)})
	for _, tag := range []string{"new", "old"} {
		d.Push(t, "oci:"+dir+":"+tag, "some/where:"+tag)
	}
	c := newCutter(t, d.Host)
	h := newPulled(t, d, c)
	before := h.look()
	h.o.Ref = c.host + "/some/where:new"
	h.again()
	if _, err := h.run(false, -1); err != nil {
		t.Fatal(err)
	}
	after := h.look()
	after.whole(t, after)
	if after.things["image it"] == before.things["image it"] {
		t.Fatal("nothing was pulled")
	}
	var killed, cut, failed, resumed int
	for round := range rounds {
		h.again()
		for disturbed := range 1 + rng.IntN(3) {
			cuts := rng.IntN(8)
			limit := 1 + rng.Int64N(2*size/3)
			cutAfter := func() int64 {
				if cuts--; cuts < 0 {
					return 0
				}
				cut++
				return 1 + rng.Int64N(limit)
			}
			err := h.disturbed(c, rng, cutAfter, size)
			switch {
			case err == nil:
			case err.Error() == "signal: killed":
				killed++
			default:
				failed++
			}
			if bad := badBlobs(h.t, h.o.State); len(bad) > 0 {
				t.Fatalf("round %d, %d: blobs %q are wrong", round, disturbed, bad)
			}
			if rng.IntN(2) == 0 { // else the next one is the first that looks
				now := h.look()
				now.legal(t, before, after)
			}
		}
		there := h.cached()
		resumes := there > 0 && there < size
		c.disturb(nil, 0)
		if _, err := h.run(false, -1); err != nil {
			t.Fatalf("round %d: undisturbed: %v", round, err)
		}
		// What is not content: certificates, headers, a manifest more than once.
		const besides = 64 << 10
		if got := c.sent(); got > size-there+besides {
			t.Errorf("round %d: %d of %d bytes were there, and %d were sent", round, there, size, got)
		} else if resumes {
			resumed++
		}
		if h.look().whole(t, after); t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	t.Logf("killed %d, cut off %d, failed %d, gone on with %d", killed, cut, failed, resumed)
	if killed == 0 || cut == 0 || resumed == 0 {
		t.Error("chance has left something out")
	}
}

// newPulled is a state with an image, and the registry through a proxy.
func newPulled(t *testing.T, d *ocitest.Registry, c *cutter) *swept {
	t.Helper()
	dir := t.TempDir()
	h := &swept{t: t, back: filepath.Join(dir, "back"), o: sweptOrder{
		State: filepath.Join(dir, "s"), Stuff: filepath.Join(dir, "stuff"), Out: filepath.Join(dir, "s", "out"), At: -1,
		remote: remote{Ref: c.host + "/some/where:old", Certs: filepath.Join(d.Certs, "ca.crt"), Auth: filepath.Join(dir, "auth.json")},
	}}
	w := &world{t: t}
	w.write(h.o.Auth, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, c.host, base64.StdEncoding.EncodeToString([]byte("me:secret"))))
	w.write(filepath.Join(h.o.Stuff, "agent"), "agent")
	h.must(os.MkdirAll(h.o.Out, 0o700))
	s, end, err := h.o.open(slog.New(slog.DiscardHandler), nil)
	h.must(err)
	h.must(h.o.pull(s))
	_, _, err = s.PruneCache(t.Context(), CachePrune{All: true})
	h.must(err)
	h.must(end())
	tool(t, "cp", "-a", "--sparse=always", h.o.State, h.back)
	return h
}

// disturbed has a process pull through a proxy that cuts, and perhaps kills it: at one of
// the points it passes, or after so many bytes.
func (h *swept) disturbed(c *cutter, rng *rand.Rand, cut func() int64, size int64) error {
	h.t.Helper()
	alarm, at := int64(0), -1
	switch rng.IntN(3) {
	case 0:
		alarm = 1 + rng.Int64N(size)
	case 1:
		at = rng.IntN(24)
	}
	reached := c.disturb(cut, alarm)
	o := h.o
	o.Kill, o.At = true, at
	order, err := json.Marshal(o)
	h.must(err)
	self, err := os.Executable()
	h.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "BANGER_TEST_SWEPT="+string(order), "GORACE=atexit_sleep_ms=0")
	var says bytes.Buffer
	cmd.Stderr = &says
	h.must(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-reached: // never, if there is no alarm
		_ = cmd.Process.Kill()
		err = <-ended
	}
	if bytes.Contains(says.Bytes(), []byte("DATA RACE")) {
		h.t.Fatal(says.String())
	}
	return err
}

// badBlobs names the blobs that are not the content of their names.
func badBlobs(t *testing.T, state string) (bad []string) {
	t.Helper()
	dir := filepath.Join(state, "cache", "blobs", "sha256")
	for _, name := range listed(t, dir) {
		if sumOf(t, filepath.Join(dir, name)) != name {
			bad = append(bad, name)
		}
	}
	return bad
}

// cached is how many bytes there are of what is pulled.
func (h *swept) cached() (bytes int64) {
	h.t.Helper()
	for _, sub := range []string{"blobs/sha256", "parts"} {
		dir := filepath.Join(h.o.State, "cache", sub)
		for _, name := range listed(h.t, dir) {
			fi, err := os.Stat(filepath.Join(dir, name))
			h.must(err)
			bytes += fi.Size()
		}
	}
	return bytes
}
