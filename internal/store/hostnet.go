package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"banger/internal/model"
)

// HostNet returns what was kept last of the host's network; the zero record when
// nothing was.
func (s *Store) HostNet(ctx context.Context) (model.HostNet, error) {
	var (
		r   model.HostNet
		raw string
	)
	err := s.db.QueryRowContext(ctx, `SELECT record FROM hostnet`).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(raw), &r)
	}
	if err != nil {
		return r, fmt.Errorf("read the record of the host's network: %w", err)
	}
	return r, nil
}

// KeepHostNet keeps r in place of what was kept before.
func (s *Store) KeepHostNet(ctx context.Context, r model.HostNet) error {
	raw, err := json.Marshal(r)
	if err == nil {
		_, err = s.exec(ctx, `INSERT INTO hostnet (one, record) VALUES (1, ?)
			ON CONFLICT (one) DO UPDATE SET record=excluded.record`, string(raw))
	}
	if err != nil {
		return fmt.Errorf("keep the record of the host's network: %w", err)
	}
	return nil
}
