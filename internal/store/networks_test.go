package store_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/store"
	"banger/internal/store/storetest"
)

func TestNetworks(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.CreateNetwork(ctx, "other"))
	must(t, s.CreateNetwork(ctx, "lab"))
	if err := s.CreateNetwork(ctx, "lab"); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("a taken name: %v", err)
	}
	on := func(id, name, network string) *model.VM {
		v := newVM(id, name)
		v.Network = network
		return v
	}
	must(t, s.InsertVM(ctx, on("aaaa00000001", "web", "lab"), 0))
	must(t, s.InsertVM(ctx, on("aaaa00000002", "db", "lab"), 0))
	must(t, s.InsertVM(ctx, on("aaaa00000003", "alone", ""), 0))
	if err := s.InsertVM(ctx, on("aaaa00000004", "lost", "lap"), 0); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(errdefs.HintOf(err), "lab") {
		t.Errorf("a VM for a network that is not there: %v, hint %q", err, errdefs.HintOf(err))
	}
	v, err := s.FindVM(ctx, "web")
	must(t, err)
	v.State = model.StateStopped
	must(t, s.UpdateVM(ctx, &v))
	if v, err = s.GetVM(ctx, v.ID); err != nil || v.Network != "lab" {
		t.Errorf("it is on %q, %v", v.Network, err)
	}
	all, err := s.ListNetworks(ctx)
	if want := []model.Network{{Name: "lab", VMs: []string{"db", "web"}}, {Name: "other"}}; err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("networks %+v, %v", all, err)
	}

	err = s.RemoveNetwork(ctx, "lab")
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || err.Error() != `network "lab" is used by db, web` || !strings.Contains(errdefs.HintOf(err), "banger vm delete db web") {
		t.Errorf("a network in use: %v, hint %q", err, errdefs.HintOf(err))
	}
	for _, err := range []error{s.RemoveNetwork(ctx, "lap"), s.NeedNetwork(ctx, "lap")} {
		if !errors.Is(err, errdefs.ErrNotFound) || err.Error() != `no network named "lap"` || !strings.Contains(errdefs.HintOf(err), "lab") {
			t.Errorf("an unknown network: %v, hint %q", err, errdefs.HintOf(err))
		}
	}
	must(t, s.NeedNetwork(ctx, "lab"))
	must(t, s.DeleteVM(ctx, "aaaa00000001"))
	must(t, s.DeleteVM(ctx, "aaaa00000002"))
	must(t, s.RemoveNetwork(ctx, "lab"))
	must(t, s.RemoveNetwork(ctx, "other"))
	if all, err := s.ListNetworks(ctx); err != nil || len(all) != 0 {
		t.Errorf("networks %+v, %v", all, err)
	}
}

// Doctor looks into the database of a daemon that is older, too.
func TestPeekIntoAnOlderDatabase(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "banger.db")
	s := storetest.Open(t, path)
	must(t, s.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian"}))
	must(t, s.Close())
	db, err := sql.Open("sqlite", path)
	must(t, err)
	_, err = db.Exec(`DROP INDEX vms_network; ALTER TABLE vms DROP COLUMN network_id; DROP TABLE networks`)
	must(t, errors.Join(err, db.Close()))
	if s, err = store.Peek(ctx, path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.KernelByName(ctx, "debian"); err != nil {
		t.Error(err)
	}
}

// Whatever the code does, the database lets no network go that a VM is on.
func TestNetworksAreHeldByTheirVMs(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "banger.db")
	s := storetest.Open(t, path)
	must(t, s.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian"}))
	must(t, s.PutImage(ctx, model.Image{ID: "i1", Name: "debian"}))
	must(t, s.CreateNetwork(ctx, "lab"))
	v := newVM("aaaa00000001", "web")
	v.Network = "lab"
	must(t, s.InsertVM(ctx, v, 0))
	db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(1)")
	must(t, err)
	defer db.Close()
	if _, err := db.Exec(`DELETE FROM networks`); err == nil {
		t.Error("the network is gone from under its VM")
	}
}
