package hostnet

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/logkey"
)

// maxForeign is how many names that others took are stepped over for one tap.
const maxForeign = 64

// reserve takes the lowest free numbers for n taps, so that two who make taps at
// the same time never try one name.
func (s *Service) reserve(n int) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserveLocked(n)
}

func (s *Service) reserveLocked(n int) []int {
	var numbers []int
	for i := 0; len(numbers) < n; i++ {
		if !s.taken[i] {
			s.taken[i] = true
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// makeTap makes the tap of a reserved number, or of another when somebody else has
// a device of that name. It gives the number back when it fails.
func (s *Service) makeTap(p *plan, number int) (string, error) {
	for range maxForeign {
		name := tapdev.TapName(p.Bridge, number)
		err := tapdev.CreateTap(tapdev.TapSpec{Name: name, Alias: p.alias, Bridge: p.Bridge, MTU: s.MTU, VNet: s.VNet})
		switch {
		case err == nil:
			return name, nil
		case !errors.Is(err, tapdev.ErrTaken):
			s.release(number)
			return "", err
		}
		// It stays reserved: nobody need try it again.
		number = s.reserve(1)[0]
	}
	s.release(number)
	return "", fmt.Errorf("make a tap: %d names in a row are taken by others: %w", maxForeign, tapdev.ErrTaken)
}

func (s *Service) release(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.taken, number)
}

// deleteTap removes a tap of ours and frees its name.
func (s *Service) deleteTap(p *plan, name string) error {
	if err := tapdev.Delete(name); err != nil {
		return err
	}
	if n, ok := tapdev.TapIndex(p.Bridge, name); ok {
		s.release(n)
	}
	return nil
}

// take returns a tap for a VMM of that user: a warm one, else a new one. A warm tap
// that is gone, or that a process has not let go of, is no tap for anybody.
func (s *Service) take(ctx context.Context, p *plan, uid int) (string, error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		s.mu.Lock()
		name := ""
		if n := len(s.warm); n > 0 {
			name, s.warm = s.warm[n-1], s.warm[:n-1]
		}
		s.mu.Unlock()
		made := name == ""
		if made {
			var err error
			if name, err = s.makeTap(p, s.reserve(1)[0]); err != nil {
				return "", err
			}
		}
		err := tapdev.SetOwner(name, s.VNet, uid)
		if err == nil {
			s.refill(made)
			return name, nil
		}
		if err := errors.Join(err, s.deleteTap(p, name)); made || !errors.Is(err, tapdev.ErrTaken) && !tapdev.Missing(err) {
			return "", err
		}
		s.Log.WarnContext(ctx, "a warm tap cannot be used", logkey.Tap, name, logkey.Err, err)
	}
}

// giveBack makes a tap warm again, or removes it when there are enough: the filler may
// have made one in its place.
func (s *Service) giveBack(p *plan, name string) error {
	if err := tapdev.SetOwner(name, s.VNet, 0); err != nil {
		// Gone, or not let go of: it serves nobody any more.
		return s.deleteTap(p, name)
	}
	s.mu.Lock()
	keep := s.plan != nil && len(s.warm) < 2*s.Pool && !slices.Contains(s.warm, name)
	if keep {
		s.warm = append(s.warm, name)
	}
	s.mu.Unlock()
	if keep {
		return nil
	}
	return s.deleteTap(p, name)
}

// refill wakes the filler; a success elsewhere shows that it need not wait longer.
func (s *Service) refill(success bool) {
	if success {
		s.mu.Lock()
		s.stalled = false
		s.mu.Unlock()
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fill starts the one goroutine that keeps taps warm.
func (s *Service) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filling || s.Pool == 0 {
		return
	}
	s.filling = true
	s.tasks.Go(func() {
		for {
			s.batch()
			select {
			case <-s.wake:
			case <-s.ctx.Done():
				return
			}
		}
	})
}

// pause waits until no batch is under way; without a plan none begins.
func (s *Service) pause() {
	s.hostBatch <- struct{}{}
	<-s.hostBatch
}

// batch makes as many taps as are missing.
func (s *Service) batch() {
	s.hostBatch <- struct{}{}
	defer func() { <-s.hostBatch }()
	s.mu.Lock()
	p := s.plan
	var numbers []int
	if p != nil && !s.stalled {
		numbers = s.reserveLocked(s.Pool - len(s.warm))
	}
	s.mu.Unlock()
	if len(numbers) == 0 {
		return
	}
	var errs []error
	var made []string
	for _, n := range numbers {
		name, err := s.makeTap(p, n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		made = append(made, name)
	}
	// Docker may have come since, and firewalld forgets when it reloads.
	if err := nat.AllowInDocker(); err != nil {
		s.Log.Warn("Docker's firewall could not be told of guests", logkey.Err, err)
	}
	_ = s.tellFirewalld(s.ctx, p)
	s.mu.Lock()
	s.warm = append(s.warm, made...)
	s.stalled = len(made) == 0
	s.mu.Unlock()
	if len(errs) > 0 {
		s.Log.Warn("taps could not be made ready", logkey.Missing, len(errs), logkey.Made, len(made), logkey.Err, errs[0])
	}
}
