//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// What every guest finds on its network.
const (
	gateway = "192.168.127.1"
	guestIP = "192.168.127.2"
)

// python runs a script in a VM as root, with an argument.
func python(t *testing.T, w *world, v vm, script, arg string) string {
	t.Helper()
	cmd := w.command("exec", "--user", "root", v.ID, "--", "python3", "-", arg)
	cmd.Stdin = strings.NewReader(script)
	r := call(t, cmd)
	if r.code != 0 {
		t.Fatal(r)
	}
	return strings.TrimSpace(r.stdout)
}

// TestAptGetUpdate uses TCP and names through the mirrors that the image names.
func TestAptGetUpdate(t *testing.T) {
	w, v := s.main, sharedVM(t)
	out := w.ok(t, "exec", "--user", "root", "--timeout", "170s", v.Name, "--", "apt-get", "update", "-q",
		"-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false")
	if !strings.Contains(out, "Reading package lists") {
		t.Errorf("apt-get update printed:\n%s", out)
	}
}

// queryScript asks the resolver, by UDP and by TCP, until it answers (whatever that
// is: see TestOutside) or the time given in seconds is over; it prints which of the
// two answered. Datagrams on their way when a helper ends are lost, so it asks anew.
const queryScript = `
import socket, struct, sys, time
end = time.monotonic() + float(sys.argv[1])
query = struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + b"\x09localhost\x00" + struct.pack(">HH", 1, 1)
def udp():
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.settimeout(1)
    c.sendto(query, ("192.168.127.1", 53))
    return c.recv(4096)
def tcp():
    c = socket.create_connection(("192.168.127.1", 53), 1)
    c.settimeout(1)
    c.sendall(struct.pack(">H", len(query)) + query)
    return c.recv(4096)[2:]
for name, ask in ("udp", udp), ("tcp", tcp):
    while True:
        try:
            if ask()[:2] == query[:2]:
                print(name)
                break
        except OSError:
            pass
        if time.monotonic() > end:
            break
`

// TestHelperDies: another helper takes over, and the guest's network is back.
func TestHelperDies(t *testing.T) {
	w, v := s.main, sharedVM(t)
	python(t, w, v, queryScript, "10")
	before, ok := w.helper()
	if !ok {
		t.Fatal("no network helper runs")
	}
	if err := before.kill(); err != nil {
		t.Fatal(err)
	}
	if got := python(t, w, v, queryScript, "30"); got != "udp\ntcp" {
		t.Errorf("after the helper died the resolver answers by %q, want udp and tcp", got)
	}
	after, ok := w.helper()
	if !ok || after.pid == before.pid {
		t.Errorf("the helper was %s, is %s", before, after)
	}
}

// TestHelperGivesUpPrivileges: no thread of the helper can do or become more than
// it needs, which for a daemon that is root is to pass by the modes of sockets.
func TestHelperGivesUpPrivileges(t *testing.T) {
	w := s.main
	sharedVM(t)
	p, ok := w.helper()
	if !ok {
		t.Fatal("no network helper runs")
	}
	keep := map[string]bool{"0000000000000000": true}
	if os.Geteuid() == 0 {
		keep[fmt.Sprintf("%016x", 1<<unix.CAP_DAC_OVERRIDE)] = true
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			field, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch field {
			case "CapInh", "CapPrm", "CapEff", "CapAmb":
				if !keep[value] {
					t.Errorf("%s: %s is %s", task, field, value)
				}
			case "NoNewPrivs":
				if value != "1" {
					t.Errorf("%s may gain privileges", task)
				}
			}
		}
	}
}

// tickScript asks the resolver again and again and notes each answer on the console.
const tickScript = `
import os, socket, struct, sys, time
if os.fork(): sys.exit()
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for fd in 0, 1, 2: os.dup2(null, fd)
console = open("/dev/console", "w")
query = struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + b"\x09localhost\x00" + struct.pack(">HH", 1, 1)
while os.path.exists("/run/e2e-ticking"):
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.settimeout(1)
    try:
        c.sendto(query, ("192.168.127.1", 53))
        c.recv(4096)
        console.write("tick\n")
        console.flush()
    except OSError:
        pass
    c.close()
    time.sleep(0.1)
`

