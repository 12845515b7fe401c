package cli

import (
	"bufio"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/config"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// shape holds the flags that say what VM to make; create and run share them.
type shape struct {
	name, image, kernel string
	cpus                int
	memory, disk        string
	diskBPS             string
	diskIOPS            int64
	net, network        string
	driver              string
	noNAT               bool
	exposeHost          []uint
	nested              bool
	ports               []string
	publishAll          bool
	env                 []string
	envFiles            []string
	user, workdir       string
}

// registerSize adds the flags of a VM's size; otherwise is what holds without them.
func (s *shape) registerSize(cmd *cobra.Command, otherwise string) {
	f := cmd.Flags()
	f.IntVar(&s.cpus, "cpus", 0, "`number` of CPUs (default: "+otherwise+")")
	f.StringVar(&s.memory, "memory", "", "memory `size`, in MiB or as 2G (default: "+otherwise+")")
	f.StringVar(&s.disk, "disk", "", "disk `size`, like 16G (default: "+otherwise+")")
}

func (s *shape) register(cmd *cobra.Command, a *app) {
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "", "`name` of the VM (default: a friendly one is made up)")
	f.StringVar(&s.image, "image", "", "`image` to boot, pulled if it is not here (default: the configured one)")
	f.StringVar(&s.kernel, "kernel", "", "`kernel` to boot (default: the image's)")
	s.registerSize(cmd, "as configured")
	f.StringVar(&s.diskBPS, "disk-bps", "", "most `bytes` per second that the guest reads and writes on its disk, like 20M (default: no bound)")
	f.Int64Var(&s.diskIOPS, "disk-iops", 0, "most reads and writes per second: a `number` (default: no bound)")
	f.StringVar(&s.net, "net", "", "network: user (outbound only), bridge (an address and a name of its own, for daemons that are root) or none (default: the configured `mode`)")
	f.StringVar(&s.network, "network", "", "`name` of a network whose VMs see each other (see banger network; implies --net bridge)")
	f.BoolVar(&s.noNAT, "no-nat", false, "keep the VM from everything beyond this host (with --net bridge)")
	f.UintSliceVar(&s.exposeHost, "expose-host", nil, "let the VM reach this `port` of this host, at its gateway's address (with --net bridge; repeatable)")
	f.StringArrayVarP(&s.ports, "publish", "p", nil, "forward a TCP `port` of this host to the VM: HOSTPORT:GUESTPORT, GUESTPORT (any free port), ADDRESS:HOSTPORT:GUESTPORT")
	f.BoolVarP(&s.publishAll, "publish-all", "P", false, "forward each TCP port that the image exposes, from a free port of this host's loopback")
	f.BoolVar(&s.nested, "nested", false, "let the guest run VMs with KVM itself")
	f.StringVar(&s.driver, "driver", "", "`program` that runs the VM: qemu, firecracker or auto (default: the configured one)")
	f.StringArrayVarP(&s.env, "env", "e", nil, "set `KEY=VALUE` for commands; KEY alone takes the value from here")
	f.StringArrayVar(&s.envFiles, "env-file", nil, "read KEY=VALUE lines from `file`")
	f.StringVarP(&s.user, "user", "u", "", "`user` that runs commands (default: the image's)")
	f.StringVarP(&s.workdir, "workdir", "w", "", "`directory` that commands run in")
	complete(cmd, "image", a.completeImages)
	complete(cmd, "kernel", a.completeKernels)
	complete(cmd, "driver", fixed(config.DriverQEMU, config.DriverFirecracker, config.Auto))
	complete(cmd, "net", fixed(netModes...))
	complete(cmd, "network", a.completeNetworks)
	complete(cmd, "expose-host", cobra.NoFileCompletions)
}

// netModes are the values of --net.
var netModes = []string{string(model.NetUser), string(model.NetBridge), string(model.NetNone)}

// request checks the flags and turns them into a request; what was not given
// stays absent, so that the daemon's defaults apply.
func (s *shape) request(cmd *cobra.Command) (*bangerv1.CreateRequest, error) {
	req := &bangerv1.CreateRequest{
		Name: s.name, Image: s.image, Kernel: s.kernel, Net: s.net, Network: s.network, User: s.user, Workdir: s.workdir,
		Driver: s.driver, Nested: s.nested, NoNat: s.noNAT, PublishAll: s.publishAll,
	}
	given := cmd.Flags().Changed
	if given("name") {
		if err := model.CheckName(s.name); err != nil {
			return nil, err
		}
	}
	if given("cpus") {
		if s.cpus < 1 || s.cpus > 1<<16 {
			return nil, errdefs.Invalid("--cpus %d: at least 1 is needed", s.cpus).
				WithHint("choose a number up to what the host has, e.g. --cpus 2")
		}
		n := int32(s.cpus)
		req.Cpus = &n
	}
	if given("memory") {
		n, err := parseSize("memory", s.memory, config.MiB)
		if err != nil {
			return nil, err
		}
		n /= config.MiB
		req.MemoryMib = &n
	}
	if given("disk") {
		n, err := parseSize("disk", s.disk, 0)
		if err != nil {
			return nil, err
		}
		req.DiskBytes = &n
	}
	if given("disk-bps") {
		n, err := parseSize("disk-bps", s.diskBPS, 0)
		if err != nil {
			return nil, err
		}
		req.DiskBytesPerSecond = n
	}
	if given("disk-iops") {
		if s.diskIOPS < 1 {
			return nil, errdefs.Invalid("--disk-iops %d: more than zero is needed", s.diskIOPS).WithHint("e.g. --disk-iops 1000, or leave it out for no bound")
		}
		req.DiskOpsPerSecond = s.diskIOPS
	}
	if given("network") {
		if err := model.CheckNetworkName(s.network); err != nil {
			return nil, err
		}
	}
	for _, port := range s.exposeHost {
		if port == 0 || port > math.MaxUint16 {
			return nil, errdefs.Invalid("--expose-host %d is not a port", port).WithHint("choose one between 1 and 65535")
		}
		req.ExposeHost = append(req.ExposeHost, uint32(port))
	}
	if given("net") && !slices.Contains(netModes, s.net) {
		return nil, errdefs.Invalid("--net %q is not a network mode", s.net).WithHint("use --net user, --net bridge or --net none")
	}
	if drivers := []string{config.DriverQEMU, config.DriverFirecracker, config.DriverFake, config.Auto}; given("driver") && !slices.Contains(drivers, s.driver) {
		return nil, errdefs.Invalid("--driver %q is no driver", s.driver).WithHint("use --driver qemu, --driver firecracker or --driver auto")
	}
	if given("workdir") && !strings.HasPrefix(s.workdir, "/") {
		return nil, errdefs.Invalid("--workdir %q is not absolute", s.workdir).WithHint("write the whole path, e.g. --workdir /srv")
	}
	var err error
	if req.Image, err = absoluteImage(s.image); err != nil {
		return nil, err
	}
	if req.Ports, err = wirePorts(s.ports, model.ParsePort); err != nil {
		return nil, err
	}
	req.Env, err = readEnv(s.env, s.envFiles)
	return req, err
}

