package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": " (Debian) "}, "capabilities": ["oob"]}}` + "\n"

// pair returns both ends of a unix socket.
func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

// serve plays QEMU: it greets, then answers each line with what reply returns.
func serve(t *testing.T, reply func(n int, line string) string, onEvent func(Event)) *Client {
	t.Helper()
	ours, theirs := pair(t)
	go func() {
		_, _ = io.WriteString(theirs, greeting)
		lines := bufio.NewScanner(theirs)
		for n := 0; lines.Scan(); n++ {
			out := `{"return": {}, "id": 1}`
			if n > 0 {
				out = reply(n, lines.Text())
			}
			if out == "hang up" {
				_ = theirs.Close()
				return
			}
			if out != "" {
				_, _ = io.WriteString(theirs, out+"\n")
			}
		}
	}()
	c, err := New(t.Context(), ours, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestExecute(t *testing.T) {
	var mu sync.Mutex
	var events []string
	c := serve(t, func(n int, line string) string {
		if strings.Contains(line, "bad") {
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, n+1)
		}
		return fmt.Sprintf(`{"event": "STOP", "timestamp": {"seconds": 1}, "data": {"n": %d}}`, n) + "\n" +
			fmt.Sprintf(`{"return": {"n": %d}, "id": %d}`, n, n+1)
	}, func(e Event) { mu.Lock(); events = append(events, e.Name+string(e.Data)); mu.Unlock() })
	if v := c.Version(); !v.AtLeast(7, 2) || v.AtLeast(7, 3) || v.AtLeast(8, 0) || v.String() != "7.2.22" || v.Package != "(Debian)" {
		t.Errorf("version %+v", v)
	}
	for n := 1; n < 4; n++ {
		var out struct{ N int }
		if err := c.Execute(t.Context(), "stop", map[string]int{"a": 1}, &out); err != nil || out.N != n {
			t.Fatalf("got %+v, %v; want %d", out, err, n)
		}
	}
	var refused *Error
	if err := c.Execute(t.Context(), "bad", nil, nil); !errors.As(err, &refused) || refused.Desc != "no" || refused.Command != "bad" {
		t.Fatalf("got %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(events) != `[STOP{"n": 1} STOP{"n": 2} STOP{"n": 3}]` {
		t.Errorf("events %v", events)
	}
}

// A call that was given up does not take its late answer into the next one.
func TestCancelledCall(t *testing.T) {
	late := make(chan struct{})
	c := serve(t, func(n int, _ string) string {
		switch n {
		case 1:
			close(late)
			return ""
		default:
			return `{"return": {"n": 1}, "id": 2}` + "\n" + `{"return": {"n": 2}, "id": 3}`
		}
	}, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("gave up")
	go func() { <-late; cancel(why) }()
	if err := c.Execute(ctx, "first", nil, nil); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	var out struct{ N int }
	if err := c.Execute(t.Context(), "second", nil, &out); err != nil || out.N != 2 {
		t.Fatalf("got %+v, %v", out, err)
	}
}

func TestConnectionEnds(t *testing.T) {
	for name, reply := range map[string]string{
		"hang up":   "hang up",
		"not json":  "what?",
		"too long":  strings.Repeat(" ", maxMessage+1),
		"parse err": `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, func(int, string) string { return reply }, nil)
			if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("got %v", err)
			}
			<-c.Done()
			if err := c.Execute(t.Context(), "y", nil, nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("after the end: %v", err)
			}
		})
	}
}

func TestNoGreeting(t *testing.T) {
	for _, said := range []string{"", "hello\n", "{}\n"} {
		ours, theirs := pair(t)
		_, _ = io.WriteString(theirs, said)
		_ = theirs.Close()
		if _, err := New(t.Context(), ours, nil); err == nil {
			t.Errorf("%q passed for a greeting", said)
		}
	}
	// Somebody who listens but never speaks: a VMM that is stopped.
	ours, _ := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, ours, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestExecuteWithFile(t *testing.T) {
	ours, theirs := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make(chan error, 1)
	go func() {
		_, _ = io.WriteString(theirs, greeting)
		buf, oob := make([]byte, 4096), make([]byte, 128)
		_, _ = theirs.Read(buf)
		_, _ = io.WriteString(theirs, `{"return": {}, "id": 1}`+"\n")
		_, n, _, _, err := theirs.ReadMsgUnix(buf, oob)
		if err == nil {
			err = writeThrough(oob[:n])
		}
		got <- err
		_, _ = io.WriteString(theirs, `{"return": {}, "id": 2}`+"\n")
	}()
	c, err := New(t.Context(), ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ExecuteWithFile(t.Context(), "getfd", map[string]string{"fdname": "x"}, nil, w); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "through" {
		t.Fatalf("read %q, %v", b, err)
	}
}

func writeThrough(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("%d control messages, %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("%d descriptors, %w", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "passed")
	defer f.Close()
	_, err = f.WriteString("through")
	return err
}

// Callers take turns on the wire, and one that waits for its turn can give up.
func TestTurns(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	c := serve(t, func(n int, _ string) string {
		if n == 1 {
			close(asked)
			<-release
		}
		return fmt.Sprintf(`{"return": {}, "id": %d}`, n+1)
	}, nil)
	first := make(chan error, 1)
	go func() { first <- c.Execute(context.Background(), "slow", nil, nil) }()
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Execute(ctx, "impatient", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if err := c.Execute(t.Context(), "next", nil, nil); err != nil {
		t.Fatal(err)
	}
}
