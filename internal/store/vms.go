package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"banger/internal/errdefs"
	"banger/internal/model"
)

const vmColumns = `id, name, state, image_id, image_ref, kernel_id, spec, vmm_uid, boot_id, last_error, created_at, updated_at, started_at`

// selectVM reads VMs, each with the name of its network.
const selectVM = `SELECT ` + vmColumns + `, COALESCE((SELECT name FROM networks WHERE networks.id = network_id), '') FROM vms `

const getVMQuery = selectVM + `WHERE id = ?`

// findVMQuery takes a reference: of a name, or of ids that begin with it ('g'
// comes after all hex digits).
const findVMQuery = selectVM + `
	WHERE name = ?1 OR (id >= ?1 AND id < ?1 || 'g') ORDER BY name = ?1 DESC, name LIMIT 6`

type scanner interface{ Scan(...any) error }

func scanVM(row scanner) (model.VM, error) {
	var (
		v                         model.VM
		spec                      string
		created, updated, started int64
	)
	err := row.Scan(&v.ID, &v.Name, &v.State, &v.ImageID, &v.ImageRef, &v.KernelID, &spec, &v.VMMUID,
		&v.BootID, &v.LastError, &created, &updated, &started, &v.Network)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(spec), &v.Spec); err != nil {
		return v, fmt.Errorf("vm %s: decode spec: %w", v.ID, err)
	}
	v.CreatedAt, v.UpdatedAt, v.StartedAt = fromUnix(created), fromUnix(updated), fromUnix(started)
	return v, nil
}

