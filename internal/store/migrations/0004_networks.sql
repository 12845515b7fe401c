-- +goose Up
CREATE TABLE networks (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- The network goes after the last VM that is on it.
ALTER TABLE vms ADD COLUMN network_id INTEGER REFERENCES networks (id) ON DELETE RESTRICT;
CREATE INDEX vms_network ON vms (network_id);

-- +goose Down
DROP INDEX vms_network;
ALTER TABLE vms DROP COLUMN network_id;
DROP TABLE networks;
