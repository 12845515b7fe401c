-- +goose Up
CREATE TABLE kernels (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    release    TEXT NOT NULL,
    vmlinux    TEXT NOT NULL,
    bzimage    TEXT NOT NULL,
    early_dir  TEXT NOT NULL,
    modules    TEXT NOT NULL,
    source     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
-- A kernel or image that was replaced while in use lives on without a name.
CREATE UNIQUE INDEX kernels_name ON kernels (name) WHERE name <> '';

CREATE TABLE images (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    managed    INTEGER NOT NULL,
    path       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    kernel_id  TEXT NOT NULL,
    config     TEXT NOT NULL,
    digest     TEXT NOT NULL,
    source     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX images_name ON images (name) WHERE name <> '';

CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    state      TEXT NOT NULL,
    image_id   TEXT NOT NULL REFERENCES images (id),
    image_ref  TEXT NOT NULL,
    kernel_id  TEXT NOT NULL REFERENCES kernels (id),
    spec       TEXT NOT NULL,
    vmm_uid    INTEGER NOT NULL,
    boot_id    TEXT NOT NULL,
    last_error TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL
) STRICT;
CREATE INDEX vms_image ON vms (image_id);
CREATE INDEX vms_kernel ON vms (kernel_id);
CREATE UNIQUE INDEX vms_vmm_uid ON vms (vmm_uid) WHERE vmm_uid <> 0;

-- +goose Down
DROP TABLE vms;
DROP TABLE images;
DROP TABLE kernels;
