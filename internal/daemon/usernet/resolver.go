package usernet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/model"
)

const (
	dnsHeader      = 12
	maxDNSMessage  = 65535
	maxDNSQuery    = 4096 // a question is small; the answers may be large
	maxServers     = 3    // as many as the C library asks
	answerTimeout  = 2500 * time.Millisecond
	resolveTimeout = 9 * time.Second
)

// HostResolvers is the file with the resolvers of this host.
const HostResolvers = "/etc/resolv.conf"

// errNoAnswer is a question that no server answered.
var errNoAnswer = errors.New("no resolver answered")

// Resolver passes questions on to the host's resolvers, as they are, and their
// answers back. It reads the host's configuration again when that changed. The host's
// resolvers may know the names of all VMs; guests are not to hear of them this way.
type Resolver struct {
	path string // resolv.conf

	// mu guards what was read from path.
	mu      sync.Mutex
	stamp   fileStamp
	servers []netip.AddrPort

	// first is the server that answered last; asking it first spares every
	// question the wait for one that is down.
	first atomic.Uint32
}

// fileStamp tells one version of a file from another.
type fileStamp struct {
	mtime time.Time
	size  int64
	ok    bool
}

// NewResolver returns the resolver that asks the servers of a resolv.conf.
func NewResolver(path string) *Resolver { return &Resolver{path: path} }

// current returns the host's resolvers.
func (r *Resolver) current() []netip.AddrPort {
	var stamp fileStamp
	if st, err := os.Stat(r.path); err == nil {
		stamp = fileStamp{mtime: st.ModTime(), size: st.Size(), ok: true}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.servers == nil || stamp != r.stamp {
		r.stamp, r.servers = stamp, readServers(r.path)
		r.first.Store(0)
	}
	return r.servers
}

// readServers takes the servers from a resolv.conf; like the C library it falls
// back to this host.
func readServers(path string) []netip.AddrPort {
	var servers []netip.AddrPort
	if f, err := os.Open(path); err == nil {
		defer func() { _ = f.Close() }()
		lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
		for lines.Scan() && len(servers) < maxServers {
			words := strings.Fields(lines.Text())
			if len(words) < 2 || words[0] != "nameserver" {
				continue
			}
			if ip, err := netip.ParseAddr(words[1]); err == nil {
				servers = append(servers, netip.AddrPortFrom(ip, DNSPort))
			}
		}
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), DNSPort)}
	}
	return servers
}

// Resolve asks the servers in turn, network being "udp" or "tcp". Where all of
// them refuse or fail to find out, it returns what the last one said. Names of VMs do
// not exist for it.
func (r *Resolver) Resolve(ctx context.Context, network string, query []byte) ([]byte, error) {
	if namesVM(query) {
		return refusal(query, rcodeNameError), nil
	}
	answer, err := r.resolve(ctx, network, query)
	if err == nil && namesVM(answer) {
		// A name elsewhere, or that of an address, led there.
		return refusal(query, rcodeNameError), nil
	}
	return answer, err
}

func (r *Resolver) resolve(ctx context.Context, network string, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	servers := r.current()
	first := int(r.first.Load())
	var last []byte
	for i := range 2 * len(servers) {
		if ctx.Err() != nil {
			break
		}
		if last != nil && i >= len(servers) {
			break
		}
		at := (first + i) % len(servers)
		answer, err := ask(ctx, network, servers[at], query)
		if err != nil {
			continue
		}
		switch answer[3] & 0xf {
		case rcodeServerFailure, rcodeNotImplemented, rcodeRefused:
			last = answer
			continue
		}
		if at != first {
			r.first.Store(uint32(at))
		}
		return answer, nil
	}
	if last != nil {
		return last, nil
	}
	return nil, errNoAnswer
}

const (
	rcodeServerFailure  = 2
	rcodeNameError      = 3
	rcodeNotImplemented = 4
	rcodeRefused        = 5
)

// ask puts one question to one server, from a port of its own.
func ask(ctx context.Context, network string, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		if err := writeDNS(conn, query); err != nil {
			return nil, err
		}
		answer, err := readDNS(conn, maxDNSMessage)
		if err == nil && !answers(answer, query) {
			err = errNoAnswer
		}
		return answer, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := conn.Read(*buf)
		if err != nil {
			return nil, err
		}
		if answers((*buf)[:n], query) {
			return bytes.Clone((*buf)[:n]), nil
		}
	}
}

// isQuery reports whether b can be a question.
func isQuery(b []byte) bool {
	return len(b) >= dnsHeader && len(b) <= maxDNSQuery && b[2]&0x80 == 0
}

// answers reports whether a is an answer to q: the same id, and the same
// question where the server repeats it.
func answers(a, q []byte) bool {
	if len(a) < dnsHeader || a[0] != q[0] || a[1] != q[1] || a[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(a[4:]) == 0 {
		return true
	}
	qa, qq := question(a), question(q)
	// Letters of a name may come back in another case; no other byte of a
	// question differs by that alone in a way that matters.
	return qa != nil && bytes.EqualFold(qa, qq)
}

// question returns the bytes of the first question; nil when they are malformed.
func question(b []byte) []byte {
	i := dnsHeader
	for i < len(b) {
		n := int(b[i])
		if n > 63 {
			return nil
		}
		i += 1 + n
		if n == 0 {
			if i+4 > len(b) {
				return nil
			}
			return b[dnsHeader : i+4]
		}
	}
	return nil
}

// vmLabels ends every name of a VM: the label of the domain, and the root's.
var vmLabels = append(append([]byte{byte(len(model.DNSDomain))}, model.DNSDomain...), 0)

// namesVM reports whether a name in a message is one of a VM. However names are
// compressed, their end stands there in full once; elsewhere these bytes hardly come
// about.
func namesVM(msg []byte) bool {
	for {
		i := bytes.IndexByte(msg, vmLabels[0])
		if i < 0 || len(msg)-i < len(vmLabels) {
			return false
		}
		if bytes.EqualFold(msg[i:i+len(vmLabels)], vmLabels) {
			return true
		}
		msg = msg[i+1:]
	}
}

// serverFailure turns a question into the answer that nothing could be found out.
func serverFailure(query []byte) []byte { return refusal(query, rcodeServerFailure) }

// refusal turns a question into an answer without records.
func refusal(query []byte, rcode byte) []byte {
	a := bytes.Clone(query[:dnsHeader])
	a[2] = a[2]&^0x02 | 0x80 // an answer, not truncated
	a[3] = 0x80 | rcode
	q := question(query)
	clear(a[4:])
	if q != nil {
		a[5] = 1
	}
	return append(a, q...)
}

// writeDNS and readDNS are the framing over a stream: two bytes of length.
func writeDNS(w io.Writer, msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}

func readDNS(r io.Reader, limit int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < dnsHeader || n > limit {
		return nil, errors.New("dns message of an impossible length")
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}
