package relay

import (
	"bufio"
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/guest"
)

// sockets are both ends of a connection.
func sockets(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// pair is a client's connection, its end and ours.
func pair(t *testing.T) (theirs, ours net.Conn) {
	t.Helper()
	theirs, ours = sockets(t)
	return theirs, &buffered{Conn: ours, r: bufio.NewReader(ours)}
}

// stream is a stream to an agent, our end and the agent's.
func stream(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	host, port := sockets(t)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		channel := guest.NewChannel(port)
		for { // a handshake may take several
			incoming, err := channel.Accept(func() guest.Ready {
				return guest.Ready{Protocol: guest.ProtocolVersion, RootReady: true}
			})
			if err != nil {
				return
			}
			if conn, err := incoming.Accept(); err == nil {
				accepted <- conn
				<-incoming.Done()
			}
			incoming.Close()
		}
	}()
	session, err := guest.Connect(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	if ours, err = session.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if theirs = <-accepted; theirs == nil {
		t.Fatal("no stream came")
	}
	return ours, theirs
}

// splice runs Splice and returns what ends with it.
func splice(client, agent net.Conn) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		Splice(client, agent)
	}()
	return over
}

func wait(t *testing.T, over <-chan struct{}) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestSpliceCopiesBothWays(t *testing.T) {
	theirs, client := pair(t)
	agent, guestSide := stream(t)
	over := splice(client, agent)
	go func() {
		_, _ = io.CopyN(guestSide, guestSide, 6) // x, and what the client says
		_ = guestSide.Close()
	}()
	if _, err := theirs.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(theirs); err != nil || string(got) != "xhello" {
		t.Errorf("%q, %v", got, err)
	}
	wait(t, over)
}

// A client that goes away while the agent takes nothing is noticed, although what
// it sent last waits to be read.
func TestSpliceNoticesAClientBehindAStuckAgent(t *testing.T) {
	theirs, client := pair(t)
	agent, guestSide := net.Pipe()
	defer guestSide.Close()
	over := splice(client, agent)
	if _, err := theirs.Write(make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	if _, err := guestSide.Read(make([]byte, 1)); err != nil { // it is being written
		t.Fatal(err)
	}
	_ = theirs.Close()
	wait(t, over)
}

// A client that waits is not given up on.
func TestSpliceWaitsForASlowAgent(t *testing.T) {
	theirs, client := pair(t)
	agent, guestSide := net.Pipe()
	tries := make(chan int, 100)
	over := splice(client, &watched{agent, tries})
	sent := make([]byte, 60<<10)
	if _, err := theirs.Write(sent); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second comes when the first was in vain
		<-tries
	}
	if _, err := io.ReadFull(guestSide, make([]byte, len(sent))); err != nil {
		t.Error(err)
	}
	_ = guestSide.Close()
	wait(t, over)
}

// watched tells of every attempt to write.
type watched struct {
	net.Conn
	tries chan<- int
}

func (w *watched) Write(p []byte) (int, error) {
	w.tries <- len(p)
	return w.Conn.Write(p)
}

// An agent that ends its stream without having read all of its input ends it.
func TestSpliceEndsWithTheAgent(t *testing.T) {
	theirs, client := pair(t)
	agent, guestSide := stream(t)
	tries := make(chan int, 1000)
	over := splice(client, &watched{agent, tries})
	go func() { _, _ = theirs.Write(make([]byte, 4<<20)) }()
	for sent := 0; sent < 2<<20; { // the window of a stream that nobody reads from
		sent += <-tries
	}
	_ = guestSide.Close()
	wait(t, over)
}
