-- +goose Up
-- A VM's address goes with its row, in the same moment.
CREATE TABLE leases (
    vm_id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    addr  TEXT NOT NULL,
    tap   TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX leases_addr ON leases (addr) WHERE addr <> '';
CREATE UNIQUE INDEX leases_tap ON leases (tap) WHERE tap <> '';

-- One row at most: what is on the host, as JSON.
CREATE TABLE hostnet (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    record TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE hostnet;
DROP TABLE leases;
