package client

import (
	"context"

	"banger/internal/api/bangerv1"
)

// ListWorkspaces returns the workspaces of a VM; of all with an empty ref.
func (c *Client) ListWorkspaces(ctx context.Context, ref string) ([]*bangerv1.Workspace, error) {
	res, err := call(ctx, c.workspaces.List, &bangerv1.ListWorkspacesRequest{Ref: ref})
	return res.GetWorkspaces(), err
}

// BeginWorkspace records that something is about to be sent into a workspace.
func (c *Client) BeginWorkspace(ctx context.Context, req *bangerv1.BeginWorkspaceRequest) (*bangerv1.Workspace, error) {
	return call(ctx, c.workspaces.Begin, req)
}

// FinishWorkspace records that it has arrived.
func (c *Client) FinishWorkspace(ctx context.Context, req *bangerv1.FinishWorkspaceRequest) (*bangerv1.Workspace, error) {
	return call(ctx, c.workspaces.Finish, req)
}

// WorkspaceManifest returns the list of the last FinishWorkspace; empty: there was none.
func (c *Client) WorkspaceManifest(ctx context.Context, id string) ([]byte, error) {
	res, err := call(ctx, c.workspaces.Manifest, &bangerv1.WorkspaceID{Id: id})
	return res.GetManifest(), err
}

// RemoveWorkspace forgets a workspace; its files stay.
func (c *Client) RemoveWorkspace(ctx context.Context, id string) error {
	_, err := call(ctx, c.workspaces.Remove, &bangerv1.WorkspaceID{Id: id})
	return err
}
