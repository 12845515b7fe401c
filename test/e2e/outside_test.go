//go:build e2e

package e2e_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/nettest"
)

// Two hosts that a test makes, with a wire between them: ours, on which the daemon
// and its network helper run, and one outside.
const (
	oursIP    = "10.77.0.1"
	outsideIP = "10.77.0.2"
)

// netns is one of them.
type netns struct {
	*nettest.NS
	t *testing.T
}

func newNetns(t *testing.T) *netns {
	t.Helper()
	return &netns{nettest.NewNS(t), t}
}

// echo answers on a port with what it gets.
func (n *netns) echo(port string) {
	n.t.Helper()
	var l net.Listener
	var u net.PacketConn
	n.Must(func() (err error) {
		if l, err = net.Listen("tcp", ":"+port); err == nil {
			u, err = net.ListenPacket("udp", ":"+port)
		}
		return err
	})
	n.t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	go func() {
		buf := make([]byte, 65535)
		for {
			size, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:size], from)
		}
	}()
}

// outsideScript asks the resolver for names by UDP and TCP, and lets a server that
// it finds by name echo; it prints what came back.
const outsideScript = `
import socket, struct
def answer(ask, name):
    query = struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l for l in name.split(b".")) + b"\0" + struct.pack(">HH", 1, 1)
    r = ask(query)
    number, flags, asked, answers = struct.unpack(">HHHH", r[:8])
    assert number == 4711 and asked == 1 and r[12:len(query)] == query[12:], r
    return "%s %d %d %s" % (name.decode(), flags & 15, answers, socket.inet_ntoa(r[-4:]) if answers else "-")
def udp(query):
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.settimeout(20)
    c.connect(("192.168.127.1", 53))
    c.send(query)
    return c.recv(4096)
def tcp(query):
    c = socket.create_connection(("192.168.127.1", 53), 20)
    c.sendall(struct.pack(">H", len(query)) + query)
    f = c.makefile("rb")
    return f.read(struct.unpack(">H", f.read(2))[0])
for ask in udp, tcp:
    for name in b"www.test", b"nothing.test":
        print(ask.__name__, answer(ask, name))
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    c = socket.socket(socket.AF_INET, kind)
    c.settimeout(20)
    c.connect(("www.test", 7))
    c.send(b"hello")
    print(c.recv(100).decode(), c.getpeername()[0])
`

// outsideWorld is a world whose daemon runs on a host of its own, beside one outside.
type outsideWorld struct {
	*world
	here, outside *netns
	conf          string // what is /etc/resolv.conf there
	flags         []string
}

// newOutsideWorld makes both hosts, a resolver that knows www.test on ours, and a
// daemon there. Outside, port 7 echoes. All of it in namespaces.
func newOutsideWorld(t *testing.T, name string) *outsideWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	image, kernel := defaultRootfs(t), kernelDir(t)
	o := &outsideWorld{
		here: newNetns(t), outside: newNetns(t), conf: filepath.Join(t.TempDir(), "resolv.conf"),
		flags: []string{"--image", name, "--kernel", name},
	}
	o.here.Wire("v0", []string{oursIP + "/24"}, o.outside.NS, "v1", []string{outsideIP + "/24"})
	o.outside.echo("7")
	resolver := exec.Command(tool(t, "dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
		"--user=root", "--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-",
		"--address=/www.test/"+outsideIP, "--local=/test/")
	var dnsmasq *running
	o.here.Must(func() error { dnsmasq = start(t, resolver); return nil })
	dnsmasq.err.expect(t, "started, ") // and it listens
	write(t, o.conf, "nameserver 127.0.0.1\n")
	o.world = scratchWorld(t, config)
	o.startDaemon(t)
	o.ok(t, "image", "register", "--rootfs", image, name)
	o.ok(t, "kernel", "import", "--from", kernel, name)
	return o
}

// startDaemon starts the daemon on our host. It, and so its network helper, sees the
// host's resolv.conf and no system bus: the one there is belongs to another host.
func (o *outsideWorld) startDaemon(t *testing.T) {
	t.Helper()
	bus := t.TempDir()
	o.here.Must(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(o.conf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount(bus, "/run/dbus", "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
			return err
		}
		o.ok(t, "daemon", "start")
		return nil
	})
}

// TestOutside: from a guest, names that the host's resolver knows are known, and a
// host that the host reaches is reached.
func TestOutside(t *testing.T) {
	w := newOutsideWorld(t, "e2e-outside")
	v := w.create(t, "e2e-outside", w.flags...)
	const want = "udp www.test 0 1 " + outsideIP + "\nudp nothing.test 3 0 -\n" +
		"tcp www.test 0 1 " + outsideIP + "\ntcp nothing.test 3 0 -\n" +
		"hello " + outsideIP + "\nhello " + outsideIP
	if got := python(t, w.world, v, outsideScript, ""); got != want {
		t.Errorf("the guest got\n%s\nwant\n%s", got, want)
	}
	if got := w.exec(t, v, "cat", "/etc/resolv.conf"); got != "nameserver "+gateway {
		t.Errorf("resolv.conf: %q", got)
	}
}
