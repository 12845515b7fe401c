package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pullLimit   = 1.0 / 3 // of skopeo, umoci and mkfs
	cachedLimit = 1.3     // times pigz
	pullMB      = 150     // of memory, whatever the image's size
	pullPerFile = 300     // bytes of memory
)

// measurePull compares `image pull` with the usual way from a registry to a disk that
// boots: skopeo copies, umoci unpacks, mkfs.ext4 makes a file system of the tree. Once
// more with all layers here, against pigz, which only decompresses them. Everything is on
// the same disk, and in the page cache.
func measurePull(sizeMB, files int) func(ctx context.Context, l *lab, n int) ([]Figure, error) {
	return func(ctx context.Context, l *lab, n int) ([]Figure, error) {
		if n == 0 {
			n = 3
		}
		for _, program := range []string{"docker-registry", "skopeo", "umoci", "mkfs.ext4", "pigz"} {
			if _, err := exec.LookPath(program); err != nil {
				return nil, fmt.Errorf("%w: scripts/bootstrap bench installs it", err)
			}
		}
		dir, err := os.MkdirTemp(l.scratch, "pull-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		p := puller{lab: l, dir: dir, layout: filepath.Join(dir, "layout")}
		if p.layers, err = writeImage(p.layout, int64(sizeMB)*1e6, files); err != nil {
			return nil, err
		}
		stop, err := p.serve(ctx)
		if err != nil {
			return nil, err
		}
		defer stop()
		if p.daemon, err = l.serve(ctx, filepath.Join(dir, "state")); err != nil {
			return nil, err
		}
		defer func() { _ = p.daemon.stop(context.WithoutCancel(ctx)) }()
		return p.measure(ctx, n, sizeMB, files)
	}
}

// puller makes disks of one image.
type puller struct {
	lab    *lab
	dir    string
	layout string
	layers []string // files
	ref    string
	daemon *daemon
}

func (p *puller) measure(ctx context.Context, n, sizeMB, files int) ([]Figure, error) {
	name := strconv.Itoa(sizeMB) + "m"
	ours := func() (time.Duration, error) {
		_, _ = output(p.daemon.cli(ctx, "image", "rm", p.ref))
		if _, err := output(p.daemon.cli(ctx, "image", "cache", "prune", "--all")); err != nil {
			return 0, err
		}
		return timed(p.daemon.cli(ctx, "image", "pull", p.ref))
	}
	value, floor, err := inTurns(0, n, time.Second, ours, func() (time.Duration, error) { return p.byHand(ctx) })
	if err != nil {
		return nil, err
	}
	pull := figure("pull-"+name, "s", value, floor, pullLimit, onRatio)
	pull.What = fmt.Sprintf("banger image pull of %d MB in %d files from a registry on this host", sizeMB, files)
	pull.FloorIs = "skopeo copy, umoci unpack, mkfs.ext4 -d"

	value, floor, err = inTurns(1, n, time.Second,
		func() (time.Duration, error) { return timed(p.daemon.cli(ctx, "image", "pull", "--force", p.ref)) },
		func() (time.Duration, error) { return p.decompress(ctx) })
	if err != nil {
		return nil, err
	}
	cached := figure("pull-"+name+"-cached", "s", value, floor, cachedLimit, onRatio)
	cached.What, cached.FloorIs = "the same with all layers here", "pigz -dc of the layers to a file"

	peak, err := peakMB(p.daemon.pid())
	if err != nil {
		return nil, err
	}
	memory := figure("pull-"+name+"-rss", "MB", samples{peak}, samples{0}, pullMB+float64(files)*pullPerFile/1e6, onValue)
	memory.What = "most memory of the daemon during these"
	return []Figure{pull, cached, memory}, nil
}

// byHand makes a disk without banger.
func (p *puller) byHand(ctx context.Context) (time.Duration, error) {
	dir := filepath.Join(p.dir, "hand")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	rootless := ""
	if os.Geteuid() != 0 {
		rootless = "--rootless"
	}
	script := `set -e; cd "$1"
		skopeo copy -q --src-tls-verify=false "docker://$2" oci:layout:it
		umoci unpack $3 --image layout:it bundle >/dev/null
		mkfs.ext4 -q -d bundle/rootfs disk 16G`
	return timed(exec.CommandContext(ctx, "sh", "-c", script, "sh", dir, p.ref, rootless))
}

// decompress does what cannot be spared when the layers are here.
func (p *puller) decompress(ctx context.Context) (time.Duration, error) {
	out := filepath.Join(p.dir, "plain")
	defer os.Remove(out)
	return timed(exec.CommandContext(ctx, "sh", append([]string{"-c", `out=$1; shift; pigz -dc "$@" >"$out"`, "sh", out}, p.layers...)...))
}

// serve starts a registry that has the image.
func (p *puller) serve(ctx context.Context) (stop func(), err error) {
	config := filepath.Join(p.dir, "registry.yml")
	text := fmt.Sprintf(`{version: "0.1", log: {level: info, formatter: json, accesslog: {disabled: true}},
		storage: {filesystem: {rootdirectory: %q}}, http: {addr: "127.0.0.1:0"}}`, filepath.Join(p.dir, "registry"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", config)
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.lab.thread.start(cmd, unix.SIGKILL); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var line struct{ Msg string }
		_ = json.Unmarshal(lines.Bytes(), &line)
		host, listens := strings.CutPrefix(line.Msg, "listening on ")
		if !listens {
			continue
		}
		host, _, _ = strings.Cut(host, ",")
		go func() {
			for lines.Scan() { // so that it never waits for us
			}
		}()
		p.ref = host + "/bench/image:1"
		_, err := output(exec.CommandContext(ctx, "skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:"+p.layout+":1", "docker://"+p.ref))
		if err != nil {
			stop()
			return nil, err
		}
		return stop, nil
	}
	stop()
	return nil, errors.New("docker-registry does not start")
}

// peakMB is the most memory that a process ever had, in MB of 10^6 bytes.
func peakMB(pid int) (float64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, err := strconv.ParseFloat(strings.Fields(rest + " -")[0], 64)
	return kib * 1024 / 1e6, err
}
