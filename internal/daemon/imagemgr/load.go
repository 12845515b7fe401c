package imagemgr

import (
	"context"
	"path/filepath"
	"strings"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Load says which archive to make images of.
type Load struct {
	File     string // absolute path of an archive of an OCI layout, or of what docker save writes
	As       string // name of the image; empty: as the archive says, which may have several
	Platform string // as with Pull
	Force    bool   // take names from other images that have them
}

// Load makes images of those in an archive, and returns their names. When one cannot be
// made those before it stay.
func (s *Service) Load(ctx context.Context, l Load, p model.Progress) ([]string, error) {
	p.Stage("look")
	plans, err := s.planLoad(ctx, l)
	if err != nil {
		return nil, orTry(errdefs.Wrap(err, "load images"), brokenHint)
	}
	var names []string
	for _, pl := range plans {
		i, err := s.pull(ctx, pl, p)
		if err != nil && len(names) > 0 {
			err = errdefs.Wrap(err, "loaded %s, then", strings.Join(names, ", "))
		}
		if err != nil {
			return nil, err
		}
		names = append(names, i.Name)
	}
	return names, nil
}

// checkLoad checks what can be checked without looking into the file.
func checkLoad(l Load) (err error) {
	if err = checkAbsolute(l.File); err == nil && l.As != "" {
		_, err = furtherName(l.As)
	}
	if err == nil && l.Platform != "" {
		_, err = oci.ParsePlatform(l.Platform)
	}
	return err
}

// planLoad plans the pulls of the images in an archive.
func (s *Service) planLoad(ctx context.Context, l Load) ([]plan, error) {
	if err := checkLoad(l); err != nil {
		return nil, err
	}
	all, err := oci.Contents(ctx, l.File, oci.Options{Cache: s.cache, Limits: s.Sources.Layers})
	if err != nil {
		return nil, err
	}
	if l.As != "" && len(all) > 1 {
		return nil, errdefs.Invalid("%s has %d images, which cannot all be called %s", l.File, len(all), l.As).
			WithHint("leave --name away, or take one: banger image pull --name %s %s", l.As, all[0].Ref)
	}
	var plans []plan
	for _, found := range all {
		name := l.As
		if ref, err := oci.Parse(found.Name); name == "" && err == nil {
			name = imageNameOf(ref)
		}
		if name == "" {
			return nil, errdefs.Invalid("%s does not say what the image is called", filepath.Base(found.Ref.String())).
				WithHint("say it: banger image load --name NAME -i %s", l.File)
		}
		if name, err = furtherName(name); err != nil {
			return nil, err
		}
		pl, err := s.plan(Pull{From: found.Ref.String(), As: name, Platform: l.Platform, Force: l.Force})
		if err != nil {
			return nil, err
		}
		pl.look, pl.gentle = true, !l.Force
		plans = append(plans, pl)
	}
	return plans, nil
}
