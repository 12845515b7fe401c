package fcproc

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Firecracker writes to its metrics, once a minute and when it is asked to, what was
// counted since it last did. The meter adds that up. It reads on from where it was;
// what it has read may be removed, so the sums are written down beside the place that
// was reached, and a new daemon begins there.
//
// The file is the VMM's, and so are the numbers in it: they are bounded, and believed
// as its word.
type meter struct {
	dir  string        // the VM directory, which is ours
	turn chan struct{} // holds a token while nobody reads: files are read under it
	sum  metered
	kept int64 // the place up to which the sums are written down
}

// metered are the sums up to a place in the metrics.
type metered struct {
	Offset int64               `json:"offset"`
	Disk   hypervisor.Transfer `json:"disk"`
	Net    hypervisor.Transfer `json:"net"`
	Broken bool                `json:"broken,omitempty"` // what was there made no sense
}

const (
	maxLine   = 1 << 20   // bytes of one flush; one of today has some 10 kB
	maxUnread = 512 << 20 // bytes; a daemon that was away for a month finds less
	keepEvery = 256 << 10 // bytes; less than is left of the metrics when they are cut
)

// stagedSum is where the sums are written before they take their name.
const stagedSum = paths.StagingPrefix + paths.MetricsSum

func newMeter(dir string) *meter {
	m := &meter{dir: dir, turn: make(chan struct{}, 1)}
	b, err := os.ReadFile(filepath.Join(dir, paths.MetricsSum))
	if err == nil && json.Unmarshal(b, &m.sum) != nil {
		m.sum = metered{Broken: true}
	}
	m.kept = m.sum.Offset
	m.turn <- struct{}{}
	return m
}

// read reads on in f and returns the sums.
func (m *meter) read(ctx context.Context, f *os.File) (metered, error) {
	select {
	case <-m.turn:
	case <-ctx.Done():
		return metered{}, context.Cause(ctx)
	}
	defer func() { m.turn <- struct{}{} }()
	if err := m.advance(ctx, f); err != nil {
		return metered{}, err
	}
	if m.sum.Offset-m.kept >= keepEvery {
		if err := m.keep(); err != nil {
			return metered{}, err
		}
	}
	return m.sum, nil
}

// advance reads to the end, or as far as ctx allows; the rest is read the next time.
func (m *meter) advance(ctx context.Context, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < m.sum.Offset || st.Size()-m.sum.Offset > maxUnread {
		m.sum.Broken, m.sum.Offset = true, st.Size()
	}
	buf := make([]byte, min(maxLine, st.Size()-m.sum.Offset))
	for m.sum.Offset < st.Size() && !m.sum.Broken {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), st.Size()-m.sum.Offset)], m.sum.Offset)
		if n == 0 {
			return err
		}
		end := bytes.LastIndexByte(buf[:n], '\n') + 1
		if end == 0 {
			// A line that is being written, unless no line is that long.
			m.sum.Broken = n == maxLine
			return nil
		}
		for line := range bytes.Lines(buf[:end]) {
			m.sum.add(line)
		}
		m.sum.Offset += int64(end)
	}
	return nil
}

// add adds one flush.
func (s *metered) add(line []byte) {
	var flush struct {
		Block struct {
			ReadBytes  int64 `json:"read_bytes"`
			WriteBytes int64 `json:"write_bytes"`
			Reads      int64 `json:"read_count"`
			Writes     int64 `json:"write_count"`
		} `json:"block"`
		Net struct {
			ReadBytes  int64 `json:"rx_bytes_count"`
			WriteBytes int64 `json:"tx_bytes_count"`
			Reads      int64 `json:"rx_packets_count"`
			Writes     int64 `json:"tx_packets_count"`
		} `json:"net"`
	}
	if err := json.Unmarshal(line, &flush); err != nil {
		s.Broken = true
		return
	}
	for _, c := range []struct {
		sum  *hypervisor.Transfer
		more hypervisor.Transfer
	}{{&s.Disk, hypervisor.Transfer(flush.Block)}, {&s.Net, hypervisor.Transfer(flush.Net)}} {
		for _, n := range []struct {
			sum  *int64
			more int64
		}{
			{&c.sum.ReadBytes, c.more.ReadBytes}, {&c.sum.WriteBytes, c.more.WriteBytes},
			{&c.sum.Reads, c.more.Reads}, {&c.sum.Writes, c.more.Writes},
		} {
			*n.sum += n.more
			s.Broken = s.Broken || n.more < 0 || *n.sum < 0
		}
	}
}

// keep writes the sums down. The file is scratch: it is not synced.
func (m *meter) keep() error {
	b, err := json.Marshal(m.sum)
	if err != nil {
		return err
	}
	staged := filepath.Join(m.dir, stagedSum)
	if err := os.WriteFile(staged, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(staged, filepath.Join(m.dir, paths.MetricsSum)); err != nil {
		return err
	}
	m.kept = m.sum.Offset
	return nil
}