// TestNetworkWithoutDaemon: the helper serves guests while there is no daemon.
func TestNetworkWithoutDaemon(t *testing.T) {
	w, v := s.main, sharedVM(t)
	w.execRoot(t, v, "touch", "/run/e2e-ticking")
	t.Cleanup(func() { w.execRoot(t, v, "rm", "-f", "/run/e2e-ticking") })
	python(t, w, v, tickScript, "")
	before, ok := w.helper()
	if !ok {
		t.Fatal("no network helper runs")
	}
	w.killDaemon(t)
	awaitLines(t, filepath.Join(v.Dir, "console.log"), "tick", 5)
	if p, ok := w.daemon(); ok {
		t.Fatalf("daemon %s runs, nothing was shown", p)
	}
	w.mustDaemon(t)
	if after, ok := w.helper(); !ok || after.pid != before.pid {
		t.Errorf("the helper was %s, is %s", before, after)
	}
	awaitLines(t, filepath.Join(v.Dir, "console.log"), "tick", 5)
}

// awaitLines waits until a text was added to a file n times.
func awaitLines(t *testing.T, file, text string, n int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(0, 2); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for {
		for {
			m, _ := f.Read(buf)
			if m == 0 {
				break
			}
			seen.Write(buf[:m])
		}
		if strings.Count(seen.String(), text) >= n {
			return
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000)
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if ready == 0 && err == nil {
			t.Fatalf("%q was added %d times within 30 s, want %d", text, strings.Count(seen.String(), text), n)
		}
		_, _ = unix.Read(fd, buf)
	}
}

// dialScript tries every target of a JSON list of [protocol, address, port] at the
// same time, and prints those that answered. UDP targets echo.
const dialScript = `
import json, socket, sys, threading
answered = []
def attempt(proto, host, port):
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)[0]
        c = socket.socket(info[0], info[1])
        c.settimeout(4)
        c.connect(info[4])
        if proto == "udp":
            c.send(b"anybody?")
            c.recv(100)
        answered.append([proto, host, port])
    except OSError:
        pass
threads = [threading.Thread(target=attempt, args=target) for target in json.loads(sys.argv[1])]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(answered))
`

// synScript sends TCP SYNs from a raw socket on the card, past the guest's own
// routing, to addresses it would never send there by itself; it prints which of
// the [address, port] got a SYN+ACK.
const synScript = `
import fcntl, json, random, socket, struct, sys, time
targets = [tuple(t) for t in json.loads(sys.argv[1])]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
raw.bind(("eth0", 0))
mac = fcntl.ioctl(raw, 0x8927, struct.pack("256s", b"eth0"))[18:24]
me = socket.inet_aton("192.168.127.2")
def checksum(data):
    if len(data) % 2: data += b"\0"
    n = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    n = (n >> 16) + (n & 0xffff)
    return 0xffff & ~(n + (n >> 16))
gateway = bytes.fromhex("026267720001")
ports = {}
def send(index, address, port):
    source = 20000 + random.randrange(20000)
    ports[source] = (address, port)
    to = socket.inet_aton(address)
    tcp = struct.pack(">HHIIBBHHH", source, port, 1000 + index, 0, 0x50, 2, 64000, 0, 0)
    tcp = tcp[:16] + struct.pack(">H", checksum(me + to + struct.pack(">BBH", 0, 6, len(tcp)) + tcp)) + tcp[18:]
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), index, 0, 64, 6, 0, me, to)
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    raw.send(gateway + mac + b"\x08\x00" + ip + tcp)
answered = set()
end = time.monotonic() + 4
for i, (address, port) in enumerate(targets): send(i, address, port)
while time.monotonic() < end and len(answered) < len(targets):
    raw.settimeout(max(0.01, end - time.monotonic()))
    try: frame = raw.recv(2048)
    except OSError: break
    if len(frame) < 54 or frame[23] != 6: continue
    header = 14 + (frame[14] & 15) * 4
    flags, port = frame[header + 13], struct.unpack(">H", frame[header + 2:header + 4])[0]
    if flags & 0x12 == 0x12 and port in ports: answered.add(ports[port])
print(json.dumps(sorted(answered)))
`

