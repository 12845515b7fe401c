package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"

	"banger/internal/errdefs"
	"banger/internal/model"
)

const portsQuery = `SELECT vm_id, addr, host_port, guest_port FROM ports ORDER BY vm_id, host_port, addr`

func scanPort(row scanner) (model.Port, error) {
	var (
		p    model.Port
		addr string
	)
	err := row.Scan(&p.VMID, &addr, &p.Host, &p.Guest)
	if err == nil && addr != "" {
		if p.Addr, err = netip.ParseAddr(addr); err != nil {
			err = fmt.Errorf("port of vm %s: %w", p.VMID, err)
		}
	}
	return p, err
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// Ports returns the forwarded ports of all VMs.
func (s *Store) Ports(ctx context.Context) ([]model.Port, error) {
	rows, err := s.db.QueryContext(ctx, portsQuery)
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	return collect(rows, scanPort)
}

// AddPorts adds ports of VMs, all or none of them. check sees those that are there,
// in the same transaction; its error leaves everything as it was and is returned. It
// may be called twice. A VM that is gone is ErrNotFound.
func (s *Store) AddPorts(ctx context.Context, ports []model.Port, check func(all []model.Port) error) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, portsQuery)
		if err != nil {
			return err
		}
		all, err := collect(rows, scanPort)
		if err != nil {
			return err
		}
		if err := check(all); err != nil {
			return err
		}
		for _, p := range ports {
			_, err := tx.ExecContext(ctx, `INSERT INTO ports (vm_id, addr, host_port, guest_port) VALUES (?,?,?,?)`,
				p.VMID, addrText(p.Addr), p.Host, p.Guest)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if missingOn(err) {
		return errdefs.NotFound("the vm is gone")
	}
	return errdefs.Wrap(err, "keep ports")
}

// RemovePorts forgets ports of VMs; one that is not there is no error.
func (s *Store) RemovePorts(ctx context.Context, ports []model.Port) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		for _, p := range ports {
			_, err := tx.ExecContext(ctx, `DELETE FROM ports WHERE vm_id = ? AND addr = ? AND host_port = ?`, p.VMID, addrText(p.Addr), p.Host)
			if err != nil {
				return err
			}
		}
		return nil
	})
	return errdefs.Wrap(err, "forget ports")
}

// Loopbacks returns the loopback addresses of VMs that have one, by their ids.
func (s *Store) Loopbacks(ctx context.Context) (map[string]netip.Addr, error) {
	rows, err := s.db.QueryContext(ctx, loopbacksQuery)
	if err != nil {
		return nil, fmt.Errorf("list loopback addresses: %w", err)
	}
	return loopbacks(rows)
}

const loopbacksQuery = `SELECT vm_id, addr FROM loopbacks`

func loopbacks(rows *sql.Rows) (map[string]netip.Addr, error) {
	all := make(map[string]netip.Addr)
	_, err := collect(rows, func(row scanner) (struct{}, error) {
		var id, text string
		if err := row.Scan(&id, &text); err != nil {
			return struct{}{}, err
		}
		addr, err := netip.ParseAddr(text)
		all[id] = addr
		return struct{}{}, err
	})
	return all, err
}

// Loopback returns the loopback address of a VM. One that has none gets the one that
// choose returns, who sees those of all others, until it is deleted. choose may be
// called twice; its error is returned. A VM that is gone is ErrNotFound.
func (s *Store) Loopback(ctx context.Context, vmID string, choose func(used map[netip.Addr]bool) (netip.Addr, error)) (netip.Addr, error) {
	var addr netip.Addr
	err := s.tx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, loopbacksQuery)
		if err != nil {
			return err
		}
		all, err := loopbacks(rows)
		if err != nil {
			return err
		}
		var ok bool
		if addr, ok = all[vmID]; ok {
			return nil
		}
		used := make(map[netip.Addr]bool, len(all))
		for _, a := range all {
			used[a] = true
		}
		if addr, err = choose(used); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO loopbacks (vm_id, addr) VALUES (?,?)`, vmID, addr.String())
		return err
	})
	if missingOn(err) {
		return addr, errdefs.NotFound("vm %s is gone", vmID)
	}
	return addr, errdefs.Wrap(err, "choose the loopback address of vm %s", vmID)
}
