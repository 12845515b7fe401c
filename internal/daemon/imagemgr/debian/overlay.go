package debian

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// overlayFile is one file or symbolic link of an overlay; root owns it.
type overlayFile struct {
	name string // without leading slash
	mode int64
	data string
	link string // makes it a symbolic link
}

// writeOverlay writes the files as a tar archive, with the directories that
// packages may not have made.
func writeOverlay(dst string, files []overlayFile, now time.Time) (err error) {
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	made := map[string]bool{".": true, "etc": true, "var": true, "etc/sudoers.d": true}
	for _, o := range files {
		for _, dir := range parents(o.name) {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: now}); err != nil {
				return fmt.Errorf("write overlay: %w", err)
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: o.name, Mode: o.mode, Size: int64(len(o.data)), ModTime: now}
		if o.link != "" {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: o.name, Linkname: o.link, Mode: 0o777, ModTime: now}
		}
		if strings.HasSuffix(o.name, ".updated") {
			h.ModTime = now.Add(time.Hour)
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write overlay: %w", err)
		}
		if _, err := io.WriteString(tw, o.data); err != nil {
			return fmt.Errorf("write overlay: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("write overlay: %w", err)
	}
	return nil
}

// parents lists the directories above name, outermost first.
func parents(name string) []string {
	var out []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		out = append([]string{dir}, out...)
	}
	return out
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
