package config_test

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"banger/internal/config"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

func write(t *testing.T, text string) string {
	t.Helper()
	t.Setenv(paths.EnvLogLevel, "")
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestExampleEqualsDefault(t *testing.T) {
	text, err := os.ReadFile("../../docs/config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	l, err := config.Load(write(t, string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.Config, config.Default()) {
		t.Errorf("the example differs from the defaults:\n got %+v\nwant %+v", l.Config, config.Default())
	}
	// Every key must be in it: take the defaults away and it still fills all.
	var out strings.Builder
	if err := l.Show(&out, config.Host{CPUs: 8, MemoryBytes: 32 * config.GiB}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "# default") {
		t.Errorf("the example lacks a key:\n%s", out.String())
	}
}

func TestMissingAndEmptyFilesAreDefaults(t *testing.T) {
	t.Setenv(paths.EnvLogLevel, "")
	missing, err := config.Load(filepath.Join(t.TempDir(), "none.yaml"))
	if err != nil || missing.Exists || !reflect.DeepEqual(missing.Config, config.Default()) {
		t.Errorf("missing: %+v, %v", missing, err)
	}
	for _, text := range []string{"", "# nothing\n", "vm:\n", "vm: {}\n"} {
		l, err := config.Load(write(t, text))
		if err != nil || !l.Exists || !reflect.DeepEqual(l.Config, config.Default()) {
			t.Errorf("%q: %+v, %v", text, l.Config, err)
		}
	}
}

func TestLoadSetsValues(t *testing.T) {
	l, err := config.Load(write(t, "driver: fake\nvm:\n  cpus: 3\n  memory: 1.5G\n  stop_timeout: 1m30s\nlimits: {boots: 9}\nnetwork: {prefix: 10.20.0.0/16}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Driver, want.VM.CPUs, want.VM.Memory = config.DriverFake, 3, 1536*config.MiB
	want.VM.StopTimeout, want.Limits.Boots = config.Duration(90*time.Second), 9
	want.Network.Prefix = config.Prefix(netip.MustParsePrefix("10.20.0.0/16"))
	if !reflect.DeepEqual(l.Config, want) {
		t.Errorf("got %+v, want %+v", l.Config, want)
	}
}

func TestBadFiles(t *testing.T) {
	for _, tc := range []struct{ text, msg, hint string }{
		{"vm:\n  cpu: 2\n", "config: vm.cpu: unknown key (line 2)", "did you mean cpus?"},
		{"zzzzzz: 1\n", "config: zzzzzz: unknown key (line 1)", "keys here are driver, root_disk, log_level, vm, qemu, firecracker, network, dns, images, limits"},
		{"vm:\n  cpus: 0\n", `config: vm.cpus: must be "auto" or a whole number above zero, not "0" (line 2)`, ""},
		{"vm: {cpus: -1}\n", "config: vm.cpus: must be", ""},
		{"vm: {cpus: 999}\n", "config: vm.cpus: must be at most 256, not 999", ""},
		{"vm: {cpus: 1.5}\n", "config: vm.cpus: must be", ""},
		{"vm: {cpus: [1]}\n", "config: vm.cpus: needs one value", "remove the line"},
		{"vm:\n  cpus:\n", "config: vm.cpus: needs one value", "remove the line"},
		{"vm: {memory: lots}\n", `config: vm.memory: "lots" is not a size`, "512M or 2G"},
		{"vm: {memory: 0}\n", `config: vm.memory: must be "auto"`, ""},
		{"vm: {memory: 512}\n", "config: vm.memory: must be at least 64M, not 512", ""},
		{"vm: {disk: 1K}\n", "config: vm.disk: must be at least 64M", ""},
		{"vm: {disk: -1G}\n", "config: vm.disk:", ""},
		{"vm: {disk: 900T}\n", "config: vm.disk: must be at most 16T, not 900T", ""},
		{"vm: {net: lan}\n", `config: vm.net: must be user or bridge or none, not "lan"`, ""},
		{"vm: {image: ../x}\n", "config: vm.image:", ""},
		{"vm: {stop_timeout: 10}\n", `config: vm.stop_timeout: "10" is not a duration`, "90s or 5m"},
		{"vm: {stop_timeout: 0s}\n", "config: vm.stop_timeout: must be at least 1s", ""},
		{"vm: 3\n", "config: vm: must be a section", ""},
		{"driver: xen\n", "config: driver: must be auto or qemu or firecracker or fake", ""},
		{"driver: auto\ndriver: qemu\n", "config: driver: is given twice", ""},
		{"log_level: loud\n", "config: log_level:", ""},
		{"qemu: {binary: ./qemu}\n", "config: qemu.binary: must be an absolute path", ""},
		{"qemu: {accel: xen}\n", "config: qemu.accel:", ""},
		{"network: {bridge: my-bridge}\n", "config: network.bridge: must be letters", ""},
		{"network: {bridge: bridge000}\n", "config: network.bridge: must have 1 to 8 bytes", "15"},
		{"network: {loopback: auto}\n", "config: network.loopback: must be within 127.0.0.0/8", ""},
		{"network: {loopback: 10.0.0.0/16}\n", "config: network.loopback: must be within 127.0.0.0/8", ""},
		{"network: {loopback: 127.0.0.0/8}\n", "config: network.loopback: must be within 127.0.0.0/8", ""},
		{"network: {loopback: 127.1.2.3/16}\n", "config: network.loopback: must be 127.1.0.0/16", ""},
		{"network: {loopback: 127.0.0.0/16}\n", "config: network.loopback: must not contain 127.0.0.1", ""},
		{"network: {prefix: ten}\n", `config: network.prefix: "ten" is not a network prefix`, "10.20.0.0/16"},
		{"network: {prefix: 10.1.2.3/16}\n", "config: network.prefix: must begin at its own start, as in 10.1.0.0/16", ""},
		{"network: {prefix: 8.8.8.0/24}\n", "config: network.prefix: must be of a private network", "10.0.0.0/8"},
		{"network: {prefix: 10.0.0.0/30}\n", "config: network.prefix: must be IPv4 with /8 to /29", ""},
		{"network: {prefix: fd00::/64}\n", "config: network.prefix: must be IPv4", ""},
		{"network: {prefix: {a: b}}\n", "config: network.prefix: needs one value", ""},
		{"network: {mtu: 100}\n", "config: network.mtu: must be at least 1280", ""},
		{"network: {pool: 1000}\n", "config: network.pool: must be at most 256", ""},
		{"images: {mirrors: [a]}\n", "config: images.mirrors: must be hosts of registries, each with a list of mirrors", "docker.io"},
		{"images: {mirrors: x}\n", "config: images.mirrors: must be hosts", ""},
		{"images: {mirrors: {docker.io: a}}\n", `config: images.mirrors: "docker.io": must be a list`, ""},
		{"images: {mirrors: {docker.io: [a], docker.io: [b]}}\n", "config: images.mirrors:", ""},
		{"images: {mirrors: {'https://docker.io': [a]}}\n", `config: images.mirrors: "https://docker.io" is no host of a registry`, "without a scheme"},
		{"images: {mirrors: {docker.io: ['ftp://a']}}\n", `config: images.mirrors: "ftp://a" is no mirror of docker.io`, "[http://]HOST"},
		{"images: {mirrors: {docker.io: [[a]]}}\n", "config: images.mirrors:", ""},
		{"images: {insecure: localhost}\n", "config: images.insecure: must be a list", ""},
		{"images: {catalogs: [{url: ftp://a/b, key: RW}]}\n", `config: images.catalogs: "ftp://a/b" is no address of a catalog`, "minisign"},
		{"images: {catalogs: [{url: https://a/b, key: RW}]}\n", `config: images.catalogs: "RW" is no public key for https://a/b`, "minisign"},
		{"images: {catalogs: [{uri: https://a/b}]}\n", `"uri" of a catalog`, "minisign"},
		{"images: {catalogs: yes}\n", "must be a list of catalogs", "minisign"},
		{"images: {insecure: [a/b]}\n", `config: images.insecure: "a/b" is no host of a registry`, "HOST:PORT"},
		{"images:\n  insecure:\n", "config: images.insecure: needs one value", "remove the line"},
		{"images: {platform: windows/amd64}\n", "config: images.platform: must be auto or linux/ARCHITECTURE", "linux/amd64"},
		{"images: {cache: 1K}\n", "config: images.cache: must be at least 1M", ""},
		{"images: {max_size: 0}\n", `config: images.max_size: must be "auto"`, ""},
		{"images: {max_files: 0}\n", `config: images.max_files: must be "auto"`, ""},
		{"dns: {listen: localhost:53}\n", `config: dns.listen: must be auto, none or an IP address and a port, not "localhost:53"`, "127.0.0.42:53"},
		{"dns: {listen: 127.0.0.42}\n", "config: dns.listen: must be auto, none or", "127.0.0.42:53"},
		{"dns: {listen: 0.0.0.0:53}\n", "config: dns.listen: must be a loopback address, not 0.0.0.0", "127.0.0.42:53"},
		{"dns: {listen: 192.0.2.1:53}\n", "config: dns.listen: must be a loopback address, not 192.0.2.1", ""},
		{"dns: {listen: '[::]:53'}\n", "config: dns.listen: must be a loopback address", ""},
		{"dns: {listen: 127.0.0.42:0}\n", "config: dns.listen: must have a port", ""},
		{"dns: {listen: 127.0.0.42:99999}\n", "config: dns.listen: must be auto, none or", ""},
		{"limits: {vms: 1000000}\n", "config: limits.vms: must be at most", ""},
		{"- a\n", "config: the file must be a section of keys", ""},
		{"a: [\n", "config: yaml:", ""},
		{"driver: auto\n---\ndriver: qemu\n", "more than one YAML document", ""},
		{"<<: {driver: fake}\n", "unknown key", ""},
		{"x: &a [*a]\n", "config: x: unknown key", ""},
	} {
		_, err := config.Load(write(t, tc.text))
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.msg) ||
			!strings.Contains(errdefs.HintOf(err), tc.hint) {
			t.Errorf("%q: got %v (hint %q), want %q (hint %q)", tc.text, err, errdefs.HintOf(err), tc.msg, tc.hint)
		}
	}
}

func TestHugeFileIsRefused(t *testing.T) {
	if _, err := config.Load(write(t, strings.Repeat("# filler\n", 200_000))); err == nil {
		t.Error("a file over the limit was read")
	}
}

func TestEnvironmentOverridesLogLevel(t *testing.T) {
	file := write(t, "log_level: warn\n")
	t.Setenv(paths.EnvLogLevel, "debug")
	l, err := config.Load(file)
	if err != nil || l.LogLevel != "debug" {
		t.Fatalf("got %q, %v", l.LogLevel, err)
	}
	t.Setenv(paths.EnvLogLevel, "loud")
	if _, err := config.Load(file); err == nil {
		t.Error("a bad level from the environment was taken")
	}
}

func TestResolve(t *testing.T) {
	for _, tc := range []struct {
		host         config.Host
		cpus         config.Count
		memory, disk config.AutoSize
		boots        config.Count
	}{
		{config.Host{CPUs: 1, MemoryBytes: 1 * config.GiB}, 1, 1 * config.GiB, 4 * config.GiB, 2},
		{config.Host{CPUs: 2, MemoryBytes: 24*config.GiB + 12345, DiskBytes: 3 * config.GiB}, 1, 3 * config.GiB, 4 * config.GiB, 2},
		{config.Host{CPUs: 6, MemoryBytes: 32 * config.GiB, DiskBytes: 10_000_000_000}, 3, 4 * config.GiB, 9 * config.GiB, 6},
		{config.Host{CPUs: 64, MemoryBytes: 512 * config.GiB, DiskBytes: config.TiB}, 4, 8 * config.GiB, 16 * config.GiB, 64},
	} {
		got := config.Default().Resolve(tc.host)
		if got.VM.CPUs != tc.cpus || got.VM.Memory != tc.memory || got.VM.Disk != tc.disk || got.Limits.Boots != tc.boots {
			t.Errorf("%+v: got %v, %v, %v, %v", tc.host, got.VM.CPUs, got.VM.Memory, got.VM.Disk, got.Limits.Boots)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%+v: %v", tc.host, err)
		}
	}
	dir := t.TempDir()
	h := config.DetectHost(dir)
	if h.CPUs < 1 || h.MemoryBytes < 64*config.MiB || h.DiskBytes < config.MiB {
		t.Errorf("this host: %+v", h)
	}
	if later := config.DetectHost(filepath.Join(dir, "not", "yet")); later != h {
		t.Errorf("with a directory that is not there yet: %+v, want %+v", later, h)
	}
	for uid, want := range map[int]string{0: "127.0.0.42:53", 1000: "127.0.0.42:21000", 65534: "127.0.0.42:25534"} {
		at, ok := config.Default().Resolve(config.Host{CPUs: 1, UID: uid}).DNS.Addr()
		if !ok || at.String() != want {
			t.Errorf("names of user %d are answered on %v, %v", uid, at, ok)
		}
	}
	for text, want := range map[string]string{"none": "", "'[::1]:5300'": "[::1]:5300", "127.1.2.3:1053": "127.1.2.3:1053"} {
		l, err := config.Load(write(t, "dns: {listen: "+text+"}"))
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := l.Resolve(config.Host{}).DNS.Addr(); ok != (want != "") || ok && at.String() != want {
			t.Errorf("%s: %v, %v", text, at, ok)
		}
	}
	set := config.Default()
	set.VM.CPUs, set.VM.Memory, set.VM.Disk = 7, 5*config.GiB, 20*config.GiB
	if got := set.Resolve(config.Host{CPUs: 2, MemoryBytes: config.GiB}); got.VM != set.VM {
		t.Errorf("set values were replaced: %+v", got.VM)
	}
}

func TestShowNamesSourcesAndLoadsAgain(t *testing.T) {
	l, err := config.Load(write(t, "vm: {cpus: 3, disk: 20480M}\n"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := l.Show(&out, config.Host{CPUs: 4, MemoryBytes: 16 * config.GiB}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  cpus: 3 # file\n", "  memory: 2G # host\n", "  disk: 20G # file\n",
		"driver: auto # default\n", "  stop_timeout: 20s # default\n", "  boots: 4 # host\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	again, err := config.Load(write(t, out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if want := l.Resolve(config.Host{CPUs: 4, MemoryBytes: 16 * config.GiB}); !reflect.DeepEqual(again.Config, want) {
		t.Errorf("got %+v, want %+v", again.Config, want)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]config.Size{
		"0": 0, "1": 1, "1024": 1024, "1k": 1024, "1K": 1024, "2G": 2 << 30, "2gb": 2 << 30, "2GiB": 2 << 30,
		" 512 M ": 512 << 20, "1.5G": 3 << 29, "3T": 3 << 40, "0.5K": 512, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := config.ParseSize(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", " ", "G", "-1G", "+1G", "1e3", "0x10", "NaN", "Inf", "1.2.3", ".", "2 G B", "1Q",
		"99999999999999999999", "9000000T", "1G2M", "1_000"} {
		if got, err := config.ParseSize(in); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
}

func TestUnitsPrintBack(t *testing.T) {
	for size, want := range map[config.Size]string{0: "0", 1: "1", 1023: "1023", 1024: "1K", 1536 << 20: "1536M", 16 << 30: "16G", 1 << 40: "1T"} {
		if got := size.String(); got != want {
			t.Errorf("%d: got %q, want %q", size, got, want)
		}
	}
	for d, want := range map[time.Duration]string{90 * time.Second: "1m30s", time.Minute: "1m", time.Hour: "1h",
		10 * time.Minute: "10m", 61 * time.Minute: "1h1m", 1500 * time.Millisecond: "1.5s", 20 * time.Second: "20s", 0: "0s"} {
		if got := config.Duration(d).String(); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"2G", "1.5m", "", "99999999999999999999", "1KiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := config.ParseSize(s)
		if err != nil {
			return
		}
		if size < 0 {
			t.Fatalf("%q is %d", s, size)
		}
		if again, err := config.ParseSize(size.String()); err != nil || again != size {
			t.Fatalf("%q: %d printed as %q and read as %d, %v", s, size, size, again, err)
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add("vm: {cpus: 2, memory: 2G}\nlimits: {boots: auto}\n")
	f.Add("vm: &a\n  cpus: 1\nqemu: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := config.Load(write(t, text))
		if err != nil {
			return
		}
		if err := l.Validate(); err != nil {
			t.Fatalf("loaded but not valid: %v", err)
		}
	})
}

// The bridge is root's, whoever reads the file.
func TestBridgeIsForRoot(t *testing.T) {
	c := config.Default()
	c.VM.Net = model.NetBridge
	if err := c.CheckHost(config.Host{UID: 0}); err != nil {
		t.Errorf("root: %v", err)
	}
	if err := c.CheckHost(config.Host{UID: 1000}); !errors.Is(err, errdefs.ErrPermission) || errdefs.HintOf(err) == "" {
		t.Errorf("somebody else: %v", err)
	}
	if err := config.Default().CheckHost(config.Host{UID: 1000}); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

func TestRegistries(t *testing.T) {
	const key = "RWRHSYHq5kKn9s9Rj5BCvgxLo/6JH3Mw7P1Sxw5bPSXMTbIm0Z5kQdvl"
	l, err := config.Load(write(t, "images:\n  mirrors:\n    docker.io: [mirror.example:5000/hub, http://localhost]\n    quay.io: []\n  insecure: [localhost:5000, '[::1]:5000']\n  platform: linux/arm64/v8\n  cache: 3G\n  catalogs: [{url: 'https://a.example/list', key: "+key+"}, {key: "+key+", url: /etc/list}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Images{
		Mirrors:  config.Mirrors{"docker.io": {"mirror.example:5000/hub", "http://localhost"}, "quay.io": nil},
		Insecure: config.Hosts{"localhost:5000", "[::1]:5000"}, Platform: "linux/arm64/v8", Cache: 3 * config.GiB,
		Catalogs: config.Catalogs{{URL: "https://a.example/list", Key: key}, {URL: "/etc/list", Key: key}},
	}
	if !reflect.DeepEqual(l.Images, want) {
		t.Errorf("%+v", l.Images)
	}
	// What is shown can be loaded again.
	var out strings.Builder
	if err := l.Show(&out, config.Host{CPUs: 8, MemoryBytes: 32 * config.GiB, DiskBytes: 100 * config.GiB}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"mirrors: {docker.io: ['mirror.example:5000/hub', 'http://localhost'], quay.io: []} # file",
		"insecure: ['localhost:5000', '[::1]:5000'] # file", "cache: 3G # file", "max_size: 128G # host",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q is not in\n%s", line, out.String())
		}
	}
	again, err := config.Load(write(t, out.String()))
	if err != nil || !reflect.DeepEqual(again.Images.Mirrors, want.Mirrors) || !reflect.DeepEqual(again.Images.Insecure, want.Insecure) || !reflect.DeepEqual(again.Images.Catalogs, want.Catalogs) {
		t.Errorf("%+v, %v", again.Images, err)
	}
}
