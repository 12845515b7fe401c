package ext4

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// logTx is a transaction to be put into a log.
type logTx struct {
	write  []logWrite
	revoke []uint64
	no     bool // it has no end
}

type logWrite struct {
	block   uint64
	content []byte
}

// putLog writes transactions to a disk's log, from its block start on, as jbd2 does.
func putLog(t testing.TB, disk []byte, sums int, wide bool, start int, all []logTx) {
	t.Helper()
	_, at := inJournal(t, disk)
	next := start
	put := func(p []byte) {
		copy(disk[at[next]:][:blockSize], p)
		if next++; next == len(at) {
			next = 1
		}
	}
	var features uint32 = logRevokes
	if wide {
		features |= log64Bit
	}
	features |= map[int]uint32{2: logSums2, 3: logSums3}[sums]
	head := disk[at[0]:][:superLen]
	sequence := uint32(0xffffffff) // and then 0
	be.PutUint32(head[0x18:], sequence)
	be.PutUint32(head[0x1c:], uint32(start))
	be.PutUint32(head[0x28:], features)
	if sums > 0 {
		head[0x50] = 4
		be.PutUint32(head[0xfc:], sumWithout(^uint32(0), head, 0xfc))
	}
	seed := crc(^uint32(0), head[0x30:0x40])
	block := func(kind uint32) []byte {
		p := make([]byte, 0, blockSize)
		p = be.AppendUint32(p, journalMagic)
		p = be.AppendUint32(p, kind)
		return be.AppendUint32(p, sequence)
	}
	seal := func(p []byte, at int) []byte {
		if p = p[:blockSize]; sums > 0 {
			be.PutUint32(p[at:], sumWithout(seed, p, at))
		}
		return p
	}
	for _, tx := range all {
		if len(tx.revoke) > 0 {
			p := block(logRevoke)
			size := 4
			if wide {
				size = 8
			}
			p = be.AppendUint32(p, uint32(16+size*len(tx.revoke)))
			for _, b := range tx.revoke {
				if wide {
					p = be.AppendUint64(p, b)
				} else {
					p = be.AppendUint32(p, uint32(b))
				}
			}
			put(seal(p, blockSize-4))
		}
		p := block(logDescriptor)
		var contents [][]byte
		for i, w := range tx.write {
			content, flags := bytes.Clone(w.content), uint32(0)
			if be.Uint32(content) == journalMagic {
				flags = tagEscaped
				clear(content[:4])
			}
			if i > 0 {
				flags |= tagSameUUID
			}
			if i == len(tx.write)-1 {
				flags |= tagLast
			}
			sum := crc(crc(seed, be.AppendUint32(nil, sequence)), content)
			p = be.AppendUint32(p, uint32(w.block))
			if sums == 3 {
				p = be.AppendUint32(p, flags)
				p = be.AppendUint32(p, uint32(w.block>>32))
				p = be.AppendUint32(p, sum)
			} else {
				if sums == 0 {
					sum = 0
				}
				p = be.AppendUint16(p, uint16(sum))
				p = be.AppendUint16(p, uint16(flags))
				if wide {
					p = be.AppendUint32(p, uint32(w.block>>32))
				}
				if sums == 2 {
					p = append(p, 0, 0)
				}
			}
			if i == 0 {
				p = append(p, head[0x30:0x40]...)
			}
			contents = append(contents, content)
		}
		put(seal(p, blockSize-4))
		for _, c := range contents {
			put(c)
		}
		if tx.no {
			break
		}
		put(seal(block(logCommit), 0x10))
		sequence++
	}
	super := disk[superAt:][:superLen]
	le.PutUint32(super[0x60:], le.Uint32(super[0x60:])|hasRecover)
	sealSuper(super, 0)
}

