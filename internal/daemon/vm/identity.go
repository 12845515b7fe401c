package vm

import (
	"context"
	"errors"
	"path"
	"strings"
	"time"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

// identify tells a guest all of its identity: the agent takes what is not said as
// not there. What the request for the VM says comes before what its image says.
func (s *Service) identify(ctx context.Context, l *live, v *model.VM, image model.ImageConfig) error {
	conf := guest.Configure{
		Hostname: v.Name, BootID: v.BootID, UnixNanos: time.Now().UnixNano(),
		User: v.Spec.User, Workdir: v.Spec.Workdir, Dirs: absolutePaths(image.Volumes...),
	}
	if conf.User == "" {
		conf.User = image.User
	}
	if conf.Workdir == "" && image.Workdir != "" {
		// Authors count on it being made; a user who names one means one that is there.
		conf.Workdir = path.Join("/", image.Workdir)
		conf.Dirs = append(conf.Dirs, absolutePaths(conf.Workdir)...)
	}
	for _, kv := range image.Env {
		// What no program could be given is left out, as everywhere else.
		if i := strings.IndexByte(kv, '='); i > 0 && !strings.Contains(kv, "\x00") {
			conf.Env = append(conf.Env, kv)
		}
	}
	for k, val := range v.Spec.Env {
		conf.Env = append(conf.Env, k+"="+val)
	}
	if err := s.Caps.Guest(ctx, v, &conf); err != nil {
		return err
	}
	_, err := l.call(ctx, guest.Request{Kind: guest.KindConfigure, Configure: &conf})
	return err
}

// absolutePaths are those of an image's paths that can be made, from its root on.
func absolutePaths(paths ...string) []string {
	var out []string
	for _, p := range paths {
		if p = path.Join("/", p); p != "/" && len(p) < 4096 && !strings.Contains(p, "\x00") {
			out = append(out, p)
		}
	}
	return out
}

// imageConfig is how the image of a VM is to be run; nil while it has none.
func (s *Service) imageConfig(ctx context.Context, v *model.VM) (*bangerv1.ImageConfig, error) {
	if v.ImageID == "" {
		return nil, nil
	}
	image, err := s.Store.ImageByID(ctx, v.ImageID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil // the VM is going, too
	}
	if err != nil {
		return nil, err
	}
	c := image.Config
	return &bangerv1.ImageConfig{
		User: c.User, Workdir: c.Workdir, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
		StopSignal: c.StopSignal, ExposedPorts: c.ExposedPorts, Volumes: c.Volumes, Labels: c.Labels,
	}, nil
}
