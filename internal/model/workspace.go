package model

import "time"

// WorkspaceState is how far a workspace is.
type WorkspaceState string

// The states. What is preparing and nobody prepares was interrupted: it can be prepared
// again.
const (
	WorkspacePreparing WorkspaceState = "preparing"
	WorkspaceReady     WorkspaceState = "ready"
)

// Workspace is a directory in a VM that a tree of the host was put into.
type Workspace struct {
	ID         string // 12 lower-case hex digits, random
	VMID       string
	GuestPath  string // absolute; one workspace per VM and path
	HostPath   string // absolute; the root of the tree
	State      WorkspaceState
	Generation int64 // how often something was sent, or begun to be
	Spec       WorkspaceSpec
	CreatedAt  time.Time
	UpdatedAt  time.Time // when it was sent last
}

// WorkspaceSpec is what was asked for, and what the host's repository was then.
type WorkspaceSpec struct {
	Mode        string   `json:"mode"` // "default", "full", "metadata"
	TrackedOnly bool     `json:"tracked_only,omitempty"`
	Include     []string `json:"include,omitempty"` // globs of ignored files that are sent
	Depth       int      `json:"depth"`             // commits of history; 0: all
	From        string   `json:"from,omitempty"`    // what was checked out instead of the work tree
	Branch      string   `json:"branch,omitempty"`  // made in the guest
	ReadOnly    bool     `json:"read_only,omitempty"`
	User        string   `json:"user,omitempty"` // whose the files are; empty: root's
	Git         bool     `json:"git,omitempty"`
	Base        string   `json:"base,omitempty"` // the commit that was checked out; empty: none
	Head        string   `json:"head,omitempty"` // the branch in the guest, or a commit
}
