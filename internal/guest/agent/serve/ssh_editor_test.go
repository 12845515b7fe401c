package serve

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// editorScript is what an editor runs by `ssh -T -D PORT HOST sh`: it starts a server that
// outlives the connection, unless one runs, and says where it listens.
const editorScript = `
set -u
dir=%s
if [ -s "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; then
	echo "found running server"
else
	rm -f "$dir/port"; mkfifo "$dir/up"
	python3 -c '
import http.server, os, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello from " + self.path.encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
open(sys.argv[1] + "/port", "w").write(str(s.server_address[1]))
open(sys.argv[1] + "/pid", "w").write(str(os.getpid()))
open(sys.argv[1] + "/up", "w").close()
s.serve_forever()' "$dir" >"$dir/log" 2>&1 </dev/null &
	cat "$dir/up"; rm "$dir/up"
fi
echo "a1b2c3: start"
echo "listeningOn==$(cat "$dir/port")=="
echo "SSH_AUTH_SOCK==${SSH_AUTH_SOCK-}=="
echo "a1b2c3: end"
cat >/dev/null
`

// An editor's way to its server: a script on stdin, SOCKS to where the server listens, and
// the same server again for the next connection.
func TestSSHEditor(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3, which is the server")
	}
	w := newSSHWorld(t)
	t.Cleanup(func() { endServer(t, filepath.Join(w.dir, "pid")) })
	for i, want := range []string{"a1b2c3: start", "found running server"} {
		socks := freePort(t)
		c := w.command("ssh", "-T", "-D", socks, "-o", "ConnectTimeout=15", "box.vm", "sh")
		stdin, err1 := c.StdinPipe()
		stdout, err2 := c.StdoutPipe()
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(stdin, editorScript, w.dir)
		out := bufio.NewReader(stdout)
		port, first := 0, ""
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("connection %d ends with %q, %v", i, line, err)
			}
			if first == "" {
				first = strings.TrimSpace(line)
			}
			if m := regexp.MustCompile(`^listeningOn==(\d+)==`).FindStringSubmatch(line); m != nil {
				port, _ = strconv.Atoi(m[1])
			}
			if strings.HasSuffix(line, ": end\n") {
				break
			}
		}
		if first != want {
			t.Errorf("connection %d: %q, want %q", i, first, want)
		}
		// Several requests at once, as an editor has several channels to its server.
		answers := make(chan string, 5)
		for n := range cap(answers) {
			go func() { answers <- overSOCKS(socks, port, n) }()
		}
		got := map[string]bool{}
		for range cap(answers) {
			got[<-answers] = true
		}
		for n := range cap(answers) {
			if want := fmt.Sprintf("hello from /%d", n); !got[want] {
				t.Errorf("connection %d: no %q in %v", i, want, got)
			}
		}
		_ = c.Process.Kill() // the laptop is closed
		_ = c.Wait()
	}
}

// overSOCKS asks a web server through a proxy.
func overSOCKS(proxy string, port, n int) string {
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_, _ = c.Write([]byte{5, 1, 0})
	_, _ = io.ReadFull(c, make([]byte, 2))
	_, _ = c.Write([]byte{5, 1, 0, 1, 127, 0, 0, 1, byte(port >> 8), byte(port)})
	answer := make([]byte, 10)
	if _, err := io.ReadFull(c, answer); err != nil || answer[1] != 0 {
		return fmt.Sprint("the proxy says ", answer, err)
	}
	_, _ = fmt.Fprintf(c, "GET /%d HTTP/1.0\r\n\r\n", n)
	all, _ := io.ReadAll(c)
	_, body, _ := strings.Cut(string(all), "\r\n\r\n")
	return body
}

// endServer ends the server that an editor left behind, and sees that it has ended.
func endServer(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		return // it was never started
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Errorf("the server's pid: %v", err)
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Errorf("the server did not outlive its connections: %v", err)
		return
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Errorf("end the server: %v", err)
	}
	n := 0
	for err = unix.EINTR; err == unix.EINTR; {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	}
	if n != 1 {
		t.Errorf("the server is left: %v", err)
	}
}
