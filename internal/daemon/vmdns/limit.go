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
)

// limiter keeps a guest from taking the daemon's time and connections from the
// others. Whoever asks by the loopback is on this host and has easier ways to do
// that: only the number of all connections holds for it.
type limiter struct {
	mu        sync.Mutex // a leaf (rank 40); guards the counts
	second    int64      // that questions are counted in
	questions map[netip.Addr]int
	conns     map[netip.Addr]int
	open      int
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
	if l.conns == nil {
		l.conns = make(map[netip.Addr]int)
	}
	if l.open >= maxConns || l.conns[from] >= maxConnsEach && !from.IsLoopback() {
		return false
	}
	l.open++
	l.conns[from]++
	return true
}

func (l *limiter) disconnect(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.conns[from]--; l.conns[from] == 0 {
		delete(l.conns, from)
	}
}
