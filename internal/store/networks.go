package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// CreateNetwork makes a named network. A taken name is ErrAlreadyExists.
func (s *Store) CreateNetwork(ctx context.Context, name string) error {
	_, err := s.exec(ctx, `INSERT INTO networks (name) VALUES (?)`, name)
	if uniqueOn(err) {
		return errdefs.AlreadyExists("a network named %q exists already", name).WithHint("choose another name, or use that one: banger vm run --network %s", name)
	}
	if err != nil {
		return fmt.Errorf("insert network %q: %w", name, err)
	}
	return nil
}

// ListNetworks returns all named networks by name, each with the names of its VMs.
func (s *Store) ListNetworks(ctx context.Context) ([]model.Network, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT networks.name, COALESCE(vms.name, '') FROM networks
		LEFT JOIN vms ON vms.network_id = networks.id ORDER BY networks.name, vms.name`)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	type member struct{ network, vm string }
	members, err := collect(rows, func(r scanner) (m member, err error) { return m, r.Scan(&m.network, &m.vm) })
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []model.Network
	for _, m := range members {
		if len(all) == 0 || all[len(all)-1].Name != m.network {
			all = append(all, model.Network{Name: m.network})
		}
		if m.vm != "" {
			n := &all[len(all)-1]
			n.VMs = append(n.VMs, m.vm)
		}
	}
	return all, nil
}

// NeedNetwork errors with ErrNotFound when there is no network of that name.
func (s *Store) NeedNetwork(ctx context.Context, name string) error {
	_, err := networkID(ctx, s.db, name)
	if errors.Is(err, sql.ErrNoRows) {
		return s.unknownNetwork(ctx, name)
	}
	return err
}

// RemoveNetwork removes a named network. One that VMs are on is
// ErrFailedPrecondition, and the message names them.
func (s *Store) RemoveNetwork(ctx context.Context, name string) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		id, err := networkID(ctx, tx, name)
		if err != nil {
			return err
		}
		users, err := names(ctx, tx, `SELECT name FROM vms WHERE network_id = ? ORDER BY name`, id)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return errdefs.Precondition("network %q is used by %s", name, strings.Join(users, ", ")).
				WithHint("delete them first: banger vm delete %s", strings.Join(users, " "))
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM networks WHERE id = ?`, id)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return s.unknownNetwork(ctx, name)
	case err != nil && errdefs.ClassOf(err) == errdefs.ClassInternal:
		return fmt.Errorf("remove network %q: %w", name, err)
	}
	return err
}

// querier is the database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// networkID returns what refers to a network in the rows of its VMs, or sql.ErrNoRows.
func networkID(ctx context.Context, q querier, name string) (id int64, err error) {
	err = q.QueryRowContext(ctx, `SELECT id FROM networks WHERE name = ?`, name).Scan(&id)
	return id, err
}

func (s *Store) unknownNetwork(ctx context.Context, name string) error {
	e := errdefs.NotFound("no network named %q", name)
	all, err := names(ctx, s.db, `SELECT name FROM networks ORDER BY name LIMIT 10000`)
	if err == nil {
		if near := model.Near(name, all); len(near) > 0 {
			return e.WithHint("did you mean %s?", join(near))
		}
	}
	return e.WithHint("make it: banger network create %s", name)
}
