package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/store"
	"banger/internal/store/storetest"
)

func seeded(t *testing.T) *store.Store {
	t.Helper()
	s := storetest.New(t)
	storetest.Kernel(t, s, model.Kernel{})
	storetest.Image(t, s, model.Image{Managed: true, Config: model.ImageConfig{User: "dev"}})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newVM(id, name string) *model.VM {
	return &model.VM{
		ID: id, Name: name, State: model.StateCreating, ImageID: "i1", ImageRef: "debian", KernelID: "k1",
		Spec: model.VMSpec{CPUs: 2, MemoryMiB: 512, Env: map[string]string{"A": "b"}, AutoRemove: true},
	}
}

func TestVMRoundTrip(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	v := newVM("aaaa00000001", "calm-otter")
	must(t, s.InsertVM(ctx, v, 0))
	v.State, v.BootID, v.LastError = model.StateRunning, "boot", "none"
	must(t, s.UpdateVM(ctx, v))
	got, err := s.GetVM(ctx, v.ID)
	must(t, err)
	if fmt.Sprint(got) != fmt.Sprint(*v) {
		t.Errorf("read back\n%+v, want\n%+v", got, *v)
	}
	must(t, s.DeleteVM(ctx, v.ID))
	must(t, s.DeleteVM(ctx, v.ID))
	if _, err := s.GetVM(ctx, v.ID); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("deleted vm: %v", err)
	}
	if err := s.UpdateVM(ctx, v); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("update of a deleted vm: %v", err)
	}
}

func TestNamesAndReferences(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.InsertVM(ctx, newVM("aaaa00000001", "calm-otter"), 0))
	must(t, s.InsertVM(ctx, newVM("aaaa00000002", "bold-fox"), 0))
	must(t, s.InsertVM(ctx, newVM("bbbb00000003", "aaaa"), 0))
	if err := s.InsertVM(ctx, newVM("cccc00000004", "bold-fox"), 0); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("taken name: %v", err)
	}
	for ref, want := range map[string]string{
		"calm-otter": "aaaa00000001", "aaaa00000002": "aaaa00000002", "b": "bbbb00000003",
		"aaaa": "bbbb00000003", // a name wins over the ids it starts
	} {
		if v, err := s.FindVM(ctx, ref); err != nil || v.ID != want {
			t.Errorf("find %q: %s, %v; want %s", ref, v.ID, err, want)
		}
	}
	_, err := s.FindVM(ctx, "aaa")
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "calm-otter (aaaa00000001)") {
		t.Errorf("ambiguous reference: %v", err)
	}
	_, err = s.FindVM(ctx, "calm-oter")
	if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(errdefs.HintOf(err), "calm-otter") {
		t.Errorf("near name: %v, hint %q", err, errdefs.HintOf(err))
	}
	if _, err := s.FindVM(ctx, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("empty reference: %v", err)
	}
}

func TestImageThatWentMeanwhile(t *testing.T) {
	s := seeded(t)
	v := newVM("aaaa00000001", "calm-otter")
	v.ImageID = "gone"
	if err := s.InsertVM(context.Background(), v, 0); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
}

func TestUIDsAreUniqueAndReused(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := s.InsertVM(ctx, newVM(fmt.Sprintf("aaaa%08d", i), fmt.Sprintf("vm-%d", i)), 5000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := s.ListVMs(ctx)
	must(t, err)
	seen := map[int]bool{}
	for _, v := range all {
		if v.VMMUID < 5000 || v.VMMUID >= 5020 || seen[v.VMMUID] {
			t.Errorf("vm %s has uid %d", v.Name, v.VMMUID)
		}
		seen[v.VMMUID] = true
	}
	gone := all[7]
	must(t, s.DeleteVM(ctx, gone.ID))
	v := newVM("bbbb00000001", "again")
	must(t, s.InsertVM(ctx, v, 5000))
	if v.VMMUID != gone.VMMUID {
		t.Errorf("uid %d, want the freed %d", v.VMMUID, gone.VMMUID)
	}
}

func TestReplacedArtifactStaysWhileUsed(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.InsertVM(ctx, newVM("aaaa00000001", "calm-otter"), 0))
	must(t, s.PutImage(ctx, model.Image{ID: "i2", Name: "debian"}))
	i, err := s.ImageByName(ctx, "debian")
	must(t, err)
	if i.ID != "i2" {
		t.Errorf("debian is %s, want i2", i.ID)
	}
	if _, err := s.ImageByID(ctx, "i1"); err != nil {
		t.Errorf("image in use: %v", err)
	}
	if err := s.DeleteImage(ctx, "i1"); err == nil {
		t.Error("an image in use was deleted")
	}
	users, err := s.ImageUsers(ctx, "i1")
	must(t, err)
	if len(users) != 1 || users[0] != "calm-otter" {
		t.Errorf("users %v", users)
	}
	must(t, s.PutImage(ctx, model.Image{ID: "i3", Name: "debian"}))
	if _, err := s.ImageByID(ctx, "i2"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an unused replaced image stays: %v", err)
	}
	// The same content again, under the same id, while it is used.
	must(t, s.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian", Release: "6.1"}))
}

// No crash can come between a new kernel and the images that boot with it.
func TestImagesFollowAReplacedKernel(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.PutKernel(ctx, model.Kernel{ID: "o1", Name: "other"}))
	for id, kernel := range map[string]string{"mine": "k1", "others": "o1", "none": ""} {
		must(t, s.PutImage(ctx, model.Image{ID: id, Name: id, KernelID: kernel}))
	}
	must(t, s.PutKernel(ctx, model.Kernel{ID: "k2", Name: "debian"}))
	for id, want := range map[string]string{"mine": "k2", "others": "o1", "none": ""} {
		if i, err := s.ImageByID(ctx, id); err != nil || i.KernelID != want {
			t.Errorf("image %s prefers %q, %v; want %q", id, i.KernelID, err, want)
		}
	}
	if names, err := s.KernelImages(ctx, "k2"); err != nil || len(names) != 1 || names[0] != "mine" {
		t.Errorf("images that prefer k2: %v, %v", names, err)
	}
}