// parseSize reads a size in bytes that must be positive. A number without unit
// counts in bare bytes, or is refused when bare is 0.
func parseSize(flag, text string, bare int64) (int64, error) {
	hint := "write a number with M, G or T, e.g. --" + flag + " 2G"
	if strings.HasPrefix(strings.TrimSpace(text), "-") {
		return 0, errdefs.Invalid("--%s %s: more than zero is needed", flag, text).WithHint("%s", hint)
	}
	plain := strings.Trim(text, "0123456789") == "" && text != ""
	if plain && bare == 0 && strings.Trim(text, "0") != "" {
		return 0, errdefs.Invalid("--%s %s has no unit", flag, text).WithHint("%s", hint)
	}
	if plain && bare == config.MiB {
		text += "M"
	}
	size, err := config.ParseSize(text)
	if err != nil {
		return 0, errdefs.Invalid("--%s: %w", flag, err).WithHint("%s", hint)
	}
	if size.Bytes() < config.MiB {
		return 0, errdefs.Invalid("--%s %s: more than zero is needed", flag, strings.TrimSuffix(text, "M")).WithHint("%s", hint)
	}
	return size.Bytes(), nil
}

// maxEnvFile bounds an --env-file, in bytes.
const maxEnvFile = 1 << 20

// readEnv gathers the environment: files first, so that flags win.
func readEnv(flags, files []string) ([]string, error) {
	var env []string
	for _, file := range files {
		lines, err := readEnvFile(file)
		if err != nil {
			return nil, err
		}
		env = append(env, lines...)
	}
	for _, kv := range flags {
		kv, ok, err := envEntry(kv)
		if err != nil {
			return nil, errdefs.Wrap(err, "--env")
		}
		if ok {
			env = append(env, kv)
		}
	}
	return env, nil
}

// envEntry completes "KEY" from our own environment; ok is false when it is not
// set there, as with a shell that exports nothing.
func envEntry(kv string) (entry string, ok bool, err error) {
	key, _, assigned := strings.Cut(kv, "=")
	if key == "" || strings.ContainsAny(key, " \t\x00") || strings.Contains(kv, "\x00") {
		return "", false, errdefs.Invalid("%q is not KEY=VALUE", kv).WithHint("write --env NAME=value, or --env NAME to pass yours on")
	}
	if assigned {
		return kv, true, nil
	}
	value, set := os.LookupEnv(key)
	return key + "=" + value, set, nil
}

func readEnvFile(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fileErr("read the environment file", file, err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || info.IsDir() || info.Size() > maxEnvFile {
		return nil, errdefs.Invalid("read the environment file %s: not a file of at most 1 MiB", file).
			WithHint("name a file of KEY=VALUE lines")
	}
	var env []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvFile)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		kv, ok, err := envEntry(line)
		if err != nil {
			return nil, errdefs.Wrap(err, "%s:%d", file, n)
		}
		if ok {
			env = append(env, kv)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fileErr("read the environment file", file, err)
	}
	return env, nil
}

// fileErr classifies a failure with a file of the user's.
func fileErr(what, path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errdefs.NotFound("%s: %s does not exist", what, path).WithHint("check the path")
	case errors.Is(err, fs.ErrPermission):
		return errdefs.Permission("%s: %s cannot be read: %w", what, path, err).WithHint("check its permissions: ls -ld %s", path)
	}
	return errdefs.Wrap(err, "%s: %s", what, path)
}

// absolute makes a path absolute, which fails when our directory is gone.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", errdefs.Invalid("resolve %q: %w", path, err).WithHint("go to a directory that exists, or write the whole path")
	}
	return abs, nil
}

// parseTail reads --tail: a positive size, in bytes when it has no unit.
func parseTail(text string) (int64, error) {
	size, err := config.ParseSize(text)
	if err != nil || size <= 0 {
		return 0, errdefs.Invalid("--tail %q is not a size above zero", text).WithHint("e.g. --tail 64K")
	}
	return size.Bytes(), nil
}