// InsertVM reserves the VM's id and name. A taken name is ErrAlreadyExists.
// A network that is not there is ErrNotFound.
// When uidBase is not zero it also reserves the lowest free VMM uid at or above
// it and sets v.VMMUID.
func (s *Store) InsertVM(ctx context.Context, v *model.VM, uidBase int) error {
	spec, err := json.Marshal(v.Spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	v.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	v.UpdatedAt = v.CreatedAt
	err = s.tx(ctx, func(tx *sql.Tx) error {
		if uidBase != 0 {
			const lowestFree = `SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM vms WHERE vmm_uid = ?1) THEN ?1
				ELSE (SELECT MIN(vmm_uid) + 1 FROM vms a WHERE vmm_uid >= ?1
					AND NOT EXISTS (SELECT 1 FROM vms b WHERE b.vmm_uid = a.vmm_uid + 1)) END`
			if err := tx.QueryRowContext(ctx, lowestFree, uidBase).Scan(&v.VMMUID); err != nil {
				return fmt.Errorf("reserve a uid: %w", err)
			}
		}
		var network sql.NullInt64
		if v.Network != "" {
			id, err := networkID(ctx, tx, v.Network)
			if err != nil {
				return err
			}
			network = sql.NullInt64{Int64: id, Valid: true}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO vms (`+vmColumns+`, network_id) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
			v.ID, v.Name, v.State, v.ImageID, v.ImageRef, v.KernelID, string(spec), v.VMMUID,
			v.BootID, v.LastError, toUnix(v.CreatedAt), toUnix(v.UpdatedAt), toUnix(v.StartedAt), network)
		return err
	})
	if uniqueOn(err) {
		return model.NameTaken(v.Name)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return s.unknownNetwork(ctx, v.Network)
	}
	if missingOn(err) {
		return errdefs.Precondition("the image or the kernel of vm %q was removed meanwhile", v.Name).WithHint("try again")
	}
	if err != nil {
		return fmt.Errorf("insert vm %q: %w", v.Name, err)
	}
	return nil
}

// UpdateVM writes every field of v but id, network and creation time.
func (s *Store) UpdateVM(ctx context.Context, v *model.VM) error {
	spec, err := json.Marshal(v.Spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	v.UpdatedAt = time.Now().UTC().Truncate(time.Millisecond)
	res, err := s.exec(ctx, `UPDATE vms SET name=?, state=?, image_id=?, image_ref=?, kernel_id=?, spec=?,
		boot_id=?, last_error=?, updated_at=?, started_at=? WHERE id=?`,
		v.Name, v.State, v.ImageID, v.ImageRef, v.KernelID, string(spec),
		v.BootID, v.LastError, toUnix(v.UpdatedAt), toUnix(v.StartedAt), v.ID)
	if uniqueOn(err) {
		return model.NameTaken(v.Name)
	}
	if err != nil {
		return fmt.Errorf("update vm %q: %w", v.Name, err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return errdefs.NotFound("vm %s is gone", v.ID)
	}
	return nil
}

// DeleteVM removes the row; removing an absent one is no error.
func (s *Store) DeleteVM(ctx context.Context, id string) error {
	if _, err := s.exec(ctx, `DELETE FROM vms WHERE id = ?`, id); err != nil {
		return fmt.Errorf("delete vm %s: %w", id, err)
	}
	return nil
}

// GetVM returns the VM with this very id.
func (s *Store) GetVM(ctx context.Context, id string) (model.VM, error) {
	v, err := scanVM(s.getVM.QueryRowContext(ctx, id))
	if errors.Is(err, sql.ErrNoRows) {
		return v, errdefs.NotFound("no VM with id %s", id)
	}
	return v, err
}

// FindVM resolves a reference: a name, an id, or a prefix of an id that only one
// VM has. A name wins over an id prefix.
func (s *Store) FindVM(ctx context.Context, ref string) (model.VM, error) {
	if ref == "" {
		return model.VM{}, errdefs.Invalid("the VM's name is empty").WithHint("list them: banger vm list")
	}
	rows, err := s.findVM.QueryContext(ctx, ref)
	if err != nil {
		return model.VM{}, fmt.Errorf("find vm %q: %w", ref, err)
	}
	hits, err := collect(rows, scanVM)
	if err != nil {
		return model.VM{}, fmt.Errorf("find vm %q: %w", ref, err)
	}
	switch {
	case len(hits) == 0:
		return model.VM{}, s.unknownVM(ctx, ref)
	case hits[0].Name == ref || hits[0].ID == ref || len(hits) == 1:
		return hits[0], nil
	}
	list := ""
	for i, h := range hits {
		if i > 0 {
			list += ", "
		}
		list += h.Name + " (" + h.ID + ")"
	}
	return model.VM{}, errdefs.Invalid("%q is ambiguous: it is the start of the ids of %s", ref, list).
		WithHint("give the name, or more of the id")
}

func (s *Store) unknownVM(ctx context.Context, ref string) error {
	e := errdefs.NotFound("no VM named %q", ref)
	names, err := s.names(ctx, `SELECT name FROM vms ORDER BY name LIMIT 10000`)
	if err != nil {
		return e
	}
	if near := model.Near(ref, names); len(near) > 0 {
		return e.WithHint("did you mean %s?", join(near))
	}
	return e.WithHint("list them: banger vm list --all")
}

// ListVMs returns all VMs by creation time.
func (s *Store) ListVMs(ctx context.Context) ([]model.VM, error) {
	rows, err := s.db.QueryContext(ctx, selectVM+`ORDER BY created_at, id`)
	if err != nil {
		return nil, fmt.Errorf("list vms: %w", err)
	}
	return collect(rows, scanVM)
}

func collect[T any](rows *sql.Rows, scan func(scanner) (T, error)) ([]T, error) {
	defer func() { _ = rows.Close() }()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func (s *Store) names(ctx context.Context, query string, args ...any) ([]string, error) {
	return names(ctx, s.db, query, args...)
}

func names(ctx context.Context, q querier, query string, args ...any) ([]string, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, func(r scanner) (n string, err error) { return n, r.Scan(&n) })
}

func join(names []string) string {
	out := ""
	for i, n := range names {
		if i > 0 {
			out += " or "
		}
		out += n
	}
	return out
}