// services are listeners of the host that no guest may reach.
type services struct {
	tcp, udp int          // ports
	reached  atomic.Int64 // connections and datagrams that came in
}

// serve starts TCP listeners and UDP echoes on every address, IPv4 and IPv6.
func serve(t *testing.T) *services {
	t.Helper()
	sv := &services{}
	l4, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	sv.tcp = l4.Addr().(*net.TCPAddr).Port
	u4, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	sv.udp = u4.LocalAddr().(*net.UDPAddr).Port
	listeners, conns := []net.Listener{l4}, []net.PacketConn{u4}
	if l6, err := net.Listen("tcp6", fmt.Sprintf("[::]:%d", sv.tcp)); err == nil {
		listeners = append(listeners, l6)
	}
	if u6, err := net.ListenPacket("udp6", fmt.Sprintf("[::]:%d", sv.udp)); err == nil {
		conns = append(conns, u6)
	}
	for _, l := range listeners {
		t.Cleanup(func() { _ = l.Close() })
		go func() { // ends with the listener
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				sv.reached.Add(1)
				_ = c.Close()
			}
		}()
	}
	for _, u := range conns {
		t.Cleanup(func() { _ = u.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				sv.reached.Add(1)
				_, _ = u.WriteTo(buf[:n], from)
			}
		}()
	}
	return sv
}

// hostAddresses are all addresses of this host.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok {
			addresses = append(addresses, ip.IP.String())
		}
	}
	return addresses
}

// TestHostServices: nothing of the host answers a guest, however it asks.
func TestHostServices(t *testing.T) {
	w, v := s.main, sharedVM(t)
	sv := serve(t)
	// The host itself gets through, so what follows can fail.
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", sv.tcp))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	u, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", sv.udp))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	known := sv.reached.Load()

	addresses := append(hostAddresses(t), gateway, "192.168.127.3", "192.168.127.254", "192.168.127.255", "127.0.0.1", "127.1.2.3",
		"0.0.0.0", "::1", "::ffff:127.0.0.1", "::ffff:192.168.127.1", "64:ff9b::7f00:1", "169.254.169.254", "255.255.255.255", "10.0.2.2")
	var targets [][3]any
	var syns [][2]any
	for _, a := range addresses {
		targets = append(targets, [3]any{"tcp", a, sv.tcp}, [3]any{"udp", a, sv.udp})
		if ip := net.ParseIP(a).To4(); ip != nil {
			syns = append(syns, [2]any{ip.String(), sv.tcp})
		}
	}
	raw, _ := json.Marshal(targets)
	if got := python(t, w, v, dialScript, string(raw)); got != "[]" {
		t.Errorf("a guest reached %s", got)
	}
	// By hand-made packets too; the resolver shows that these are answered at all.
	syns = append(syns, [2]any{gateway, 53})
	raw, _ = json.Marshal(syns)
	if got, want := python(t, w, v, synScript, string(raw)), `[["`+gateway+`", 53]]`; got != want {
		t.Errorf("SYNs were answered by %s, want %s alone", got, want)
	}
	if n := sv.reached.Load() - known; n != 0 {
		t.Errorf("%d flows of the guest arrived at services of the host", n)
	}
	// The host's other ports are as closed: those of its own daemons, if any.
	raw, _ = json.Marshal([][3]any{{"tcp", gateway, 22}, {"tcp", gateway, 80}, {"tcp", "127.0.0.1", 53}, {"udp", gateway, 123}})
	if got := python(t, w, v, dialScript, string(raw)); got != "[]" {
		t.Errorf("a guest reached %s", got)
	}
}

