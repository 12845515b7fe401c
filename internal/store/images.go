package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"banger/internal/errdefs"
	"banger/internal/model"
)

const imageColumns = `id, name, managed, path, size_bytes, kernel_id, config, digest, source, layers, created_at`

func scanImage(row scanner) (model.Image, error) {
	var (
		i       model.Image
		config  string
		layers  string
		created int64
	)
	if err := row.Scan(&i.ID, &i.Name, &i.Managed, &i.Path, &i.SizeBytes, &i.KernelID, &config, &i.Digest, &i.Source, &layers, &created); err != nil {
		return i, err
	}
	i.CreatedAt = fromUnix(created)
	if err := json.Unmarshal([]byte(config), &i.Config); err != nil {
		return i, fmt.Errorf("image %s: decode config: %w", i.ID, err)
	}
	if err := json.Unmarshal([]byte(layers), &i.Layers); err != nil {
		return i, fmt.Errorf("image %s: decode layers: %w", i.ID, err)
	}
	return i, nil
}

// PutImage publishes an image. An image of that name is replaced in the same
// transaction: its row goes when no VM uses it, else it loses its name and stays.
func (s *Store) PutImage(ctx context.Context, i model.Image) error {
	config, err := json.Marshal(i.Config)
	if err != nil {
		return fmt.Errorf("encode image config: %w", err)
	}
	layers, err := json.Marshal(i.Layers)
	if err != nil {
		return fmt.Errorf("encode image layers: %w", err)
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		if err := replaceNamed(ctx, tx, "images", "image_id", i.ID, i.Name); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO images (`+imageColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?)
			ON CONFLICT (id) DO UPDATE SET name=excluded.name, managed=excluded.managed, path=excluded.path, size_bytes=excluded.size_bytes, kernel_id=excluded.kernel_id, config=excluded.config, digest=excluded.digest, source=excluded.source, layers=excluded.layers, created_at=excluded.created_at`,
			i.ID, i.Name, i.Managed, i.Path, i.SizeBytes, i.KernelID, string(config), i.Digest, i.Source, string(layers), toUnix(i.CreatedAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("put image %q: %w", i.Name, err)
	}
	return nil
}

// replaceNamed makes room for a new row of that name. table and column are
// constants of this package.
func replaceNamed(ctx context.Context, tx *sql.Tx, table, column, id, name string) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE name = ?1 AND id <> ?2
		AND NOT EXISTS (SELECT 1 FROM vms WHERE vms.`+column+` = `+table+`.id)`, name, id)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE `+table+` SET name = '' WHERE name = ? AND id <> ?`, name, id)
	return err
}

// DeleteImage removes the row. An image in use is refused by the database itself.
func (s *Store) DeleteImage(ctx context.Context, id string) error {
	if _, err := s.exec(ctx, `DELETE FROM images WHERE id = ?`, id); err != nil {
		return fmt.Errorf("delete image %s: %w", id, err)
	}
	return nil
}

// ImageByName returns the image of that name.
func (s *Store) ImageByName(ctx context.Context, name string) (model.Image, error) {
	return s.image(ctx, `name = ? AND name <> ''`, name)
}

// ImageByID returns the image with that id.
func (s *Store) ImageByID(ctx context.Context, id string) (model.Image, error) {
	return s.image(ctx, `id = ?`, id)
}

func (s *Store) image(ctx context.Context, where, arg string) (model.Image, error) {
	i, err := scanImage(s.db.QueryRowContext(ctx, `SELECT `+imageColumns+` FROM images WHERE `+where, arg))
	if errors.Is(err, sql.ErrNoRows) {
		return i, errdefs.NotFound("no image %q", arg)
	}
	return i, err
}

// ListImages returns all images by name.
func (s *Store) ListImages(ctx context.Context) ([]model.Image, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+imageColumns+` FROM images ORDER BY name, id`)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return collect(rows, scanImage)
}

// ImageUsers returns the names of the VMs that use the image.
func (s *Store) ImageUsers(ctx context.Context, id string) ([]string, error) {
	return s.names(ctx, `SELECT name FROM vms WHERE image_id = ? ORDER BY name`, id)
}
