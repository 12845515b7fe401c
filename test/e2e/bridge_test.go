//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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

// reached returns which of these targets, each "protocol host port", a VM reaches.
func (o *outsideWorld) reached(t *testing.T, v vm, targets []string) (answered []string) {
	t.Helper()
	var list [][3]any
	for _, target := range targets {
		f := strings.Fields(target)
		port, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, [3]any{f[0], f[1], port})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var got [][3]any
	if err := json.Unmarshal([]byte(python(t, o.world, v, dialScript, string(raw))), &got); err != nil {
		t.Fatal(err)
	}
	for _, g := range got {
		answered = append(answered, fmt.Sprint(g[0], " ", g[1], " ", g[2]))
	}
	return answered
}

// resolveScript prints the IPv4 address of each name, or "-".
const resolveScript = `
import socket, sys
for name in sys.argv[1].split():
    try: print(name, socket.gethostbyname(name))
    except OSError: print(name, "-")
`

// TestBridge: a VM on the bridge has an address and a name of its own, and reaches what
// it was allowed: the world and nobody near, a port of the host, its named network; a
// daemon that dies changes nothing of it. Without such VMs the host is as it was.
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
	o.here.echo("9") // services of our host
	o.here.echo("10")
	create := func(name string, flags ...string) vm {
		o.ok(t, slices.Concat([]string{"vm", "create", "--name", name}, flags, o.flags)...)
		v := o.show(t, name)
		if len(v.Addresses) != 2 || v.DNSName != name+".vm" {
			t.Fatalf("%s has the addresses %v and the name %q", name, v.Addresses, v.DNSName)
		}
		return v
	}
	o.ok(t, "network", "create", "lab")
	alone := create("alone", "--net", "bridge", "--expose-host", "9")
	db := create("db", "--network", "lab", "--no-nat")
	web := create("web", "--network", "lab")
	if got := o.ok(t, "network", "list"); !strings.Contains(got, "db, web") {
		t.Errorf("networks:\n%s", got)
	}
	o.fails(t, 1, []string{`network "lab" is used by db, web`, "banger vm delete db web"}, "network", "rm", "lab")
	if during := o.traces(t); !strings.Contains(during, "bgr0") || !strings.Contains(during, "inet banger") {
		t.Errorf("with VMs the host is\n%s", during)
	}
	var servers []string
	for line := range strings.Lines(o.exec(t, alone, "cat", "/etc/resolv.conf")) {
		if at, ok := strings.CutPrefix(line, "nameserver "); ok {
			servers = append(servers, strings.TrimSpace(at))
		}
	}
	if len(servers) != 2 {
		t.Fatalf("the guest's name servers are %v", servers)
	}

	check := func(when, port string) {
		t.Helper()
		for _, v := range []vm{alone, db} { // what runs in a VM by a command ends with the daemon
			server := start(t, o.command("exec", v.ID, "--", "python3", "-u", "-c", `
import socket, sys
l = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready")
while True: l.accept()[0].sendall(b"here")`, port))
			server.out.expect(t, "ready\n")
		}
		at := func(v vm) string { return v.Addresses[0] }
		for _, tc := range []struct {
			v         vm
			finds     map[string]string
			reaches   []string
			noFurther []string
		}{
			{alone, map[string]string{"alone.vm": at(alone), "db": "-", "db.vm": "-", "db.lab.vm": "-", "www.test": outsideIP},
				[]string{"tcp " + outsideIP + " 7", "udp " + outsideIP + " 7",
					"tcp " + servers[0] + " 9", "udp " + servers[0] + " 9", "tcp " + servers[1] + " 9"},
				[]string{"tcp " + db.Addresses[0] + " " + port, "tcp " + db.Addresses[1] + " " + port}},
			{web, map[string]string{"db": at(db), "db.vm": at(db), "db.lab.vm": at(db), "alone": "-", "alone.vm": "-", "www.test": outsideIP},
				[]string{"tcp " + outsideIP + " 7", "tcp db " + port, "tcp " + db.Addresses[1] + " " + port},
				[]string{"tcp " + servers[0] + " 9", "tcp " + alone.Addresses[0] + " " + port, "tcp " + alone.Addresses[1] + " " + port}},
			{db, map[string]string{"web": at(web), "alone.vm": "-", "www.test": "-"},
				nil, []string{"tcp " + outsideIP + " 7", "udp " + outsideIP + " 7", "tcp " + servers[0] + " 9"}},
		} {
			var names []string
			for name := range tc.finds {
				names = append(names, name)
			}
			found := map[string]string{}
			for line := range strings.Lines(python(t, o.world, tc.v, resolveScript, strings.Join(names, " "))) {
				name, address, _ := strings.Cut(strings.TrimSpace(line), " ")
				found[name] = address
			}
			if !maps.Equal(found, tc.finds) {
				t.Errorf("%s: %s finds %v, want %v", when, tc.v.Name, found, tc.finds)
			}
			want := append([]string{"tcp " + servers[0] + " 53", "tcp " + servers[1] + " 53"}, tc.reaches...)
			targets := slices.Concat(want, tc.noFurther, []string{"tcp " + servers[0] + " 10", "udp " + servers[1] + " 10", "tcp " + oursIP + " 9", "udp " + oursIP + " 9"})
			got := o.reached(t, tc.v, targets)
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("%s: %s reached\n%q, want\n%q", when, tc.v.Name, got, want)
			}
			if got := o.lookup(t, tc.v.Name+".vm"); !slices.Equal(got, tc.v.Addresses[:1]) {
				t.Errorf("%s: the host finds %s.vm at %v, want %v", when, tc.v.Name, got, tc.v.Addresses[0])
			}
		}
	}
	check("after the start", "5555")
	o.here.Must(func() error { // the host does reach it, so what follows from silence is right
		c, err := net.DialTimeout("tcp", net.JoinHostPort(alone.Addresses[0], "5555"), 10*time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	macs := map[string]string{}
	for _, v := range []vm{alone, db, web} {
		if got := o.exec(t, v, "ip", "-o", "addr", "show", "dev", "eth0", "scope", "global"); !strings.Contains(got, v.Addresses[0]+"/") || !strings.Contains(got, v.Addresses[1]+"/") {
			t.Errorf("the addresses in %s are %q, want %v", v.Name, got, v.Addresses)
		}
		mac := o.exec(t, v, "cat", "/sys/class/net/eth0/address")
		if macs[mac] != "" {
			t.Errorf("%s and %s both have the hardware address %s", v.Name, macs[mac], mac)
		}
		macs[mac] = v.Name
	}
	o.ok(t, "vm", "rename", "alone", "hermit")
	if got := o.lookup(t, "hermit.vm"); !slices.Equal(got, alone.Addresses[:1]) {
		t.Errorf("after it was renamed the host finds hermit.vm at %v", got)
	}
	o.ok(t, "vm", "rename", "hermit", "alone")

	// The daemon dies, and what it has noted of a VM's processes is lost.
	o.killDaemon(t)
	for _, v := range []vm{alone, web} {
		if err := os.Remove(filepath.Join(v.Dir, "handles.json")); err != nil {
			t.Fatal(err)
		}
	}
	o.startDaemon(t)
	check("after the daemon died", "5556")

	// Dead again, with the VMM of one gone too: nothing says whose its tap was but the lease.
	o.killDaemon(t)
	for _, name := range []string{"handles.json", "qmp.sock"} {
		if err := os.Remove(filepath.Join(web.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if p, ok := find(web.PID); !ok {
		t.Errorf("%s has no VMM", web.Name)
	} else if err := p.kill(); err != nil {
		t.Error(err)
	}
	o.startDaemon(t)
	o.ok(t, "vm", "delete", "--force", "alone", "web")
	if got := o.lookup(t, "alone.vm"); len(got) != 0 {
		t.Errorf("alone.vm is deleted and found at %v", got)
	}
	o.ok(t, "vm", "delete", "--force", "db")
	o.ok(t, "network", "rm", "lab")
	if err := o.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	if after := o.traces(t); after != before {
		t.Errorf("without VMs the host is\n%swas\n%s", after, before)
	}
}
