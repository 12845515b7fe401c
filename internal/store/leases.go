package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"

	"banger/internal/errdefs"
	"banger/internal/model"
)

const leasesQuery = `SELECT vm_id, addr, tap FROM leases ORDER BY vm_id`

func scanLease(row scanner) (model.Lease, error) {
	var (
		l    model.Lease
		addr string
	)
	err := row.Scan(&l.VMID, &addr, &l.Tap)
	if err == nil && addr != "" {
		if l.Addr, err = netip.ParseAddr(addr); err != nil {
			err = fmt.Errorf("address of vm %s: %w", l.VMID, err)
		}
	}
	return l, err
}

// Leases returns all leases.
func (s *Store) Leases(ctx context.Context) ([]model.Lease, error) {
	rows, err := s.db.QueryContext(ctx, leasesQuery)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return collect(rows, scanLease)
}

// UpdateLease gives change the VM's lease, or one with only its VMID, and the
// addresses of all others, and keeps what it makes of it, in one transaction. An
// error of change leaves everything as it was. change may be called twice. A VM
// that is gone is ErrNotFound; deleting one drops its lease.
func (s *Store) UpdateLease(ctx context.Context, vmID string, change func(l *model.Lease, used []netip.Addr) error) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, leasesQuery)
		if err != nil {
			return err
		}
		all, err := collect(rows, scanLease)
		if err != nil {
			return err
		}
		own := model.Lease{VMID: vmID}
		used := make([]netip.Addr, 0, len(all))
		for _, l := range all {
			switch {
			case l.VMID == vmID:
				own = l
			case l.Addr.IsValid():
				used = append(used, l.Addr)
			}
		}
		if err := change(&own, used); err != nil {
			return err
		}
		addr := ""
		if own.Addr.IsValid() {
			addr = own.Addr.String()
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO leases (vm_id, addr, tap) VALUES (?,?,?)
			ON CONFLICT (vm_id) DO UPDATE SET addr=excluded.addr, tap=excluded.tap`, vmID, addr, own.Tap)
		return err
	})
	if missingOn(err) {
		return errdefs.NotFound("vm %s is gone", vmID)
	}
	if err != nil {
		return fmt.Errorf("update the lease of vm %s: %w", vmID, err)
	}
	return nil
}

// DropLease forgets a lease; one that is not there is no error.
func (s *Store) DropLease(ctx context.Context, vmID string) error {
	if _, err := s.exec(ctx, `DELETE FROM leases WHERE vm_id = ?`, vmID); err != nil {
		return fmt.Errorf("drop the lease of vm %s: %w", vmID, err)
	}
	return nil
}
