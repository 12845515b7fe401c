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

const selectWorkspace = `SELECT id, vm_id, guest_path, host_path, state, generation, spec, created_at, updated_at FROM workspaces `

func scanWorkspace(row scanner) (model.Workspace, error) {
	var (
		w                model.Workspace
		spec             string
		created, updated int64
	)
	err := row.Scan(&w.ID, &w.VMID, &w.GuestPath, &w.HostPath, &w.State, &w.Generation, &spec, &created, &updated)
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal([]byte(spec), &w.Spec); err != nil {
		return w, fmt.Errorf("workspace %s: decode: %w", w.ID, err)
	}
	w.CreatedAt, w.UpdatedAt = fromUnix(created), fromUnix(updated)
	return w, nil
}

// ListWorkspaces returns the workspaces of a VM, or of all, by VM and path.
func (s *Store) ListWorkspaces(ctx context.Context, vmID string) ([]model.Workspace, error) {
	rows, err := s.db.QueryContext(ctx, selectWorkspace+`WHERE ?1 = '' OR vm_id = ?1 ORDER BY vm_id, guest_path`, vmID)
	if err != nil {
		return nil, fmt.Errorf("list workspaces: %w", err)
	}
	return collect(rows, scanWorkspace)
}

// GetWorkspace returns the workspace with this very id.
func (s *Store) GetWorkspace(ctx context.Context, id string) (model.Workspace, error) {
	w, err := scanWorkspace(s.db.QueryRowContext(ctx, selectWorkspace+`WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return w, errdefs.NotFound("no workspace with id %s", id).WithHint("list them: banger vm workspace list")
	}
	return w, err
}

// BeginWorkspace writes that something is about to be sent into the workspace of w's VM
// and path: a new row with w's id, or the one that is there, whose id and creation time w
// gets, and a generation of its own. A VM that is gone is ErrNotFound.
func (s *Store) BeginWorkspace(ctx context.Context, w *model.Workspace) error {
	spec, err := json.Marshal(w.Spec)
	if err != nil {
		return fmt.Errorf("encode workspace: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	w.State, w.UpdatedAt = model.WorkspacePreparing, now
	err = s.tx(ctx, func(tx *sql.Tx) error {
		var created int64
		err := tx.QueryRowContext(ctx, `INSERT INTO workspaces
			(id, vm_id, guest_path, host_path, state, generation, spec, created_at, updated_at) VALUES (?,?,?,?,?,1,?,?,?)
			ON CONFLICT (vm_id, guest_path) DO UPDATE SET host_path = excluded.host_path, state = excluded.state,
				generation = generation + 1, spec = excluded.spec, updated_at = excluded.updated_at
			RETURNING id, generation, created_at`,
			w.ID, w.VMID, w.GuestPath, w.HostPath, w.State, string(spec), toUnix(now), toUnix(now)).Scan(&w.ID, &w.Generation, &created)
		w.CreatedAt = fromUnix(created)
		return err
	})
	if missingOn(err) {
		return errdefs.NotFound("vm %s is gone", w.VMID)
	}
	return errdefs.Wrap(err, "record workspace %s", w.GuestPath)
}

// FinishWorkspace writes that all has arrived that generation of a workspace sent, unless
// something else was begun since: then it is ErrBusy.
func (s *Store) FinishWorkspace(ctx context.Context, id string, generation int64) error {
	res, err := s.exec(ctx, `UPDATE workspaces SET state = ?, updated_at = ? WHERE id = ? AND generation = ?`,
		model.WorkspaceReady, toUnix(time.Now().UTC().Truncate(time.Millisecond)), id, generation)
	if err != nil {
		return fmt.Errorf("record workspace %s: %w", id, err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return errdefs.New(errdefs.ClassBusy, "the workspace was prepared or removed by another command meanwhile").WithHint("run it again")
	}
	return nil
}

// DeleteWorkspace removes the row; removing an absent one is no error.
func (s *Store) DeleteWorkspace(ctx context.Context, id string) error {
	_, err := s.exec(ctx, `DELETE FROM workspaces WHERE id = ?`, id)
	return errdefs.Wrap(err, "forget workspace %s", id)
}
