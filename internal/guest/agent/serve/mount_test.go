package serve

import (
	"context"
	"errors"
	"testing"
	"time"

	"banger/internal/errdefs"
)

// TestMountAgain: whoever mounts where somebody has mounted waits for the end of that.
func TestMountAgain(t *testing.T) {
	s := New(Deps{})
	release, err := s.takeTarget(t.Context(), "/mnt/a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.takeTarget(t.Context(), "/mnt/b", 0)
	if err != nil {
		t.Fatal(err)
	}
	other()
	if _, err := s.takeTarget(t.Context(), "/mnt/a", time.Millisecond); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("of one that stays: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.takeTarget(ended, "/mnt/a", time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("of one that gave up: %v", err)
	}
	got := make(chan error)
	go func() {
		again, err := s.takeTarget(t.Context(), "/mnt/a", time.Minute)
		if err == nil {
			again()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("it did not wait, %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
