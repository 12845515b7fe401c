package hostnet

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"banger/internal/nettest"
)

// dockerNFT is the gist of Docker's rules, with one port published of a container, and
// one machine that the administrator has closed.
const dockerNFT = `
table ip filter {
	chain DOCKER-USER {
		ip daddr 192.0.2.66 counter drop
		counter return
	}
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		counter jump DOCKER-USER
		ct status dnat accept
		ct state established,related accept
	}
	chain PUBLISHED {
		type nat hook prerouting priority -100;
		fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80
	}
}
table ip6 filter {
	chain DOCKER-USER {
	}
	chain FORWARD {
		type filter hook forward priority 0; policy drop;
		counter jump DOCKER-USER
	}
}
`

// dockerIPTables are the same, in full, as Docker 28 has iptables write them.
const dockerIPTables = `*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-USER -d 192.0.2.66/32 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
`

const dockerIP6Tables = `*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
`

// feed hands text to a program; the test is skipped where there is none.
func feed(t *testing.T, text, program string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + program); err != nil {
			t.Skipf("needs %s, to load another program's rules", program)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(text)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, &out, &errs)
	}
	if strings.Contains(errs.String(), "incompatible") {
		t.Errorf("%s says: %s", cmd, &errs)
	}
	return out.String()
}

// Beside Docker, which drops what it does not know, guests reach the world, and
// still not what Docker and the administrator keep from them.
func TestBesideDocker(t *testing.T) {
	t.Run("nft", func(t *testing.T) {
		testBesideDocker(t, func() { loadRules(t, dockerNFT) }, func() string {
			return feed(t, "", "nft", "-s", "list", "chain", "ip", "filter", "DOCKER-USER")
		})
	})
	t.Run("iptables", func(t *testing.T) {
		load := func() {
			feed(t, dockerIPTables, "iptables-nft-restore")
			feed(t, dockerIP6Tables, "ip6tables-nft-restore")
		}
		testBesideDocker(t, load, func() string {
			// Of a table in which something is not as it would write it, it says only that.
			return feed(t, "", "ip6tables-nft", "-S", "DOCKER-USER") + feed(t, "", "iptables-nft", "-S", "DOCKER-USER")
		})
	})
}

func testBesideDocker(t *testing.T, load func(), rules func() string) {
	w := newWorld(t)
	t.Cleanup(func() {
		for _, table := range []string{"ip filter", "ip6 filter", "ip nat", "ip raw"} { // there or not
			loadRules(t, "table "+table+"\ndelete table "+table+"\n")
		}
	})
	load()
	alone := rules()
	w.serve(w.uplink, 80)
	// A machine that the administrator has closed, and a container that Docker has
	// published to nobody.
	w.must(w.uplink.Do(func() error { return address("eth0", "192.0.2.66/24") }))
	container := nettest.NewNS(t)
	nettest.Own(t).Wire("veth0", nil, container, "eth0", []string{"172.17.0.2/16"})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "docker0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	w.must(netlink.LinkAdd(bridge))
	t.Cleanup(func() { _ = netlink.LinkDel(bridge) })
	gateway := net.IPv4(172, 17, 0, 1)
	w.must(address("docker0", "172.17.0.1/16"))
	veth, err := netlink.LinkByName("veth0")
	w.must(err)
	w.must(errors.Join(netlink.LinkSetMaster(veth, bridge), netlink.LinkSetUp(bridge)))
	w.must(container.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: gateway})
	}))
	w.serve(container, 80)

	a := w.boot(VM{ID: "a"})
	c, d := w.boot(VM{ID: "c", Network: "lab"}), w.boot(VM{ID: "d", Network: "lab"})
	w.serve(d, 22)
	check := func(t *testing.T) {
		t.Helper()
		a.reaches("the world", at(far4, 80))
		a.reaches("the world by IPv6", at(far6, 80))
		c.reaches("its network", at(d.ip4(), 22))
		c.reaches("its network by IPv6", at(d.ip6(), 22))
		a.cannotReach("what the administrator drops", at(netip.MustParseAddr("192.0.2.66"), 80))
		a.cannotReach("a container", at(netip.MustParseAddr("172.17.0.2"), 80))
		a.cannotReach("a published port of the host's", at(hostUp4, 8080))
		w.waiting.Wait()
		w.must(w.uplink.Do(func() error {
			conn, err := net.DialTimeout("tcp", at(hostUp4, 8080).String(), 5*time.Second)
			if err == nil {
				err = conn.Close()
			}
			return err
		}))
	}
	check(t)
	if found, err := tableFor(w.deps.Bridge).Obstacles(); err != nil || len(found) > 0 {
		t.Errorf("obstacles: %+v, %v", found, err)
	}
	// Ours are there once for each version of IP, and the last thing before the return.
	ours := rules()
	count := strings.Count(ours, "banger")
	if lines := strings.Count(ours, "\n") - strings.Count(alone, "\n"); count == 0 || lines != count {
		t.Errorf("%d rules of ours in:\n%s", count, ours)
	}
	if text := strings.ToLower(ours); strings.LastIndex(text, "banger") > strings.LastIndex(text, "return") || strings.LastIndex(text, "banger") < strings.LastIndex(text, "drop") {
		t.Errorf("not where it belongs:\n%s", ours)
	}
	w.restart(a.vm, c.vm, d.vm)
	check(t)
	if again := rules(); again != ours {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", again, ours)
	}
	for _, g := range []*guest{a, c, d} {
		g.Close()
		w.must(w.s.Release(t.Context(), g.vm.ID))
	}
	w.must(w.s.Uninstall(t.Context()))
	if left := rules(); left != alone {
		t.Errorf("left in Docker's chain:\n%s\nbefore:\n%s", left, alone)
	}
}
