package model

import "net/netip"

// DNSDomain is the domain of the names of VMs: a VM called web is web.vm.
const DNSDomain = "vm"

// LinkOwner begins the alias of every network device that a daemon makes; what follows
// says which daemon.
const LinkOwner = "banger "

// Lease is what belongs to a VM on the bridge while it exists (its address) and
// while it runs (its tap). The tap is here and not in handles.json alone: a tap's
// name cannot be derived from the VM.
type Lease struct {
	VMID string
	Addr netip.Addr // IPv4; the IPv6 and hardware addresses follow from it
	Tap  string     // empty: none
}

// HostNet is what must outlive the daemon about the host's network. Nothing of it
// can be derived again.
type HostNet struct {
	ID       string       `json:"id"`       // random, made once: whose the devices are
	Prefix4  netip.Prefix `json:"prefix4"`  // of the guests and the host's address among them
	Prefix6  netip.Prefix `json:"prefix6"`  // a /64 of a unique local prefix (RFC 4193)
	Settings []Setting    `json:"settings"` // kernel switches that were changed, with what they were
	Up       bool         `json:"up"`       // something of ours is on the host, or may be
	Bridge   string       `json:"bridge"`   // the bridge's name while Up
}

// Setting is a switch of the kernel's network that was set.
type Setting struct {
	Key  string `json:"key"` // below /proc/sys/net, e.g. "ipv4/ip_forward"
	Was  string `json:"was"`
	Want string `json:"want"`
}
