package usernet

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// The VMM's side of the connection breaks, and the guest hardly notices.
func TestReconnect(t *testing.T) {
	v, _ := attached(t, HelperConfig{Policy: allowAll})
	echo := echoServer(t)
	c := v.mustDialTCP(echo)
	for range 3 {
		if err := roundTrip(c, "hello"); err != nil {
			t.Fatal(err)
		}
		v.unplug()
		v.arrived()
	}
	if err := roundTrip(c, "still here"); err != nil {
		t.Fatal(err)
	}
}

func TestImpossibleFrames(t *testing.T) {
	echo := echoServer(t)
	v, _ := attached(t, HelperConfig{Policy: allowAll})
	for _, size := range []string{"\xff\xff\xff\xff", "\x7f\xff\xff\xff", "\x00\x01\x00\x12"} {
		v.mu.Lock()
		_, _ = io.WriteString(v.conn, size+"garbage")
		v.mu.Unlock()
		v.arrived() // it was cut off, and may try again
	}
	// These are only ignored.
	for _, frame := range [][]byte{
		{}, {1}, make([]byte, 13), make([]byte, 14), make([]byte, maxFrame),
		ipFrame(nil), ipFrame([]byte{0x45}), ipFrame(bytes.Repeat([]byte{0xff}, 2000)),
		spoofed(outside, guestIP), spoofed(gatewayIP, guestIP), spoofed(guestIP, netip.MustParseAddr("224.0.0.1")),
	} {
		v.send(frame)
	}
	if err := roundTrip(v.mustDialTCP(echo), "hello"); err != nil {
		t.Fatal(err)
	}
	if len(v.arrivals) != 0 {
		t.Fatal("the connection was cut off for a frame that does no harm")
	}
}

// A frame of the largest size beyond the guest's MTU is let in but leads
// nowhere; nobody answers a spoofed one.
func ipFrame(packet []byte) []byte {
	return append([]byte("\x02\x62\x67\x72\x00\x01\x02\x62\x67\x72\x00\x02\x08\x00"), packet...)
}

// spoofed is an echo request between two addresses.
func spoofed(src, dst netip.Addr) []byte {
	s, d := src.As4(), dst.As4()
	p := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3],
		8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	sum := 0
	for i := 0; i < 20; i += 2 {
		sum += int(p[i])<<8 | int(p[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	p[10], p[11] = byte(^sum>>8), byte(^sum)
	return ipFrame(p)
}

func TestOnlyTheGuestIsAnswered(t *testing.T) {
	c, _ := startHelper(t, HelperConfig{Policy: allowAll})
	v := &vmm{t: t, socket: filepath.Join(shortDir(t), "net.sock"),
		arrivals: make(chan struct{}, 1), frames: make(chan []byte, 10)}
	v.boot()
	if err := c.Attach(testContext(t), "vm1", v.socket); err != nil {
		t.Fatal(err)
	}
	v.arrived()
	// Answers come in the order of the requests: the first answer must be to the
	// one honest request, sent last.
	v.send(spoofed(netip.MustParseAddr("192.168.127.3"), gatewayIP))
	v.send(spoofed(outside, gatewayIP))
	v.send(spoofed(gatewayIP, gatewayIP))
	v.send(spoofed(guestIP, netip.MustParseAddr("192.168.127.9"))) // not ours to answer
	v.send(spoofed(guestIP, gatewayIP))
	select {
	case f := <-v.frames:
		if len(f) < 34 || !bytes.Equal(f[26:34], append(gatewayIP.AsSlice(), guestIP.AsSlice()...)) || f[34] != 0 {
			t.Fatalf("frame %x is not the echo reply of the gateway", f)
		}
	case <-time.After(deadline):
		t.Fatal("the gateway does not answer")
	}
	if len(v.frames) != 0 {
		t.Fatalf("another frame: %x", <-v.frames)
	}
}

// State directories may be longer than a socket address.
func TestLongSocketPath(t *testing.T) {
	deep := filepath.Join(shortDir(t), strings.Repeat("d", 120))
	if err := os.Mkdir(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(deep)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	echo := echoServer(t)
	v := bootVMM(t, fmt.Sprintf("/proc/self/fd/%d/net.sock", dir.Fd()))
	c, _ := startHelper(t, HelperConfig{Policy: allowAll})
	if err := c.Attach(testContext(t), "vm1", filepath.Join(deep, "net.sock")); err != nil {
		t.Fatal(err)
	}
	v.arrived()
	if err := roundTrip(v.mustDialTCP(echo), "hello"); err != nil {
		t.Fatal(err)
	}
}

// Detaching leaves no goroutine and no descriptor, whatever was under way.
func TestNoLeaks(t *testing.T) {
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	srv := listenTCP(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("x"))
		<-hold
	})
	t.Cleanup(release) // a test that failed must not hang on its server
	udpEcho := listenUDP(t)
	c, _ := startHelper(t, HelperConfig{Policy: allowAll, Grace: time.Minute})
	ctx := testContext(t)
	cycle := func() {
		v := bootVMM(t, filepath.Join(shortDir(t), "net.sock"))
		if err := c.Attach(ctx, "vm1", v.socket); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			conn := v.mustDialTCP(srv)
			_, _ = io.ReadFull(conn, make([]byte, 1))
		}
		for range 5 {
			if err := v.roundTripUDP(udpEcho, deadline); err != nil {
				t.Fatal(err)
			}
		}
		// One connection whose handshake the guest never completes.
		v.send(synFrame(srv))
		if err := c.Detach(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
		v.kill()
	}
	cycle()
	// The next request keeps the client's connection from coming and going.
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 5 {
		cycle()
	}
	release() // the server's own
	for end := time.Now().Add(deadline); ; {
		g, f := runtime.NumGoroutine(), openFiles(t)
		if g <= goroutines && f <= files {
			break
		}
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("goroutines %d, then %d; files %d, then %d\n%s", goroutines, g, files, f, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// synFrame opens a connection by hand.
func synFrame(to netip.AddrPort) []byte {
	f := spoofed(guestIP, to.Addr())
	ip := f[14:34]
	ip[3], ip[9] = 40, 6
	ip[10], ip[11] = 0, 0
	sum := 0
	for i := 0; i < 20; i += 2 {
		sum += int(ip[i])<<8 | int(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	tcp := make([]byte, 20) // the checksum is not looked at
	tcp[0], tcp[1] = 0x30, 0x39
	tcp[2], tcp[3] = byte(to.Port()>>8), byte(to.Port())
	tcp[12], tcp[13], tcp[14] = 0x50, 2, 0xff
	return append(f[:34:34], tcp...)
}
