package serve

import (
	"context"
	"net"
	"time"

	"banger/internal/guest"
)

// stopGrace is how long commands have to end by their signal when the host does not say.
const stopGrace = 10 * time.Second

// stopping is a command that gets a signal of its own before the machine goes down.
type stopping struct {
	signal int
	gone   chan struct{} // closed when it has ended and its host was told
}

// atShutdown has a command get a signal when the machine is to go down. It returns what
// is to be called when the command is gone.
func (s *Server) atShutdown(ex *execution, signal int) (gone func()) {
	if signal == 0 {
		return func() {}
	}
	st := stopping{signal: signal, gone: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping[ex] = st
	return func() {
		close(st.gone)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.stopping, ex)
	}
}

// stopCommands sends the commands that have a signal of their own that signal, each to
// the command alone, as docker stop does, and waits until all have ended or the time is
// over. It reports whether there was one. certain is called before anything ends.
func (s *Server) stopCommands(grace time.Duration, certain func()) bool {
	s.mu.RLock()
	var wait []<-chan struct{}
	told := make(map[*execution]int, len(s.stopping))
	for ex, st := range s.stopping {
		told[ex] = st.signal
		wait = append(wait, st.gone)
	}
	s.mu.RUnlock()
	if len(wait) == 0 {
		return false
	}
	certain()
	for ex, signal := range told {
		_ = ex.process.SignalOne(signal) // it may have ended
	}
	over := time.NewTimer(grace)
	defer over.Stop()
	for _, gone := range wait {
		select {
		case <-gone:
		case <-over.C:
			return true
		}
	}
	return true
}

// shutdown makes the machine go down, and answers when that is certain: before commands
// are waited for, as the host gives up on an agent that does not answer.
func (s *Server) shutdown(ctx context.Context, conn net.Conn, w *guest.FrameWriter, how *guest.Shutdown) error {
	syncDisks()
	grace := stopGrace
	if how != nil && how.GraceMillis > 0 {
		grace = time.Duration(how.GraceMillis) * time.Millisecond
	}
	answered := false
	var err error
	answer := func() {
		if !answered {
			err = done(w, guest.Control{})
			_ = conn.Close() // the answer is on its way before anything ends
			answered = true
		}
	}
	if s.stopCommands(grace, answer) {
		syncDisks()
		ctx = context.WithoutCancel(ctx) // the host may leave, now that it knows
	}
	act, failed := s.Machine.Shutdown(ctx)
	if failed != nil {
		if answered {
			s.Log.Error("the machine stays on", "err", failed)
		}
		return failed
	}
	answer()
	if act != nil {
		act()
	}
	return err
}
