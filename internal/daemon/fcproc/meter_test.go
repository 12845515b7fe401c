package fcproc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/fcproc"
	"banger/internal/hypervisor"
)

const flush = `{"utc_timestamp_ms":1,"block":{"read_bytes":%d,"write_bytes":20,"read_count":1,"write_count":2,"flush_count":9},"net":{"rx_bytes_count":3,"tx_bytes_count":4,"rx_packets_count":5,"tx_packets_count":6},"vcpu":{"x":[1]}}` + "\n"

// metrics is the file of a VMM that writes flushes.
type metrics struct {
	t   *testing.T
	dir string
	f   *os.File
}

func newMetrics(t *testing.T) *metrics {
	t.Helper()
	m := &metrics{t: t, dir: t.TempDir()}
	var err error
	if m.f, err = os.Create(filepath.Join(m.dir, "metrics")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.f.Close() })
	return m
}

func (m *metrics) write(text string) {
	m.t.Helper()
	if _, err := m.f.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

// reads wants so many bytes read from the disks; -1: they are not known.
func (m *metrics) reads(by fcproc.Meter, want int64) *hypervisor.Transfer {
	m.t.Helper()
	disk, card, err := by.Read(m.t.Context(), m.f)
	if err != nil {
		m.t.Fatal(err)
	}
	switch {
	case want < 0 && disk == nil && card == nil:
	case want < 0 || disk == nil || disk.ReadBytes != want:
		m.t.Fatalf("got %+v, want %d bytes read", disk, want)
	}
	return card
}

func TestMeter(t *testing.T) {
	m := newMetrics(t)
	by := fcproc.NewMeter(m.dir)
	m.reads(by, 0)
	m.write(fmt.Sprintf(flush, 10) + fmt.Sprintf(flush, 1))
	m.reads(by, 11)
	half := fmt.Sprintf(flush, 100)
	m.write(half[:40])
	m.reads(by, 11)
	m.write(half[40:])
	if card := m.reads(by, 111); *card != (hypervisor.Transfer{ReadBytes: 9, WriteBytes: 12, Reads: 15, Writes: 18}) {
		t.Errorf("the card did %+v", card)
	}
	m.reads(fcproc.NewMeter(m.dir), 111) // a new daemon
}

// What was written down need not be there any more.
func TestMeterRemembers(t *testing.T) {
	m := newMetrics(t)
	lines := fcproc.KeepEvery/len(fmt.Sprintf(flush, 1)) + 1
	m.write(strings.Repeat(fmt.Sprintf(flush, 1), lines))
	m.reads(fcproc.NewMeter(m.dir), int64(lines))
	if _, err := m.f.WriteAt(make([]byte, fcproc.KeepEvery), 0); err != nil {
		t.Fatal(err)
	}
	m.write(fmt.Sprintf(flush, 5))
	m.reads(fcproc.NewMeter(m.dir), int64(lines)+5)
}

// A daemon that was away for a week adds up all of it; one that is ended meanwhile
// does not hold anybody up, and leaves the rest to the next.
func TestMeterAfterAnAbsence(t *testing.T) {
	m := newMetrics(t)
	line := fmt.Sprintf(flush, 1)
	line = line[:len(line)-1] + strings.Repeat(" ", 1<<20-len(line)) + "\n"
	const lines = 7 * 24 * 60 * 10_000 >> 20
	for range lines {
		m.write(line)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	by := fcproc.NewMeter(m.dir)
	if _, _, err := by.Read(ended, m.f); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	m.reads(by, lines)
}

// A VMM that was taken over may write what it likes.
func TestMeterAndNonsense(t *testing.T) {
	for name, text := range map[string]string{
		"no json":        "hello\n",
		"negative":       fmt.Sprintf(flush, -1),
		"too many":       strings.Repeat(fmt.Sprintf(flush, int64(1)<<62), 3),
		"no number":      `{"block":{"read_bytes":1.5}}` + "\n",
		"a hole":         strings.Repeat("\x00", 100) + "\n",
		"an endless one": strings.Repeat("x", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMetrics(t)
			by := fcproc.NewMeter(m.dir)
			m.write(fmt.Sprintf(flush, 1))
			m.reads(by, 1)
			m.write(text)
			m.reads(by, -1)
			m.write(fmt.Sprintf(flush, 1))
			m.reads(by, -1)
		})
	}
	t.Run("cut off", func(t *testing.T) {
		m := newMetrics(t)
		by := fcproc.NewMeter(m.dir)
		m.write(fmt.Sprintf(flush, 1))
		m.reads(by, 1)
		if err := m.f.Truncate(5); err != nil {
			t.Fatal(err)
		}
		m.reads(by, -1)
	})
	t.Run("huge", func(t *testing.T) {
		m := newMetrics(t)
		if err := m.f.Truncate(1 << 40); err != nil {
			t.Fatal(err)
		}
		m.reads(fcproc.NewMeter(m.dir), -1)
	})
}
