//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// traces is what of our host somebody could see that was changed: devices, rules,
// forwarding, and who listens for questions.
func (o *outsideWorld) traces(t *testing.T) (text string) {
	t.Helper()
	o.here.Must(func() error {
		script := tool(t, "ip") + " -o link | cut -d' ' -f2; " + tool(t, "nft") + " list tables; " +
			"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; grep -o '[0-9A-F]*:0035 ' /proc/net/udp | sort"
		out, err := exec.Command("sh", "-c", script).CombinedOutput()
		text = string(out)
		return err
	})
	return text
}

// lookup asks our host's name server for VMs.
func (o *outsideWorld) lookup(t *testing.T, name string) (addrs []string) {
	t.Helper()
	o.here.Must(func() error {
		// Dialled here: the resolver would do it in a thread, and namespace, of its own.
		conn, err := net.Dial("udp", "127.0.0.42:53")
		if err != nil {
			return err
		}
		r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ips, err := r.LookupNetIP(ctx, "ip4", name)
		if err != nil {
			t.Logf("look up %s: %v", name, err)
		}
		for _, ip := range ips {
			addrs = append(addrs, ip.Unmap().String())
		}
		return nil
	})
	return addrs
}

// TestBridge: a VM on the bridge has an address and a name of its own, reaches the
// world and nobody near; without such VMs the host is as it was.
func TestBridge(t *testing.T) {
	o := newOutsideWorld(t, "e2e-bridge")
	t.Cleanup(func() {
		if _, ok := o.daemon(); ok {
			if err := o.deleteAll(); err != nil {
				t.Error(err)
			}
		}
	})
	before := o.traces(t)
	if strings.Contains(before, "bgr0") || strings.Contains(before, "banger") {
		t.Errorf("a daemon without VMs has made something on the host:\n%s", before)
	}
	o.here.echo("9") // a service of our host
	create := func(name string) vm {
		o.ok(t, append([]string{"vm", "create", "--name", name, "--net", "bridge"}, o.flags...)...)
		v := o.show(t, name)
		if len(v.Addresses) != 2 || v.DNSName != name+".vm" {
			t.Fatalf("%s has the addresses %v and the name %q", name, v.Addresses, v.DNSName)
		}
		return v
	}
	one, two := create("one"), create("two")
	if during := o.traces(t); !strings.Contains(during, "bgr0") || !strings.Contains(during, "inet banger") {
		t.Errorf("with VMs the host is\n%s", during)
	}
	server := start(t, o.command("exec", two.ID, "--", "python3", "-u", "-c", `
import socket
l = socket.socket(); l.bind(("0.0.0.0", 5555)); l.listen()
print("ready")
while True: l.accept()[0].sendall(b"two")`))
	server.out.expect(t, "ready\n")

	check := func(when string) {
		t.Helper()
		if got := python(t, o.world, one, `
import socket
for name in "one.vm", "two.vm", "www.test":
    print(name, socket.gethostbyname(name))
`, ""); got != "one.vm "+one.Addresses[0]+"\ntwo.vm "+two.Addresses[0]+"\nwww.test "+outsideIP {
			t.Errorf("%s: names in a guest:\n%s", when, got)
		}
		if got := o.lookup(t, "one.vm"); !slices.Equal(got, one.Addresses[:1]) {
			t.Errorf("%s: the host finds one.vm at %v, want %v", when, got, one.Addresses[0])
		}
		servers := strings.Fields(strings.ReplaceAll(o.exec(t, one, "cat", "/etc/resolv.conf"), "nameserver ", ""))
		if len(servers) != 2 {
			t.Fatalf("%s: the guest's name servers are %v", when, servers)
		}
		targets := [][3]any{{"tcp", outsideIP, 7}, {"udp", outsideIP, 7}, {"tcp", servers[0], 53}, {"tcp", servers[1], 53}}
		reached := len(targets)
		for _, at := range []string{servers[0], servers[1], oursIP} {
			targets = append(targets, [3]any{"tcp", at, 9}, [3]any{"udp", at, 9})
		}
		targets = append(targets, [3]any{"tcp", two.Addresses[0], 5555}, [3]any{"tcp", "two.vm", 5555})
		raw, err := json.Marshal(targets)
		if err != nil {
			t.Fatal(err)
		}
		var got [][3]any
		if err := json.Unmarshal([]byte(python(t, o.world, one, dialScript, string(raw))), &got); err != nil {
			t.Fatal(err)
		}
		if len(got) != reached || slices.ContainsFunc(got, func(g [3]any) bool { return g[2] == 9.0 || g[2] == 5555.0 }) {
			t.Errorf("%s: a guest reached %v, want the first %d of %s", when, got, reached, raw)
		}
	}
	check("after the start")
	o.here.Must(func() error { // the host does reach it, so what follows from silence is right
		c, err := net.DialTimeout("tcp", net.JoinHostPort(two.Addresses[0], "5555"), 10*time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	for _, v := range []vm{one, two} {
		if got := o.exec(t, v, "ip", "-o", "addr", "show", "dev", "eth0", "scope", "global"); !strings.Contains(got, v.Addresses[0]+"/") || !strings.Contains(got, v.Addresses[1]+"/") {
			t.Errorf("the addresses in %s are %q, want %v", v.Name, got, v.Addresses)
		}
	}
	if a, b := o.exec(t, one, "cat", "/sys/class/net/eth0/address"), o.exec(t, two, "cat", "/sys/class/net/eth0/address"); a == b {
		t.Errorf("both have the hardware address %s", a)
	}
	o.ok(t, "vm", "rename", "one", "uno")
	if got := o.lookup(t, "uno.vm"); !slices.Equal(got, one.Addresses[:1]) {
		t.Errorf("after it was renamed the host finds uno.vm at %v", got)
	}
	o.ok(t, "vm", "rename", "uno", "one")

	if err := o.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	o.startDaemon(t)
	check("after a restart of the daemon")

	o.ok(t, "vm", "delete", "--force", "one")
	if got := o.lookup(t, "one.vm"); len(got) != 0 {
		t.Errorf("one.vm is deleted and found at %v", got)
	}
	o.ok(t, "vm", "delete", "--force", "two")
	if err := o.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	if after := o.traces(t); after != before {
		t.Errorf("without VMs the host is\n%swas\n%s", after, before)
	}
}
