package oci_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// TestRealDaemons takes images from Docker's own daemon and from Podman's, in a network
// namespace of theirs in which there is nothing.
func TestRealDaemons(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers' daemons need root here")
	}
	for name, args := range map[string]func(dir, socket string) []string{
		"podman": func(dir, socket string) []string {
			return []string{"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
				"system", "service", "--time=0", "unix://" + socket}
		},
		"dockerd": func(dir, socket string) []string {
			return []string{"dockerd", "--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "run"),
				"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://" + socket, "--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ocitest.Need(t, name, "skopeo", "unshare")
			socket := startDaemon(t, args)
			m := makeImage(t, amd64, 107, 40_000, 300_000)
			ocitest.Run(t, "skopeo", "--insecure-policy", "copy", "--dest-daemon-host=unix://"+socket,
				"oci:"+writeLayout(t, map[string]*made{"1": m})+":1", "docker-daemon:quay.io/some/where:1")
			o := options(t)
			o.Sockets = []string{socket}
			img := resolve(t, "docker-daemon:quay.io/some/where:1", o)
			checkLocal(t, img, o, m, true)
			checkLocal(t, resolve(t, "docker-daemon:"+string(blobs.Of(img.RawConfig)), o), o, m, true)
			_, err := oci.Resolve(t.Context(), parse(t, "docker-daemon:quay.io/some/where:2"), o)
			if errdefs.ClassOf(err) != errdefs.ClassNotFound {
				t.Errorf("what is not there: %v", err)
			}
		})
	}
}

// startDaemon returns the socket on which the daemon listens, which ends with the test.
func startDaemon(t *testing.T, args func(dir, socket string) []string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	var said strings.Builder
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	ended := make(chan struct{})
	running.Go(func() {
		defer close(ended)
		_ = sysexec.Run(ctx, sysexec.Cmd{
			Path: "unshare", Args: append([]string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}, args(dir, socket)...),
			Stderr: &said, Attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
		})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for {
		select {
		case <-ended:
			t.Fatalf("it has ended:\n%s", said.String())
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return socket
		}
	}
}
