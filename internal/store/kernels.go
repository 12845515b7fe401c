package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"banger/internal/errdefs"
	"banger/internal/model"
)

const kernelColumns = `id, name, release, vmlinux, bzimage, early_dir, modules, source, created_at`

func scanKernel(row scanner) (model.Kernel, error) {
	var (
		k       model.Kernel
		created int64
	)
	err := row.Scan(&k.ID, &k.Name, &k.Release, &k.VmlinuxPath, &k.BzImagePath, &k.EarlyDir, &k.ModulesPath, &k.Source, &created)
	k.CreatedAt = fromUnix(created)
	return k, err
}

// PutKernel publishes a kernel; one of that name is replaced as in PutImage. Images
// that preferred that one prefer the new one.
func (s *Store) PutKernel(ctx context.Context, k model.Kernel) error {
	err := s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE images SET kernel_id = ?1
			WHERE kernel_id = (SELECT id FROM kernels WHERE name = ?2 AND name <> '' AND id <> ?1)`, k.ID, k.Name)
		if err != nil {
			return err
		}
		if err := replaceNamed(ctx, tx, "kernels", "kernel_id", k.ID, k.Name); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO kernels (`+kernelColumns+`) VALUES (?,?,?,?,?,?,?,?,?)
			ON CONFLICT (id) DO UPDATE SET name=excluded.name, release=excluded.release, vmlinux=excluded.vmlinux, bzimage=excluded.bzimage, early_dir=excluded.early_dir, modules=excluded.modules, source=excluded.source, created_at=excluded.created_at`,
			k.ID, k.Name, k.Release, k.VmlinuxPath, k.BzImagePath, k.EarlyDir, k.ModulesPath, k.Source, toUnix(k.CreatedAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("put kernel %q: %w", k.Name, err)
	}
	return nil
}

// DeleteKernel removes the row. A kernel in use is refused by the database itself.
func (s *Store) DeleteKernel(ctx context.Context, id string) error {
	if _, err := s.exec(ctx, `DELETE FROM kernels WHERE id = ?`, id); err != nil {
		return fmt.Errorf("delete kernel %s: %w", id, err)
	}
	return nil
}

// KernelByName returns the kernel of that name.
func (s *Store) KernelByName(ctx context.Context, name string) (model.Kernel, error) {
	return s.kernel(ctx, `name = ? AND name <> ''`, name)
}

// KernelByID returns the kernel with that id.
func (s *Store) KernelByID(ctx context.Context, id string) (model.Kernel, error) {
	return s.kernel(ctx, `id = ?`, id)
}

func (s *Store) kernel(ctx context.Context, where, arg string) (model.Kernel, error) {
	k, err := scanKernel(s.db.QueryRowContext(ctx, `SELECT `+kernelColumns+` FROM kernels WHERE `+where, arg))
	if errors.Is(err, sql.ErrNoRows) {
		return k, errdefs.NotFound("no kernel %q", arg)
	}
	return k, err
}

// ListKernels returns all kernels by name.
func (s *Store) ListKernels(ctx context.Context) ([]model.Kernel, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+kernelColumns+` FROM kernels ORDER BY name, id`)
	if err != nil {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	return collect(rows, scanKernel)
}

// KernelUsers returns the names of the VMs that use the kernel.
func (s *Store) KernelUsers(ctx context.Context, id string) ([]string, error) {
	return s.names(ctx, `SELECT name FROM vms WHERE kernel_id = ? ORDER BY name`, id)
}

// KernelImages returns the names of the images that prefer the kernel.
func (s *Store) KernelImages(ctx context.Context, id string) ([]string, error) {
	return s.names(ctx, `SELECT name FROM images WHERE kernel_id = ? AND name <> '' ORDER BY name`, id)
}
