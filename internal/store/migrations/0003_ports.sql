-- +goose Up
-- Ports of the host that lead to one of a VM's. An empty address is the loopback.
CREATE TABLE ports (
    vm_id      TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    addr       TEXT NOT NULL,
    host_port  INTEGER NOT NULL,
    guest_port INTEGER NOT NULL,
    PRIMARY KEY (addr, host_port)
) STRICT;
CREATE INDEX ports_vm ON ports (vm_id);

-- The loopback address of a VM's own on which its forwarded ports have their numbers.
CREATE TABLE loopbacks (
    vm_id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    addr  TEXT NOT NULL UNIQUE
) STRICT;

-- +goose Down
DROP TABLE loopbacks;
DROP TABLE ports;
