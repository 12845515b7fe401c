package ext4

import (
	"iter"
	"slices"
	"sync"
)

// space says which blocks are free. Blocks are handed out in areas: runs in a row that
// one lane fills, so that those who write at the same time do not get into each other's
// files.
type space struct {
	l *layout

	mu     sync.Mutex
	groups []group
	free   uint64 // blocks
	next   uint64 // the block to look from
	areas  []*area
}

// group is the state of a group.
type group struct {
	used  *bitmap // nil: no more than is fixed
	freed *bitmap // of used, what was given back since the last reclaim; nil: nothing
	free  uint32
}

// area is a run of blocks that a lane fills; it is empty at first.
type area struct{ lo, hi uint64 }

func newSpace(l *layout) *space {
	s := &space{l: l, groups: make([]group, l.groups)}
	for g := range l.groups {
		n := l.groupLen(g) - l.fixed(g)
		s.groups[g].free = n
		s.free += uint64(n)
	}
	return s
}

// bitmap returns the bitmap of a group's blocks.
func (s *space) bitmap(g uint32) *bitmap {
	if s.groups[g].used == nil {
		s.groups[g].used = s.l.empty(g)
	}
	return s.groups[g].used
}

// take makes a, which must have been used up, an area of up to want blocks. It is empty
// if there are none. A large part of what is left is not given to one lane.
func (s *space) take(a *area, want uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*a = area{}
	if s.free == 0 {
		return
	}
	want = min(want, max(s.free/8, 1))
	for range s.l.groups + 1 { // the first one twice: from next on, and up to there
		g := uint32(s.next / groupBlocks)
		if g >= s.l.groups {
			g, s.next = 0, 0
		}
		if s.groups[g].free > 0 {
			b := s.bitmap(g)
			at, n := b.run(uint32(s.next%groupBlocks), false)
			if n = uint32(min(uint64(n), want)); n > 0 {
				b.set(at, at+n)
				s.count(g, -int(n))
				a.lo = s.l.start(g) + uint64(at)
				a.hi = a.lo + uint64(n)
				s.next = a.hi
				return
			}
		}
		s.next = s.l.start(g + 1)
	}
}

func (s *space) count(g uint32, n int) {
	s.groups[g].free = uint32(int(s.groups[g].free) + n)
	s.free = uint64(int64(s.free) + int64(n))
}

// untake gives the end of an area back, from at on, and makes it empty.
func (s *space) untake(a *area, at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.hi > at {
		n := a.hi - at
		g := uint32(at / groupBlocks)
		from := uint32(at % groupBlocks)
		s.bitmap(g).clear(from, from+uint32(n))
		s.count(g, int(n))
	}
	*a = area{}
}

// discard marks blocks as not needed. They are free after the next reclaim, because
// what is to be written to them may still be in a lane's buffer.
func (s *space) discard(start, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g, part := range parts(start, n) {
		if g < s.l.groups && s.groups[g].used != nil && s.groups[g].used.all(part.from, part.to) {
			s.keepFreed(g, part.from, part.to)
		}
	}
}

func (s *space) keepFreed(g, from, to uint32) {
	if s.groups[g].freed == nil {
		s.groups[g].freed = &bitmap{}
	}
	s.groups[g].freed.set(from, to)
}

// reclaim frees what was discarded and is in no lane's area, after punch was called for
// it. No lock is held meanwhile.
func (s *space) reclaim(punch func(run)) {
	var runs []run
	s.mu.Lock()
	for g := range s.l.groups {
		freed := s.groups[g].freed
		if freed == nil {
			continue
		}
		s.groups[g].freed = nil
		for at := uint32(0); ; {
			from, n := freed.run(at, true)
			if n == 0 {
				break
			}
			at = from + n
			r := run{s.l.start(g) + uint64(from), uint64(n)}
			if slices.ContainsFunc(s.areas, func(a *area) bool { return a.lo < r.start+r.n && r.start < a.hi }) {
				s.keepFreed(g, from, from+n)
				continue
			}
			runs = append(runs, r)
		}
	}
	s.mu.Unlock()
	for _, r := range runs {
		punch(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range runs {
		g, from := uint32(r.start/groupBlocks), uint32(r.start%groupBlocks)
		s.groups[g].used.clear(from, from+uint32(r.n))
		s.count(g, int(r.n))
	}
}

// settle makes the blocks in live, and what is fixed, the only ones that are taken, and
// calls punch for the others. live has a nil for a group with none. Nobody else may use
// the space.
func (s *space) settle(live []*bitmap, punch func(run)) {
	s.free = 0
	for g := range s.l.groups {
		gr := &s.groups[g]
		gr.freed = nil
		if gr.used != nil {
			rest := *gr.used
			keep := s.l.empty(g)
			for i := range rest {
				if live[g] != nil {
					keep[i] |= live[g][i]
				}
				rest[i] &^= keep[i]
			}
			for at := uint32(0); ; {
				from, n := rest.run(at, true)
				if n == 0 {
					break
				}
				punch(run{s.l.start(g) + uint64(from), uint64(n)})
				at = from + n
			}
			gr.used = keep
			gr.free = groupBlocks - keep.count()
		}
		s.free += uint64(gr.free)
	}
}

// run is a number of blocks in a row.
type run struct{ start, n uint64 }

// span is a part of a group.
type span struct{ from, to uint32 }

// parts splits a run by groups.
func parts(start, n uint64) iter.Seq2[uint32, span] {
	return func(yield func(uint32, span) bool) {
		for n > 0 {
			from := uint32(start % groupBlocks)
			k := min(n, uint64(groupBlocks-from))
			if !yield(uint32(start/groupBlocks), span{from, from + uint32(k)}) {
				return
			}
			start, n = start+k, n-k
		}
	}
}
