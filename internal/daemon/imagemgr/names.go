package imagemgr

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// debianName is the name of what is made from Debian's packages; a suite may
// follow after a colon.
const debianName = "debian"

// suiteOf returns the Debian suite that a name asks for ("" is the default one).
// known is false for names that nothing can be pulled for.
func suiteOf(name string) (suite string, known bool, err error) {
	base, suite, versioned := strings.Cut(name, ":")
	if base != debianName {
		return "", false, nil
	}
	if versioned {
		err = debian.CheckSuite(suite)
	}
	return suite, true, err
}

// catalogPrefix begins the names of images that a catalog has. Without it a name is one
// of Docker Hub's, which no catalog can take.
const catalogPrefix = "catalog:"

// offered returns what a catalog calls an image of that name; false if the name does not
// say that one has it.
func offered(name string) (string, bool) { return strings.CutPrefix(name, catalogPrefix) }

// saysWhat reports whether the name of an image says what it is made from.
func saysWhat(name string) bool {
	_, debians, _ := suiteOf(name)
	_, catalogs := offered(name)
	return debians || catalogs || isBuilder(name)
}

// ownName refuses a name for something of the user's that says what to pull.
func ownName(kind, name string) error {
	if _, catalogs := offered(name); catalogs {
		if kind != "image" {
			return nil
		}
		return errdefs.Invalid("image name %q is taken: it means what a catalog has", name).
			WithHint("choose another name; Docker's image of that name is docker.io/library/%s", name)
	}
	if saysWhat(name) {
		return errdefs.Invalid("%s name %q is taken: it means what is made from Debian packages", kind, name).
			WithHint("choose another name")
	}
	return nil
}

// unknown is the error for a name that is neither here nor can be pulled.
func unknown(kind, name string, have []string) error {
	e := errdefs.NotFound("no %s %q", kind, name)
	candidates := append([]string{debianName}, have...)
	if near := model.Near(name, candidates); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, ", "))
	}
	if kind == "image" {
		return e.WithHint("banger image list shows what is there; %s and %s:SUITE can be pulled, or register your own with banger image register", debianName, debianName)
	}
	return e.WithHint("banger kernel list shows what is there; %s and %s:SUITE can be pulled, or import your own with banger kernel import", debianName, debianName)
}

// Hints for images that are not made here.
const (
	limitHint  = "what an image may have at most is in the configuration: images.max_size and images.max_files"
	offerHint  = "banger image catalog list shows what the catalogs have; which there are, images.catalogs in the configuration says"
	brokenHint = "pull another tag or digest; if no other tool reads this image either, tell whoever made it"
)

// explain says what to do about a pull that failed, where nothing below does. A plain
// name may be mistyped: it led to Docker Hub only because no image here has it.
func (s *Service) explain(ctx context.Context, pl plan, err error) error {
	class := errdefs.ClassOf(err)
	switch {
	case pl.debian != nil:
		return orTry(err, pullHint)
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return errdefs.Exhausted("%w", err).
			WithHint("free some space in the state directory (banger image cache prune --all), or set BANGER_STATE_DIR to a larger disk")
	case class == errdefs.ClassExhausted:
		return errdefs.Exhausted("%w", err).WithHint("%s", limitHint)
	case pl.offer != "":
		return orTry(err, offerHint)
	case class == errdefs.ClassNotFound || class == errdefs.ClassPermission || class == errdefs.ClassUnavailable || class == errdefs.ClassTimeout:
		if near := s.nearImages(ctx, pl); near != "" {
			return errdefs.New(class, "%w", err).WithHint("did you mean %s?", near)
		}
		return orTry(err, "check the reference, and whether this host reaches the registry")
	}
	return orTry(err, brokenHint)
}

// nearImages are names of images that a plan's looks like; "" where a host or a path is
// part of it.
func (s *Service) nearImages(ctx context.Context, pl plan) string {
	if pl.ref.Kind != oci.Registry || strings.ContainsAny(pl.From, "/@") {
		return ""
	}
	return strings.Join(model.Near(pl.From, append([]string{debianName}, s.imageNames(ctx)...)), ", ")
}

func (s *Service) imageNames(ctx context.Context) []string {
	images, err := s.Store.ListImages(ctx)
	if err != nil {
		return nil // only a hint is poorer
	}
	var names []string
	for _, i := range images {
		if i.Name != "" {
			names = append(names, i.Name)
		}
	}
	return names
}

func (s *Service) kernelNames(ctx context.Context) []string {
	kernels, err := s.Store.ListKernels(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, k := range kernels {
		if k.Name != "" {
			names = append(names, k.Name)
		}
	}
	return names
}

// spaceError wraps err and says what to do about a full disk.
func spaceError(err error, what string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errdefs.Exhausted("%s: %w", what, err).
			WithHint("free some space in the state directory, or set BANGER_STATE_DIR to a larger disk")
	}
	return errdefs.Wrap(err, "%s", what)
}

// orTry gives err a hint when nothing below has a better one. What was cancelled
// needs none.
func orTry(err error, hint string) error {
	if err == nil || errdefs.HintOf(err) != "" || errdefs.ClassOf(err) == errdefs.ClassCanceled {
		return err
	}
	return errdefs.New(errdefs.ClassOf(err), "%w", err).WithHint("%s", hint)
}

// inUse refuses to remove what VMs use.
func inUse(kind, name string, users []string, err error) error {
	if err != nil || len(users) == 0 {
		return err
	}
	return errdefs.Precondition("%s %q is used by %s", kind, name, strings.Join(users, ", ")).
		WithHint("delete them first: banger vm delete %s", strings.Join(users, " "))
}

// nobody is a Progress for those who do not care.
type nobody struct{}

func (nobody) Stage(string)               {}
func (nobody) Detail(string)              {}
func (nobody) Count(int64, int64, string) {}