func TestReopenKeepsRows(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "dir with space ?#", "banger.db")
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	s := storetest.Open(t, path)
	must(t, s.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian"}))
	must(t, s.Close())
	if _, err := storetest.Open(t, path).KernelByName(ctx, "debian"); err != nil {
		t.Error(err)
	}
}

func TestCorruptDatabaseIsKeptAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	garbage := strings.Repeat("this is no database ", 1000)
	must(t, os.WriteFile(path, []byte(garbage), 0o600))
	s, aside, err := store.Open(context.Background(), path)
	must(t, err)
	defer func() { _ = s.Close() }()
	kept, err := os.ReadFile(aside)
	must(t, err)
	if string(kept) != garbage {
		t.Error("the corrupt database was changed")
	}
	if all, err := s.ListVMs(context.Background()); err != nil || len(all) != 0 {
		t.Errorf("fresh database: %v, %v", all, err)
	}
}

// Damage in a table that opening does not look at counts too.
func TestDamagedTableIsKeptAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	must(t, storetest.Open(t, path).Close())
	db, err := sql.Open("sqlite", path)
	must(t, err)
	var root, size int64
	must(t, db.QueryRow(`SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'vms'`).Scan(&root, &size))
	must(t, db.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("x", int(size))), (root-1)*size)
	must(t, errors.Join(err, f.Close()))
	s, aside, err := store.Open(context.Background(), path)
	must(t, err)
	defer func() { _ = s.Close() }()
	if aside == "" {
		t.Fatal("the damage was not noticed")
	}
	if all, err := s.ListVMs(context.Background()); err != nil || len(all) != 0 {
		t.Errorf("fresh database: %v, %v", all, err)
	}
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	must(t, storetest.Open(t, path).Close())
	db, err := sql.Open("sqlite", path)
	must(t, err)
	_, err = db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	must(t, err)
	must(t, db.Close())
	_, aside, err := store.Open(context.Background(), path)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" || aside != "" {
		t.Errorf("newer database: %v (aside %q)", err, aside)
	}
}

// On a full disk rows still come and go: whoever makes space deletes some.
func TestWritesOnAFullDisk(t *testing.T) {
	ctx := context.Background()
	dir, leave := disktest.Small(t, 16<<20)
	path := filepath.Join(dir, "banger.db")
	for round := range 3 {
		leave(1 << 20)
		s := storetest.Open(t, path)
		must(t, s.PutKernel(ctx, model.Kernel{ID: "k1", Name: "debian"}))
		must(t, s.PutImage(ctx, model.Image{ID: "i1", Name: "debian", Managed: true}))
		leave(0)
		for n := range 30 {
			v := newVM("aaaa00000001", "calm-otter")
			if err := s.InsertVM(ctx, v, 0); err != nil {
				t.Fatalf("round %d: insert %d: %v", round, n, err)
			}
			v.State = model.StateDeleting
			if err := s.UpdateVM(ctx, v); err != nil {
				t.Fatalf("round %d: update %d: %v", round, n, err)
			}
			if err := s.DeleteVM(ctx, v.ID); err != nil {
				t.Fatalf("round %d: delete %d: %v", round, n, err)
			}
		}
		// What nobody undoes does use it up, and then it is said.
		var err error
		for n := 0; err == nil && n < 1000; n++ {
			v := newVM(fmt.Sprintf("aaaa%08d", n), fmt.Sprint("otter-", n))
			v.Spec.Env["LARGE"] = strings.Repeat("x", 4000)
			err = s.InsertVM(ctx, v, 0)
		}
		if errdefs.ClassOf(err) != errdefs.ClassExhausted || errdefs.HintOf(err) == "" {
			t.Errorf("round %d: without end: %v", round, err)
		}
		leave(1 << 20)
		all, err := s.ListVMs(ctx)
		must(t, err)
		for _, v := range all {
			must(t, s.DeleteVM(ctx, v.ID))
		}
		must(t, s.Close())
	}
	leave(0)
	if s, _, err := store.Open(ctx, path); err == nil {
		must(t, s.Close())
	} else if errdefs.ClassOf(err) != errdefs.ClassExhausted {
		t.Errorf("opened without space: %v", err)
	}
}