// TestGuestsAreApart: no guest reaches a listener of another.
func TestGuestsAreApart(t *testing.T) {
	w, v := s.main, sharedVM(t)
	server := start(t, w.command("exec", v.ID, "--", "python3", "-u", "-c", `
import socket, threading
l = socket.socket(); l.bind(("0.0.0.0", 5555)); l.listen()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", 5555))
def tcp(): l.accept(); print("reached by tcp")
def udp(): u.recv(1000); print("reached by udp")
threads = [threading.Thread(target=f) for f in (tcp, udp)]
for t in threads: t.start()
print("ready")
for t in threads: t.join()`))
	server.out.expect(t, "ready\n")
	other := w.create(t, "e2e-other", small(t, w)...)
	if got := w.exec(t, other, "ip", "-4", "-o", "addr", "show", "dev", "eth0"); !strings.Contains(got, guestIP+"/24") {
		t.Errorf("the guest's addresses are %q, want %s", got, guestIP)
	}
	w.exec(t, other, "sh", "-c", "for a in 192.168.127.1 192.168.127.2 192.168.127.3 192.168.127.255 255.255.255.255 224.0.0.1; do "+
		"nc -w 3 $a 5555 < /dev/null & timeout 3 tftp -g -l /tmp/$a -r x $a 5555 & done 2>/dev/null; wait")
	if got := server.out.String(); got != "ready\n" {
		t.Errorf("a guest was reached by another:\n%s", got)
	}
	// The listeners are there: the guest itself reaches them.
	python(t, w, v, dialScript, `[["tcp", "127.0.0.1", 5555], ["udp", "127.0.0.1", 5555]]`)
	server.out.expect(t, "reached by ")
	server.out.expect(t, "reached by ")
	server.wait(t)
}

// TestNetworkManager: an image whose network manager wants every card for itself
// leaves ours as it is, when it starts and when it is started again.
func TestNetworkManager(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-networkd")
	// By the files: systemd may not be there yet.
	w.execRoot(t, v, "sh", "-ec", `
printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' > /etc/systemd/network/80-all.network
systemctl --root=/ unmask systemd-networkd.service systemd-networkd.socket
systemctl --root=/ enable systemd-networkd.service`)
	w.ok(t, "vm", "restart", "--wait", "system", v.ID)
	// It has looked at the card when what it says of it is final.
	const state = `until networkctl --no-legend list eth0 | grep -q -e unmanaged -e config; do :; done;
systemctl is-active systemd-networkd; ip -4 -o addr show dev eth0 | grep -o 'inet [^ ]*'; ip route show default`
	const want = "active\ninet " + guestIP + "/24\ndefault via " + gateway + " dev eth0 proto static"
	if got := w.exec(t, v, "timeout", "60", "sh", "-c", state); got != want {
		t.Errorf("after the start:\n%s\nwant\n%s", got, want)
	}
	w.execRoot(t, v, "systemctl", "restart", "systemd-networkd")
	if got := w.exec(t, v, "timeout", "60", "sh", "-c", state); got != want {
		t.Errorf("after its restart:\n%s\nwant\n%s", got, want)
	}
	// And it would not: without what the agent wrote, the address goes.
	w.execRoot(t, v, "sh", "-ec", "rm /run/systemd/network/00-banger.network; systemctl restart systemd-networkd")
	w.exec(t, v, "timeout", "60", "sh", "-c", "while ip -4 -o addr show dev eth0 | grep -q .; do :; done")
}

// TestNoNetwork: the card is there, its cable is out.
func TestNoNetwork(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-nonet", append(small(t, w), "--net", "none")...)
	if got := w.exec(t, v, "cat", "/sys/class/net/eth0/operstate"); got != "down" {
		t.Errorf("the card's state is %q, want down", got)
	}
	if got := w.exec(t, v, "sh", "-c", "tail -n +2 /proc/net/route | wc -l"); got != "0" {
		t.Errorf("there are %s routes", got)
	}
	if got := w.exec(t, v, "ip", "-o", "addr", "show", "dev", "lo"); !strings.Contains(got, "127.0.0.1/8") {
		t.Errorf("the loopback has %q", got)
	}
	// Even if the guest sets everything up by itself.
	if got := w.exec(t, v, "sh", "-c", "ip link set eth0 up; ip addr add 192.168.127.2/24 dev eth0; cat /sys/class/net/eth0/carrier; "+
		"nc -w 3 192.168.127.1 53 < /dev/null && echo connected || echo nothing"); got != "0\nnothing" {
		t.Errorf("after setting up the card: %q", got)
	}
}
