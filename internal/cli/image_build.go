package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/workspace"
)

// buildOpts say what to build, and how.
type buildOpts struct {
	context   string // a directory; "-": there is none, and the Dockerfile is on stdin
	file      string // of the Dockerfile; empty: the one in the context
	names     []string
	args      []string // KEY=VALUE, or KEY
	contexts  []string // NAME=IMAGE
	target    string
	noCache   bool
	force     bool
	request   *bangerv1.CreateRequest // of the VM, but for its image
	buildArgs []string                // args, completed
	images    []namedImage            // contexts, taken apart
}

// namedImage is an image here under a name that a Dockerfile has for it.
type namedImage struct{ name, image string }

func newImageBuildCmd(a *app) *cobra.Command {
	opts, sh := buildOpts{}, shape{}
	c := &cobra.Command{
		Use:   "build -t NAME [-f FILE] CONTEXT",
		Short: "Build a Dockerfile in a VM of its own",
		Long: `Build makes an image as a Dockerfile says, and prints its names. It is built by buildah
in a VM that is deleted afterwards, however that ends; nothing of the build runs here. What
buildah says goes to stderr.

CONTEXT is the directory that COPY and ADD take files from. All of it is sent, but for what
FILE.dockerignore leaves out, or else the .dockerignore in it; links in it stay links, and
everything belongs to root. FILE may lie anywhere. It is CONTEXT/Dockerfile, else
CONTEXT/Containerfile; with "-" in place of it, or of CONTEXT, the Dockerfile is read from
stdin. Without CONTEXT there is nothing to copy.

The VM pulls what FROM names itself, over its network, with the mirrors of the
configuration and without credentials. --build-context gives an image that is here to FROM
and COPY --from in its place.

A name that a built image has goes over to the new one. One that another image has is
refused, unless --force. Layers are not kept from one build to the next.

When the build fails the exit code is buildah's, which is that of the command that RUN ran.`,
		Example: `  banger image build -t mine .
  banger image build -t mine:1 -t mine:latest -f docker/Dockerfile --build-arg VERSION=1 .
  banger image build -t mine --target test --memory 4G .
  banger image pull registry.example/private/base
  banger image build -t mine --build-context base=registry.example/private/base .
  printf 'FROM alpine\nRUN apk add curl\n' | banger image build -t curl -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usageTry(cmd.CommandPath()+" -t NAME .", "%q needs one CONTEXT", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.context = args[0]
			if err := opts.check(cmd, a); err != nil {
				return err
			}
			if opts.request, err = sh.request(cmd); err != nil {
				return err
			}
			return runBuild(cmd.Context(), a, opts)
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&opts.names, "tag", "t", nil, "`name` of the image (repeatable)")
	f.StringVarP(&opts.file, "file", "f", "", "the Dockerfile, a `file` (default: the one in CONTEXT)")
	f.StringArrayVar(&opts.args, "build-arg", nil, "set an ARG, as `KEY=VALUE`; KEY alone takes the value from here (repeatable)")
	f.StringArrayVar(&opts.contexts, "build-context", nil, "use an image that is here under a name of the Dockerfile's: `NAME=IMAGE` (repeatable)")
	f.StringVar(&opts.target, "target", "", "build up to this `stage`")
	f.BoolVar(&opts.noCache, "no-cache", false, "as docker build has it; nothing is kept between builds anyway")
	f.BoolVar(&opts.force, "force", false, "take names from images that were not built")
	sh.registerSize(c, "as configured")
	f.StringVar(&sh.net, "net", "", "network of the VM: user, bridge or none (default: the configured `mode`)")
	complete(c, "net", fixed(netModes...))
	return c
}

var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$`)

// check refuses what makes no sense, before anything is looked at.
func (o *buildOpts) check(cmd *cobra.Command, a *app) error {
	stdin := o.context == "-" || o.file == "-"
	switch {
	case len(o.names) == 0:
		return usageTry(cmd.CommandPath()+" -t NAME "+o.context, "%q needs a name for the image", cmd.CommandPath())
	case o.context == "-" && o.file != "":
		return usageErr(cmd, "with CONTEXT - the Dockerfile is read from stdin: --file has no meaning")
	case stdin && a.inTTY:
		return usageErr(cmd, "stdin is a terminal, not a Dockerfile")
	}
	for _, arg := range o.args {
		kv, set, err := envEntry(arg)
		if err != nil {
			return errdefs.Invalid("--build-arg %q is not KEY=VALUE", arg).WithHint("write --build-arg NAME=value, or --build-arg NAME to pass yours on")
		}
		if set {
			o.buildArgs = append(o.buildArgs, kv)
		}
	}
	seen := map[string]bool{}
	for _, given := range o.contexts {
		name, image, _ := strings.Cut(given, "=")
		switch {
		case !contextName.MatchString(name) || image == "":
			return errdefs.Invalid("--build-context %q is not NAME=IMAGE", given).WithHint("for FROM base, for example: --build-context base=mine")
		case seen[name]:
			return errdefs.Invalid("--build-context %s is given twice", name).WithHint("say which image it is to be")
		}
		seen[name] = true
		o.images = append(o.images, namedImage{name, image})
	}
	return nil
}

// buildInput is what goes into a build.
type buildInput struct {
	dockerfile []byte
	tree       *workspace.Tree // nil: there is no context
}

// maxDockerfile bounds a Dockerfile, and the rules of what is left out, in bytes.
const maxDockerfile = 4 << 20

// read looks at all that is sent, before anything is made.
func (o *buildOpts) read(ctx context.Context, a *app) (in buildInput, err error) {
	if o.context == "-" {
		in.dockerfile, err = readBounded(a.in, "the Dockerfile on stdin")
		return in, err
	}
	if st, err := os.Stat(o.context); err != nil {
		return in, fileErr("build", o.context, err)
	} else if !st.IsDir() {
		return in, errdefs.Invalid("build: %s is not a directory", o.context).WithHint("a Dockerfile goes with -f: banger image build -t %s -f %s .", o.names[0], o.context)
	}
	file := o.file
	if file == "" {
		if file, err = dockerfileIn(o.context); err != nil {
			return in, err
		}
	}
	if file == "-" {
		in.dockerfile, err = readBounded(a.in, "the Dockerfile on stdin")
	} else {
		in.dockerfile, err = readFileBounded(file)
	}
	if err != nil {
		return in, err
	}
	ignore, err := ignoreRules(file, o.context)
	if err != nil {
		return in, err
	}
	in.tree, err = workspace.InspectContext(ctx, o.context, ignore)
	return in, err
}

// dockerfileIn is the Dockerfile in a directory.
func dockerfileIn(dir string) (string, error) {
	for _, name := range []string{"Dockerfile", "Containerfile"} {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			return file, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fileErr("build", file, err)
		}
	}
	return "", errdefs.NotFound("build: there is no Dockerfile in %s", dir).WithHint("say where it is: -f FILE")
}

