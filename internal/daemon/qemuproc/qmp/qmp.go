// Package qmp is a small client of QEMU's machine protocol: JSON lines over a
// stream socket, one command at a time on the wire, events in between.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message from QEMU, in bytes. The longest in use, the
// list of CPU models with their missing features, has some 300 kB.
const maxMessage = 4 << 20

// ErrClosed says that the connection ended, by either side.
var ErrClosed = errors.New("qmp connection is closed")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // "GenericError", "CommandNotFound", …
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("qmp %s: %s", e.Command, e.Desc) }

// Event is something QEMU tells unasked, e.g. SHUTDOWN or GUEST_PANICKED.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Version is the version of QEMU, from its greeting.
type Version struct {
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
	Micro   int    `json:"micro"`
	Package string `json:"-"` // the distributor's, e.g. "Debian 1:7.2+dfsg-7"
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast compares major and minor.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Client is one negotiated connection. Its methods may be called concurrently.
type Client struct {
	conn    *net.UnixConn
	version Version
	done    chan struct{} // closed when the reader has ended

	turn chan struct{} // holds one token: who has it may have a command on the wire

	mu      sync.Mutex // guards the rest
	nextID  uint64
	pending *call // the command on the wire
	err     error // why the reader ended
}

type call struct {
	id    uint64
	reply chan message // buffered; the reader never waits for the caller
}

// message is any line from QEMU.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU    Version `json:"qemu"`
			Package string  `json:"package"`
		} `json:"version"`
	} `json:"QMP"`
	Event
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// New reads the greeting of conn and negotiates; ctx bounds that. It owns conn
// from then on, also when it errors. onEvent is called for every event, in
// order, on the reader's goroutine: it must not block; nil ignores events.
func New(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxMessage)
	if err := c.greet(ctx, lines); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("read qmp greeting: %w", err)
	}
	go c.read(lines, onEvent)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context, lines *bufio.Scanner) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	if !lines.Scan() {
		stop()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case lines.Err() != nil:
			return lines.Err()
		}
		return ErrClosed
	}
	if !stop() {
		return context.Cause(ctx)
	}
	var m message
	if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
		return err
	}
	if m.Greeting == nil {
		return errors.New("the peer does not speak qmp")
	}
	c.version = m.Greeting.Version.QEMU
	c.version.Package = strings.TrimSpace(m.Greeting.Version.Package)
	return nil
}

func (c *Client) read(lines *bufio.Scanner, onEvent func(Event)) {
	defer close(c.done)
	err := ErrClosed
loop:
	for lines.Scan() {
		var m message
		if e := json.Unmarshal(lines.Bytes(), &m); e != nil {
			err = fmt.Errorf("read qmp message: %w", e)
			break loop
		}
		switch {
		case m.Event.Name != "":
			if onEvent != nil {
				onEvent(m.Event)
			}
		case m.ID != nil:
			c.answer(*m.ID, m)
		case m.Error != nil: // of a line QEMU could not even parse
			err = fmt.Errorf("qmp: %s", m.Error.Desc)
			break loop
		}
	}
	if e := lines.Err(); e != nil && !errors.Is(e, net.ErrClosed) {
		err = fmt.Errorf("read qmp: %w", e)
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
}

// answer hands m to the call with that id; the answer to a call that was given up
// is dropped.
func (c *Client) answer(id uint64, m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil && c.pending.id == id {
		c.pending.reply <- m
		c.pending = nil
	}
}

// Version is QEMU's version.
func (c *Client) Version() Version { return c.version }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for the reader. QEMU runs on.
func (c *Client) Close() error {
	_ = c.conn.Close()
	<-c.done
	return nil
}

// Execute runs a command with args (nil: none; otherwise encoded as JSON) and
// decodes what it returns into result (nil: ignored). The errors are *Error when
// QEMU refuses, ErrClosed (wrapped) when the connection is gone, or ctx's.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.ExecuteWithFile(ctx, command, args, result, nil)
}

// ExecuteWithFile is Execute for commands that take a descriptor (getfd, add-fd):
// file travels with the command. The caller keeps and closes it.
func (c *Client) ExecuteWithFile(ctx context.Context, command string, args, result any, file *os.File) error {
	select {
	case <-c.turn:
	case <-c.done:
		return c.closed(command)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
	defer func() { c.turn <- struct{}{} }()

	c.mu.Lock()
	c.nextID++
	p := &call{id: c.nextID, reply: make(chan message, 1)}
	c.pending = p
	c.mu.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, p.id})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if err := c.send(ctx, append(line, '\n'), file); err != nil {
		// Half a line may be out: nothing sensible can follow it.
		_ = c.conn.Close()
		if ctx.Err() != nil {
			return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
		}
		return fmt.Errorf("qmp %s: %w: %w", command, ErrClosed, err)
	}
	select {
	case m := <-p.reply:
		if m.Error != nil {
			m.Error.Command = command
			return m.Error
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("qmp %s: decode answer: %w", command, err)
		}
		return nil
	case <-c.done:
		return c.closed(command)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
}

// send writes one line. A VMM that does not read (it is stopped) must not hold
// the caller longer than ctx says.
func (c *Client) send(ctx context.Context, line []byte, file *os.File) error {
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(cut)
	})
	defer func() {
		if !stop() {
			// It came as the line was out: the next one must not find its deadline.
			<-cut
			_ = c.conn.SetWriteDeadline(time.Time{})
		}
	}()
	if file == nil {
		_, err := c.conn.Write(line)
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var sendErr error
	// Control keeps the descriptor open, and unlike Fd leaves its mode alone.
	if err := raw.Control(func(fd uintptr) {
		n, _, sendErr = c.conn.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	if sendErr == nil && n < len(line) {
		_, sendErr = c.conn.Write(line[n:])
	}
	return sendErr
}

func (c *Client) closed(command string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || errors.Is(c.err, ErrClosed) {
		return fmt.Errorf("qmp %s: %w", command, ErrClosed)
	}
	return fmt.Errorf("qmp %s: %w: %w", command, ErrClosed, c.err)
}
