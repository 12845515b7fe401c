// Package lab holds the tests that need a host with working KVM, device-mapper and
// root: they run banger inside the lab, which is a VM of banger's with nested
// virtualisation (scripts/lab). They are built with the tag lab and driven from
// outside of it by the banger beside them.
//
// Everything in the lab is emulated twice where this host has no KVM, so a VM in it
// takes some twenty seconds to boot.
package lab
