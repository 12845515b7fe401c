package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/client"
)

// Completion asks a running daemon for names. It never starts one, is silent when
// there is none, and never offers file names where a VM is meant.

// completeTimeout bounds what a press of the tab key waits for.
const completeTimeout = 500 * time.Millisecond

func complete(cmd *cobra.Command, flag string, fn cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
		panic(err) // only for a flag that does not exist: a mistake in this package
	}
}

func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// names completes from what fetch returns, leaving out the words already given.
func (a *app) names(fetch func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := a.quietClient()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completeTimeout)
		defer cancel()
		all, err := fetch(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all = slices.DeleteFunc(all, func(n string) bool { return slices.Contains(args, n) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeVMs completes any number of VM names; when states are given, only of
// VMs in one of those.
func (a *app) completeVMs(states ...string) cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		vms, err := c.ListVMs(ctx)
		var names []string
		for _, v := range vms {
			if len(states) == 0 || slices.Contains(states, v.GetState()) {
				names = append(names, v.GetName())
			}
		}
		return names, err
	})
}

func (a *app) completeImages(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		images, err := c.ListImages(ctx)
		var names []string
		for _, i := range images {
			names = append(names, i.GetName())
		}
		return names, err
	})(cmd, args, word)
}

func (a *app) completeKernels(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		kernels, err := c.ListKernels(ctx)
		var names []string
		for _, k := range kernels {
			names = append(names, k.GetName())
		}
		return names, err
	})(cmd, args, word)
}

func (a *app) completeNetworks(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		networks, err := c.ListNetworks(ctx)
		var names []string
		for _, n := range networks {
			names = append(names, n.GetName())
		}
		return names, err
	})(cmd, args, word)
}

// first limits a completion to the first argument.
func first(fn cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return fn(cmd, args, word)
	}
}

// pullable completes what `pull` can make.
func pullable() cobra.CompletionFunc { return first(fixed("debian")) }
