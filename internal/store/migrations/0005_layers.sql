-- +goose Up
-- What an image from elsewhere was made of, as a JSON array; the lowest layer first.
ALTER TABLE images ADD COLUMN layers TEXT NOT NULL DEFAULT '[]';

-- +goose Down
ALTER TABLE images DROP COLUMN layers;
