// Package storetest gives tests a real database, and the rows in it that a VM needs.
package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"testing"

	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
)

// The rows that the functions below make when they are not told otherwise.
const (
	KernelID = "k1"
	ImageID  = "i1"
	Name     = "debian" // of both
)

// New opens a database in a directory of the test's own.
func New(t testing.TB) *store.Store {
	t.Helper()
	return Open(t, filepath.Join(t.TempDir(), paths.DatabaseFile))
}

// Open opens or makes the database at path, whose directory exists. It is closed
// when the test ends; a test that plays a daemon's end may close it before.
func Open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, aside, err := store.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if aside != "" {
		t.Fatalf("the database was unreadable and lies in %s", aside)
	}
	return s
}

// Kernel puts a kernel; an ID and a name that are empty are the usual ones.
func Kernel(t testing.TB, s *store.Store, k model.Kernel) model.Kernel {
	t.Helper()
	usual(&k.ID, KernelID)
	usual(&k.Name, Name)
	if err := s.PutKernel(context.Background(), k); err != nil {
		t.Fatal(err)
	}
	return k
}

// Image puts an image; an ID and a name that are empty are the usual ones.
func Image(t testing.TB, s *store.Store, i model.Image) model.Image {
	t.Helper()
	usual(&i.ID, ImageID)
	usual(&i.Name, Name)
	if err := s.PutImage(context.Background(), i); err != nil {
		t.Fatal(err)
	}
	return i
}

// VM inserts a VM, whose name must be set: a stopped one of the usual image and
// kernel, with an id that follows from the name, as far as v does not say otherwise.
func VM(t testing.TB, s *store.Store, v model.VM) model.VM {
	t.Helper()
	sum := sha256.Sum256([]byte(v.Name))
	usual(&v.ID, hex.EncodeToString(sum[:6]))
	usual(&v.ImageID, ImageID)
	usual(&v.ImageRef, Name)
	usual(&v.KernelID, KernelID)
	usual(&v.State, model.StateStopped)
	if err := s.InsertVM(context.Background(), &v, 0); err != nil {
		t.Fatal(err)
	}
	return v
}

func usual[S ~string](field *S, value S) {
	if *field == "" {
		*field = value
	}
}
