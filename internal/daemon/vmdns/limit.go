package vmdns

import (
	"net/netip"
	"sync"
	"time"
)

const (
	maxQuestions = 1000 // a second, of one guest
	maxSources   = 4096 // addresses that are counted at once
	maxConns     = 256  // open at once
	maxConnsEach = 16   // of these, of one guest
	maxAsked     = 1024 // questions that wait for others' answers at once
	maxAskedEach = 32   // of these, of one guest
)

// limiter keeps a guest from taking the daemon's time, connections and patience from
// the others. A guest is one address of it, whichever it asks from. Whoever asks by the
// loopback is on this host and has easier ways to do that: only the number of all
// connections, and of questions for others, holds for it.
type limiter struct {
	mu        sync.Mutex // a leaf (rank 40); guards the counts
	second    int64      // that questions are counted in
	questions map[netip.Addr]int
	conns     share
	asked     share
}

// share is how much of something there is, and whose.
type share struct {
	each map[netip.Addr]int
	all  int
}

// take is one more for an address, unless that has its share or all are taken.
func (s *share) take(from netip.Addr, each, all int) bool {
	if s.each == nil {
		s.each = make(map[netip.Addr]int)
	}
	if s.all >= all || s.each[from] >= each && !from.IsLoopback() {
		return false
	}
	s.all++
	s.each[from]++
	return true
}

func (s *share) give(from netip.Addr) {
	s.all--
	if s.each[from]--; s.each[from] == 0 {
		delete(s.each, from)
	}
}

// question reports whether one more question from an address is answered.
func (l *limiter) question(from netip.Addr, now time.Time) bool {
	if from.IsLoopback() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.questions == nil {
		l.questions = make(map[netip.Addr]int)
	}
	if s := now.Unix(); s != l.second {
		l.second = s
		clear(l.questions)
	}
	n, known := l.questions[from]
	if n >= maxQuestions || !known && len(l.questions) >= maxSources {
		return false
	}
	l.questions[from] = n + 1
	return true
}

// connect reports whether one more connection from an address is served; then
// disconnect must follow.
func (l *limiter) connect(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conns.take(from, maxConnsEach, maxConns)
}

func (l *limiter) disconnect(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns.give(from)
}

// ask reports whether one more question from an address may wait for the answer of
// others; then answered must follow.
func (l *limiter) ask(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked.take(from, maxAskedEach, maxAsked)
}

func (l *limiter) answered(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked.give(from)
}
