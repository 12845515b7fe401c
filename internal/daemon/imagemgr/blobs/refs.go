package blobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// refLimit is how large a file in refs may be, in bytes.
const refLimit = 1 << 20

// Ref is what a reference led to when it was last resolved. It is a memory, no claim:
// the tag may have moved since, and the blobs may have been pruned.
type Ref struct {
	Name  string    `json:"name"`  // the key, as people read it
	Top   Digest    `json:"top"`   // of the index or manifest that the registry names
	Blobs []Digest  `json:"blobs"` // all that belongs to the image, Top included
	Seen  time.Time `json:"seen"`  // when that was so
}

func (c *Cache) refFile(name string) string {
	return filepath.Join(c.refDir(), Of([]byte(name)).Hex()+".json")
}

// Ref returns what is known of a reference. A record that cannot be read is none.
func (c *Cache) Ref(name string) (Ref, bool) {
	r, err := readRef(c.refFile(name))
	return r, err == nil && r.Name == name
}

func readRef(file string) (Ref, error) {
	fi, err := os.Lstat(file)
	if err != nil {
		return Ref{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > refLimit {
		return Ref{}, fmt.Errorf("%s is no record of a reference", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return Ref{}, err
	}
	var r Ref
	if err := json.Unmarshal(data, &r); err != nil {
		return Ref{}, fmt.Errorf("%s: %w", file, err)
	}
	for _, d := range append(r.Blobs, r.Top) {
		if _, err := ParseDigest(string(d)); err != nil {
			return Ref{}, fmt.Errorf("%s: %w", file, err)
		}
	}
	return r, nil
}

// PutRef replaces what is known of a reference.
func (c *Cache) PutRef(r Ref) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(c.refDir(), scratchPrefix)
	if err != nil {
		return fmt.Errorf("note a reference: %w", err)
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), c.refFile(r.Name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("note a reference: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// refs returns all records that can be read, and the files of those that cannot.
func (c *Cache) refs() (all []Ref, broken []string, err error) {
	entries, err := os.ReadDir(c.refDir())
	if err != nil {
		return nil, nil, fmt.Errorf("list references: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		file := filepath.Join(c.refDir(), e.Name())
		switch r, err := readRef(file); {
		case err == nil:
			all = append(all, r)
		case !isMissing(err):
			broken = append(broken, file)
		}
	}
	return all, broken, nil
}
