-- +goose Up
-- A directory in a VM that a tree of the host was put into. What was sent of it is in
-- the VM's directory, under the id.
CREATE TABLE workspaces (
    id         TEXT PRIMARY KEY,
    vm_id      TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    guest_path TEXT NOT NULL,
    host_path  TEXT NOT NULL,
    state      TEXT NOT NULL,
    generation INTEGER NOT NULL,
    spec       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (vm_id, guest_path)
) STRICT;

-- +goose Down
DROP TABLE workspaces;
