package imagemgr

import (
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

func TestManageHandlers(t *testing.T) {
	w := newWorld(t)
	h, ctx, dir := w.s.ImageHandlers(), t.Context(), t.TempDir()
	src := w.registered("mine", "there")
	w.vm("box", src, w.kernel("debian"))
	w.disk(of(ext4Tree(t, "after")))

	tag, err := h.Tag(ctx, connect.NewRequest(&bangerv1.TagImageRequest{Source: "mine", Name: "also"}))
	if err != nil || tag.Msg.Name != "also" || tag.Msg.Managed {
		t.Errorf("tag: %v, %v", tag, err)
	}
	op := func(what, subject string) func(*connect.Response[bangerv1.Operation], error) string {
		return func(op *connect.Response[bangerv1.Operation], err error) string {
			t.Helper()
			if err != nil || op.Msg.Kind != what || op.Msg.Subject != subject || op.Msg.Error != nil {
				t.Fatalf("%s: %v, %v", what, op, err)
			}
			return op.Msg.Result
		}
	}
	file := dir + "/out.tar"
	if got := op("image.save", "mine")(h.Save(ctx, connect.NewRequest(&bangerv1.SaveImageRequest{Name: "mine", To: "oci-archive:" + file}))); !strings.HasPrefix(got, "sha256:") {
		t.Errorf("saved as %q", got)
	}
	if got := op("image.load", file)(h.Load(ctx, connect.NewRequest(&bangerv1.LoadImagesRequest{File: file, As: "loaded"}))); got != "loaded" {
		t.Errorf("loaded %q", got)
	}
	id := op("image.promote", "golden")(h.Promote(ctx, connect.NewRequest(&bangerv1.PromoteRequest{Vm: "box", Name: "golden"})))
	if i := w.image("golden"); i.ID != id {
		t.Errorf("promoted %q, not %+v", id, i)
	}
	pruned, err := h.Prune(ctx, connect.NewRequest(&bangerv1.PruneImagesRequest{All: true, DryRun: true}))
	if err != nil || len(pruned.Msg.Images) != 2 || pruned.Msg.Bytes == 0 || pruned.Msg.Images[0].UsedBytes == 0 {
		t.Errorf("prune: %v, %v", pruned, err)
	}

	bad := map[string]error{}
	_, bad["tag"] = h.Tag(ctx, connect.NewRequest(&bangerv1.TagImageRequest{Source: "mine"}))
	_, bad["save"] = h.Save(ctx, connect.NewRequest(&bangerv1.SaveImageRequest{Name: "mine", To: "oci:relative"}))
	_, bad["load"] = h.Load(ctx, connect.NewRequest(&bangerv1.LoadImagesRequest{File: "relative"}))
	_, bad["push"] = h.Push(ctx, connect.NewRequest(&bangerv1.PushImageRequest{Name: "mine"}))
	_, bad["promote"] = h.Promote(ctx, connect.NewRequest(&bangerv1.PromoteRequest{Vm: "box", Image: "mine", Name: "x"}))
	for what, err := range bad {
		if err := api.FromConnect(err); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