// logDisk is a disk with a log of each kind of thing, and what its file x is by it.
func logDisk(t testing.TB, sums int, wide bool) (disk, want []byte) {
	t.Helper()
	m := begin(t, fixed(16<<20))
	blocks := [][]byte{pattern(blockSize, 1), pattern(blockSize, 2), pattern(blockSize, 3), pattern(blockSize, 4)}
	m.done(t, dir(Node{"x", file(m.data(t, bytes.Join(blocks, nil)))}))
	disk, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	first := uint64(bytes.Index(disk, blocks[0]) / blockSize)
	of := func(i uint64, b byte) logWrite { return logWrite{first + i, pattern(blockSize, b)} }
	escaped := be.AppendUint32(nil, journalMagic)
	escaped = append(escaped, pattern(blockSize-4, 9)...)
	_, at := inJournal(t, disk)
	putLog(t, disk, sums, wide, len(at)-3, []logTx{ // whose end is at the beginning
		{write: []logWrite{of(0, 10), {first + 1, escaped}, of(2, 12), of(3, 13)}},
		{write: []logWrite{of(2, 22), of(3, 23)}, revoke: []uint64{first, first + 3}},
		{write: []logWrite{of(3, 33)}},
		{write: []logWrite{of(2, 99)}, revoke: []uint64{first + 1}, no: true},
	})
	return disk, bytes.Join([][]byte{blocks[0], escaped, pattern(blockSize, 22), pattern(blockSize, 33)}, nil)
}

// Transactions of each format are read as e2fsck writes them.
func TestReplayFormats(t *testing.T) {
	for _, sums := range []int{0, 2, 3} {
		for _, wide := range []bool{false, true} {
			t.Run(fmt.Sprint(sums, wide), func(t *testing.T) {
				disk, want := logDisk(t, sums, wide)
				f, err := Open(bytes.NewReader(disk), int64(len(disk)))
				if err != nil {
					t.Fatal(err)
				}
				var have bytes.Buffer
				err = f.Walk(t.Context(), func(e *Entry) error {
					if e.Path != "x" {
						return nil
					}
					return e.WriteContent(t.Context(), &have)
				})
				if err != nil || !bytes.Equal(have.Bytes(), want) {
					t.Errorf("another content; %v", err)
				}
				// Any part of it, from anywhere.
				d := f.r.(*replayed)
				whole := make([]byte, len(disk))
				if _, err := d.ReadAt(whole, 0); err != nil || bytes.Equal(whole, disk) {
					t.Error(err)
				}
				for i := range 300 {
					from := bytes.Index(whole, want)&^4095 + i*61 - 30
					p := make([]byte, 1+i*37)
					if n, err := d.ReadAt(p, int64(from)); n != len(p) || err != nil || !bytes.Equal(p, whole[from:][:n]) {
						t.Fatalf("%d bytes at %d: %d, %v", len(p), from, n, err)
					}
				}
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, disk, 0o600); err != nil {
					t.Fatal(err)
				}
				fsckReplays(t, path)
				if got := tool(t, "debugfs", "-R", "cat x", path); !bytes.Contains([]byte(got), want[:1000]) || !bytes.Contains([]byte(got), want[2*blockSize:]) {
					t.Error("e2fsck has another content")
				}
			})
		}
	}
}

func FuzzReplay(f *testing.F) {
	var disks [][]byte
	var places []int
	for _, sums := range []int{0, 2, 3} {
		disk, _ := logDisk(f, sums, sums != 2)
		_, at := inJournal(f, disk)
		disks = append(disks, disk)
		places = nil
		for i := range 12 {
			places = append(places, int(at[i]), int(at[len(at)-1-i%3]))
		}
		f.Add([]byte{1, 2, 3, 0, 40, 1}, uint8(sums))
		f.Add([]byte{0, 2, 1, 0, 3, 200}, uint8(sums))
	}
	f.Fuzz(func(t *testing.T, r []byte, which uint8) {
		disk := bytes.Clone(disks[int(which)%len(disks)])
		damage(disk, places, r)
		if head := disk[places[0]:][:superLen]; which > 100 { // beyond the first checksum
			be.PutUint32(head[0xfc:], sumWithout(^uint32(0), head, 0xfc))
		}
		_ = bounded(t, disk)
	})
}
