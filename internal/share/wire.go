package share

import (
	"encoding/binary"
	"syscall"

	"banger/internal/guest"
)

// The parts of the protocol that this package writes or looks at itself; numbers are in
// the byte order of the machine, which is that of the guest:
// https://www.kernel.org/doc/html/latest/filesystems/fuse.html, linux/fuse.h.
const (
	requestHeader = 40 // bytes of a request's header
	replyHeader   = 16

	opForget      = 2
	opRead        = 15
	opFsync       = 20
	opFsyncDir    = 30
	opInterrupt   = 36
	opBatchForget = 42

	notifyInode  = 2
	notifyEntry  = 3
	notifyDelete = 6
)

// silent reports whether a request is one that is never answered.
func silent(request []byte) bool {
	switch binary.NativeEndian.Uint32(request[4:]) {
	case opForget, opBatchForget, opInterrupt:
		return true
	}
	return false
}

// slow reports whether a request may take long and answers nothing that the guest keeps
// without hearing that it is old.
func slow(request []byte) bool {
	switch binary.NativeEndian.Uint32(request[4:]) {
	case opRead, opFsync, opFsyncDir:
		return true
	}
	return false
}

// refuse writes the answer to a request that nothing else was answered to.
func refuse(out, request []byte, e syscall.Errno) int {
	header(out, replyHeader, -int32(e))
	copy(out[8:], request[8:16]) // its number
	return replyHeader
}

func header(out []byte, size int, code int32) {
	binary.NativeEndian.PutUint32(out, uint32(size))
	binary.NativeEndian.PutUint32(out[4:], uint32(code))
	binary.NativeEndian.PutUint64(out[8:], 0)
}

// tell sends a frame that begins after a reserved header.
func (s *Share) tell(channel byte, frame []byte) { _ = s.send(channel, frame) }

// message is a frame with room for a notice of so many bytes, which it returns too.
func message(size int, code int32) (frame, body []byte) {
	frame = make([]byte, guest.FrameHeader+replyHeader+size)
	header(frame[guest.FrameHeader:], replyHeader+size, code)
	return frame, frame[guest.FrameHeader+replyHeader:]
}

// inodeChanged says that attributes and content of a node are others.
func inodeChanged(id uint64) []byte {
	frame, body := message(24, notifyInode)
	binary.NativeEndian.PutUint64(body, id)
	return frame // from the offset 0, all there is
}

// entryChanged says that a name stands for something else.
func entryChanged(parent uint64, name string) []byte {
	frame, body := message(16+len(name)+1, notifyEntry)
	binary.NativeEndian.PutUint64(body, parent)
	binary.NativeEndian.PutUint32(body[8:], uint32(len(name)))
	copy(body[16:], name)
	return frame
}

// entryDeleted says that a name is gone, which programs of the guest then hear.
func entryDeleted(parent, child uint64, name string) []byte {
	frame, body := message(24+len(name)+1, notifyDelete)
	binary.NativeEndian.PutUint64(body, parent)
	binary.NativeEndian.PutUint64(body[8:], child)
	binary.NativeEndian.PutUint32(body[16:], uint32(len(name)))
	copy(body[24:], name)
	return frame
}
