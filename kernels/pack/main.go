// Command pack packs a directory as a bundle, and prints what a catalog has to say of it:
//
//	go run ./kernels/pack -kind kernel -name NAME [-url URL] [-description TEXT] DIR OUT
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/vmlinux"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	kind := flag.String("kind", bundle.Kernel, "kernel or image")
	name := flag.String("name", "", "what it is pulled by")
	version := flag.String("version", "", "of an image; a kernel says which it is")
	url := flag.String("url", "", "where it will be, as the catalog says it (default: the name of OUT)")
	description := flag.String("description", "", "one line")
	flag.Parse()
	if flag.NArg() != 2 {
		return errors.New("usage: pack [flags] DIR OUT")
	}
	dir, out := flag.Arg(0), flag.Arg(1)
	if *version == "" && *kind == bundle.Kernel {
		release, err := releaseOf(dir)
		if err != nil {
			return err
		}
		*version = release
	}
	f, err := os.Create(out + ".new")
	if err != nil {
		return err
	}
	sum := &counter{sum: sha256.New()}
	m, err := bundle.Pack(context.Background(), io.MultiWriter(f, sum), bundle.Manifest{Kind: *kind, Name: *name, Version: *version}, dir)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return err
	}
	if *url == "" {
		*url = filepath.Base(out)
	}
	text, err := json.MarshalIndent(catalog.Entry{
		Kind: m.Kind, Name: m.Name, Arch: m.Arch, Digest: blobs.Digest("sha256:" + hex.EncodeToString(sum.sum.Sum(nil))), Size: sum.n,
		Unpacked: m.Unpacked(), URL: *url, Description: *description,
	}, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(text))
	return err
}

// counter counts and hashes what is written.
type counter struct {
	sum hash.Hash
	n   int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.sum.Write(p)
}

func releaseOf(dir string) (string, error) {
	path := filepath.Join(dir, bundle.Vmlinux)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		path = filepath.Join(dir, bundle.BzImage)
	}
	return vmlinux.Release(path)
}