// ignoreRules are those of the Dockerfile, if it has any, else those of the context.
func ignoreRules(dockerfile, dir string) (*workspace.Ignore, error) {
	for _, file := range []string{dockerfile + ".dockerignore", filepath.Join(dir, ".dockerignore")} {
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			continue
		}
		rules, err := readFileBounded(file)
		if err != nil {
			return nil, err
		}
		ignore, err := workspace.ParseIgnore(strings.NewReader(string(rules)))
		return ignore, errdefs.Wrap(err, "%s", file)
	}
	return nil, nil
}

func readFileBounded(file string) ([]byte, error) {
	st, err := os.Stat(file) // a pipe that nobody writes to would be waited for, for ever
	if err != nil {
		return nil, fileErr("build", file, err)
	}
	if !st.Mode().IsRegular() {
		return nil, errdefs.Invalid("build: %s is not a file", file).WithHint("say where the Dockerfile is: -f FILE, or -f - for stdin")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fileErr("build", file, err)
	}
	defer func() { _ = f.Close() }()
	return readBounded(f, file)
}

func readBounded(r io.Reader, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	switch {
	case err != nil:
		return nil, errdefs.Wrap(err, "build: read %s", what)
	case len(data) > maxDockerfile:
		return nil, errdefs.Invalid("build: %s has more than %s", what, humanBytes(maxDockerfile)).WithHint("a Dockerfile, and the rules of a .dockerignore, are text")
	case len(strings.TrimSpace(string(data))) == 0 && !strings.HasSuffix(what, ".dockerignore"):
		return nil, errdefs.Invalid("build: %s is empty", what).WithHint("a Dockerfile begins with FROM")
	}
	return data, nil
}

// runBuild builds, and prints what was made.
func runBuild(ctx context.Context, a *app, opts buildOpts) error {
	in, err := opts.read(ctx, a)
	if err != nil {
		return err
	}
	if in.tree != nil {
		for _, n := range in.tree.Notices {
			a.note("%s", n)
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	b := &builder{app: a, client: c, opts: opts, in: in}
	names, err := b.build(ctx)
	a.status.clear()
	if err != nil {
		return interrupted(err)
	}
	fmt.Fprintln(a.out, names)
	return nil
}
