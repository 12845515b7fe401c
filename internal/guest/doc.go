// Package guest is the protocol between the daemon (or CLI) on the host and the
// agent in the guest, and the host side of it.
//
// # Channel
//
// A VM has one byte channel to its agent (a virtio-serial port, or a connection over vsock).
// Old bytes may sit in it, so every new connection starts with a handshake: the
// host sends HelloMagic and a fresh nonce; the agent discards input until it sees
// that, and answers AckMagic, the same nonce and a Ready record; the host
// discards input until it sees the ack with its own nonce. An agent that lost
// step sends NakMagic, on which the host sends a new hello. After the ack both
// sides speak yamux; the host opens streams, the agent accepts them.
//
// # Streams
//
// A stream carries frames: one byte channel, four bytes big-endian length,
// payload of at most MaxFrame bytes. The first frame is a control frame that
// holds a Request as JSON; what follows depends on its kind. The host end of a
// stream may be the CLI itself: the daemon checks the first frame and then copies
// bytes without looking at them.
//
// Input of a command is subject to credit: the host has at most InitialWindow
// bytes of stdin under way that the agent has not granted back by window frames.
// So signals and resizes, which share the stream, never wait behind input that
// the command does not read. The tar stream of copy-in needs no such thing and
// is held back by the multiplexer's window alone.
//
// A stream ends with one frame (exit, error or done) and is then closed by both
// sides. A host that closes earlier hangs up: the agent sends SIGHUP to what the
// stream had started.
package guest
