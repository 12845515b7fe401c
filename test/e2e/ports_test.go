//go:build e2e

package e2e_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fetchURL gets a file by HTTP, each by a connection of its own.
func fetchURL(addr, file string) (string, error) {
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr + "/" + file)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestPorts reaches a web server in a VM by ports of the host, while they come and go.
func TestPorts(t *testing.T) {
	w := s.main
	w.fetch(t)
	port := freePort(t)
	v := w.create(t, "e2e-ports", "--net", "none", "-p", port+":8000")
	w.exec(t, v, "sh", "-c", "mkdir /tmp/www && cd /tmp/www && echo hello > small && head -c 20000000 /dev/urandom > large")
	serve := func() { // in a session of its own: it is to outlive the daemon
		w.exec(t, v, "sh", "-c", "setsid python3 -u -m http.server 8000 --bind 127.0.0.1 --directory /tmp/www < /dev/null > /tmp/www.log 2>&1 & "+
			"until grep -qs Serving /tmp/www.log; do sleep 0.2; done")
	}
	serve()
	check := func(when string, addrs ...string) {
		t.Helper()
		for _, addr := range addrs {
			if got, err := fetchURL(addr, "small"); got != "hello\n" || err != nil {
				t.Errorf("%s: %s answers %q, %v", when, addr, got, err)
			}
		}
	}
	refused := func(when, addr string) {
		t.Helper()
		if got, err := fetchURL(addr, "small"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %s answers %q, %v", when, addr, got, err)
		}
	}
	first := "127.0.0.1:" + port
	v = w.show(t, v.ID)
	if len(v.Addresses) != 1 {
		t.Fatalf("the VM's own address is %v", v.Addresses)
	}
	own := net.JoinHostPort(v.Addresses[0], "8000")
	check("from the start", first, own)
	large, err := fetchURL(first, "large")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(w.exec(t, v, "sha256sum", "/tmp/www/large"))[0]
	if got := fmt.Sprintf("%x", sha256.Sum256([]byte(large))); got != want {
		t.Errorf("%d bytes came, with the sum %s, want %s", len(large), got, want)
	}

	// Another port, chosen by the daemon; one on which nobody in the VM listens.
	added := w.ok(t, "port", "add", v.Name, "8000", "9000")
	var chosen [2]string
	for i, line := range strings.Fields(added) {
		chosen[i], _, _ = strings.Cut(line, ":")
	}
	if strings.Contains(strings.Fields(added)[0], ":9000") {
		chosen[0], chosen[1] = chosen[1], chosen[0]
	}
	second, deaf := "127.0.0.1:"+chosen[0], "127.0.0.1:"+chosen[1]
	check("added while it runs", second)
	if got, err := fetchURL(deaf, "small"); err == nil || errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port without a listener in the VM answers %q, %v", got, err)
	}

	// The port is this VM's, and no other is made.
	w.fails(t, 1, []string{"is forwarded to vm \"e2e-ports\" already"}, "vm", "create", "--name", "e2e-ports-2", "-p", port+":80")
	w.noVM(t, "e2e-ports-2")

	w.killDaemon(t)
	w.ok(t, "ps")
	check("with another daemon", first, second, own)
	w.ok(t, "port", "rm", v.Name, chosen[0])
	refused("removed", second)
	check("one of two is removed", first, own)

	w.ok(t, "vm", "stop", v.Name)
	refused("stopped", first)
	w.ok(t, "vm", "start", v.Name)
	w.exec(t, v, "sh", "-c", "rm -f /tmp/www.log; mkdir -p /tmp/www && echo hello > /tmp/www/small")
	serve()
	check("started again", first, own)
	w.ok(t, "vm", "delete", "--force", v.Name)
	refused("deleted", first)
}

// freePort is a port of the host that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
