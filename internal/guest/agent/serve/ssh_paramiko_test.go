package serve

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

// paramikoScript uses the server as a client does that shares no code with OpenSSH.
const paramikoScript = `
import io, os, sys, paramiko
proxy, user, key, known, dir, port = sys.argv[1:]
c = paramiko.SSHClient()
c.load_host_keys(known)
c.set_missing_host_key_policy(paramiko.RejectPolicy())
c.connect("box.vm", username=user, key_filename=key, sock=paramiko.ProxyCommand(proxy), allow_agent=False, look_for_keys=False)
stdin, stdout, stderr = c.exec_command("cat; echo err >&2; exit 5", environment={"LC_X": "y"})
stdin.write("input"); stdin.channel.shutdown_write()
print(stdout.read().decode(), stderr.read().decode().strip(), stdout.channel.recv_exit_status())
s = c.open_sftp()
data = os.urandom(3 << 20)
s.putfo(io.BytesIO(data), dir + "/put")
back = io.BytesIO(); s.getfo(dir + "/put", back)
print(back.getvalue() == data, s.stat(dir + "/put").st_size, s.normalize("."))
f = c.get_transport().open_channel("direct-tcpip", ("localhost", int(port)), ("localhost", 1))
f.sendall(b"word"); f.shutdown_write()
print(f.makefile("rb").read().decode())
t = c.invoke_shell(term="vt100", width=91, height=17)
t.sendall(b"stty size; exit 3\n")
out = b""
while True:
    more = t.recv(4096)
    if not more: break
    out += more
print(b"17 91" in out, t.recv_exit_status())
t = c.get_transport()
t.request_port_forward("127.0.0.1", 0)
c.close()
`

func TestSSHParamiko(t *testing.T) {
	python := ""
	for _, p := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(p, "-c", "import paramiko").Run() == nil {
			python = p
			break
		}
	}
	if python == "" {
		t.Skip("no python3 with paramiko, which is the client")
	}
	w := newSSHWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listenTCP(t).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w.file("script.py", paramikoScript)
	got := w.run(python, w.dir+"/script.py", "env "+proxyEnv+"="+w.dir+" "+self, "banger", w.dir+"/id", w.dir+"/known_hosts", w.dir, port)
	if want := "input err 5\nTrue 3145728 " + home(t) + "\nWORD\nTrue 3\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
