// Package manifest is the form of a list of files: what was put into a workspace, as
// the host keeps it of its own tree and the agent of the guest's, and what one tells the
// other about. Names are front-coded and numbers are differences, so that a hundred
// thousand files take a few megabytes.
//
// A list is a sequence of sections, each ended by a mark. What follows the last mark was
// cut off while it was written, and does not count as an end; the entries before it do.
package manifest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"banger/internal/errdefs"
)

// Entry is one file, directory or symlink.
type Entry struct {
	Name  string // slash-separated, relative to the root of the tree; never empty
	Mode  uint32 // st_mode: type and permissions
	Size  int64
	Mtime int64 // ns
	Ctime int64 // ns
	Ino   uint64
	Hash  uint64 // xxHash64 of the content, or of a link's target; 0: not known
	Next  uint64 // the hash of what is about to take its place; 0: not known
	Flags Flags
}

// Flags say what is special about an entry.
type Flags uint8

// The flags.
const (
	Gone  Flags = 1 << iota // it is not there, or is to go
	Dirty                   // it is not, or perhaps not, what the base commit has
	Racy                    // it may change without a change of its times
	Added                   // it was not there before
)

// maxName is how long a name may be, in bytes: the longest path the kernel takes.
const maxName = 4096

// fieldsSet says in the first byte of an entry which numbers follow.
const (
	hasStat = 1 << iota
	hasHash
	hasNext
	isEntry
)

// Writer writes entries. It is for one goroutine.
type Writer struct {
	w    *bufio.Writer
	prev string
	at   int64
	buf  []byte
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: bufio.NewWriterSize(w, 64<<10)} }

// Add writes one entry. Names compress best in order, and need be in none.
func (w *Writer) Add(e *Entry) error {
	shared := 0
	for shared < len(e.Name) && shared < len(w.prev) && e.Name[shared] == w.prev[shared] {
		shared++
	}
	head := byte(isEntry)
	if e.Mode != 0 || e.Size != 0 || e.Mtime != 0 {
		head |= hasStat
	}
	if e.Hash != 0 {
		head |= hasHash
	}
	if e.Next != 0 {
		head |= hasNext
	}
	b := append(w.buf[:0], head, byte(e.Flags))
	b = binary.AppendUvarint(b, uint64(shared))
	b = binary.AppendUvarint(b, uint64(len(e.Name)-shared))
	b = append(b, e.Name[shared:]...)
	if head&hasStat != 0 {
		b = binary.AppendUvarint(b, uint64(e.Mode))
		b = binary.AppendVarint(b, e.Size)
		b = binary.AppendVarint(b, e.Mtime-w.at)
		b = binary.AppendVarint(b, e.Ctime-e.Mtime)
		b = binary.AppendUvarint(b, e.Ino)
		w.at = e.Mtime
	}
	if head&hasHash != 0 {
		b = binary.LittleEndian.AppendUint64(b, e.Hash)
	}
	if head&hasNext != 0 {
		b = binary.LittleEndian.AppendUint64(b, e.Next)
	}
	w.buf, w.prev = b, e.Name
	_, err := w.w.Write(b)
	return err
}

// End ends a section and hands on what is buffered.
func (w *Writer) End() error {
	if err := w.w.WriteByte(0); err != nil {
		return err
	}
	w.prev, w.at = "", 0
	return w.w.Flush()
}

// Flush hands on what is buffered, in the middle of a section.
func (w *Writer) Flush() error { return w.w.Flush() }

// Reader reads entries. It reads no further than the section it is in.
type Reader struct {
	r    *bufio.Reader
	name []byte
	at   int64
}

// NewReader reads from r.
func NewReader(r *bufio.Reader) *Reader { return &Reader{r: r} }

// Next reads the next entry of the section into e. Its name is valid until the following
// call, unless it is made a string by Name. The error is io.EOF at the end of the
// section, io.ErrUnexpectedEOF where the list ends without one, and of class
// invalid_argument for what is no list.
func (r *Reader) Next(e *Entry) ([]byte, error) {
	head, err := r.r.ReadByte()
	if err != nil {
		return nil, cutOff(err)
	}
	if head == 0 {
		r.name, r.at = r.name[:0], 0
		return nil, io.EOF
	}
	if head&isEntry == 0 || head >= isEntry<<1 {
		return nil, bad()
	}
	flags, err := r.r.ReadByte()
	if err != nil {
		return nil, cutOff(err)
	}
	shared, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, cutOff(err)
	}
	more, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, cutOff(err)
	}
	if shared > uint64(len(r.name)) || more > maxName || shared+more > maxName || shared+more == 0 {
		return nil, bad()
	}
	r.name = append(r.name[:shared], make([]byte, more)...)
	if _, err := io.ReadFull(r.r, r.name[shared:]); err != nil {
		return nil, cutOff(err)
	}
	*e = Entry{Flags: Flags(flags)}
	if head&hasStat != 0 {
		if err := r.stat(e); err != nil {
			return nil, err
		}
	}
	for _, to := range []struct {
		bit byte
		to  *uint64
	}{{hasHash, &e.Hash}, {hasNext, &e.Next}} {
		if head&to.bit == 0 {
			continue
		}
		var b [8]byte
		if _, err := io.ReadFull(r.r, b[:]); err != nil {
			return nil, cutOff(err)
		}
		*to.to = binary.LittleEndian.Uint64(b[:])
	}
	return r.name, nil
}

func (r *Reader) stat(e *Entry) error {
	mode, err := binary.ReadUvarint(r.r)
	if err != nil {
		return cutOff(err)
	}
	var numbers [3]int64
	for i := range numbers {
		if numbers[i], err = binary.ReadVarint(r.r); err != nil {
			return cutOff(err)
		}
	}
	if e.Ino, err = binary.ReadUvarint(r.r); err != nil {
		return cutOff(err)
	}
	r.at += numbers[1]
	e.Mode, e.Size, e.Mtime, e.Ctime = uint32(mode), numbers[0], r.at, r.at+numbers[2]
	return nil
}

// All reads a section, at most limit entries of it, each with its name.
func All(r *bufio.Reader, limit int, each func(Entry) error) error {
	in := NewReader(r)
	for n := 0; ; n++ {
		var e Entry
		name, err := in.Next(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n >= limit {
			return errdefs.Exhausted("a list of more than %d files", limit)
		}
		e.Name = string(name)
		if err := each(e); err != nil {
			return err
		}
	}
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func bad() error { return errdefs.Invalid("what should be a list of files is none") }
