// Package api is what travels between clients and the daemon: the generated
// Connect code in bangerv1, the error mapping, and the HTTP Upgrade endpoints
// that carry byte streams.
//
// A stream endpoint is POST with "Connection: Upgrade" and "Upgrade: banger-stream".
// The daemon answers 101, or an ordinary HTTP error whose JSON body is an
// ErrorDetail. After the 101 the connection carries the frames of package guest:
// the client sends a request frame first, and the daemon forwards what follows
// without looking at it.
package api

import "net/url"

// Protocol is the version of this API. The daemon and the CLI must agree on it.
const Protocol = 1

// UpgradeProtocol is the value of the Upgrade header.
const UpgradeProtocol = "banger-stream"

// Headers. The daemon answers every request with the first two; a CLI that sees
// another build restarts a daemon that it started itself. The third is there while
// Info has notices, so that nobody need ask when there are none.
const (
	HeaderVersion  = "Banger-Version"
	HeaderProtocol = "Banger-Protocol"
	HeaderNotices  = "Banger-Notices"
)

// Patterns of the stream endpoints, as net/http routes them.
const (
	StreamPattern    = "/v1/vms/{ref}/stream"
	WorkspacePattern = "/v1/vms/{ref}/workspace"
)

// StreamPath is the endpoint that opens a stream to the agent of a VM. Allowed
// first requests: ping, exec, copy-in, copy-out, stat, wait-system, bench-spawn, mount, ssh.
func StreamPath(ref string) string { return "/v1/vms/" + url.PathEscape(ref) + "/stream" }

// WorkspacePath is like StreamPath for what fills or reads a workspace: copy-in,
// workspace-put, workspace-changes; one at a time per VM.
func WorkspacePath(ref string) string { return "/v1/vms/" + url.PathEscape(ref) + "/workspace" }
