package imagemgr

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/daemon/imagemgr/outfile"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// What is saved is made where the user wants it, beside the target. A note in a staging
// directory of ours says where, for as long as it takes: Restore removes what a crash has
// left there.

// target says how to write to where the user wants something. What it returns is called
// when that is done, or has failed.
func (s *Service) target(replace bool) (outfile.Options, func(), error) {
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return outfile.Options{}, nil, err
	}
	return outfile.Options{
		Replace: replace,
		Note: func(elsewhere string) error {
			return s.step("note", func() error { return noteElsewhere(dir, elsewhere) })
		},
		Publish: func(do func() error) error { return s.step("publish", do) },
	}, remove, nil
}

// noteElsewhere notes, on the disk, what is made elsewhere for a staging directory.
func noteElsewhere(staging, elsewhere string) error {
	f, err := os.OpenFile(filepath.Join(staging, paths.ElsewhereFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return spaceError(err, "note what is written")
	}
	_, err = f.WriteString(elsewhere)
	if err = errors.Join(err, f.Sync(), f.Close(), outfile.Sync(staging)); err != nil {
		return spaceError(err, "note what is written")
	}
	return nil
}

// maxElsewhere bounds such a note, in bytes.
const maxElsewhere = 8 << 10

// removeElsewhere removes what a staging directory says was made elsewhere. A note that
// was not finished is of nothing: it is written first.
func removeElsewhere(staging string) error {
	f, err := os.Open(filepath.Join(staging, paths.ElsewhereFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	note, err := io.ReadAll(io.LimitReader(f, maxElsewhere))
	if err != nil {
		return fmt.Errorf("read what was made elsewhere: %w", err)
	}
	if dir := string(note); outfile.Made(dir) {
		return errdefs.Wrap(os.RemoveAll(dir), "remove what was made elsewhere")
	}
	return nil
}
