package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/vmdns"
)

const (
	namesLimit   = 2.0 // times dnsmasq's time for a question: half its questions per second
	namesP99     = 5   // ms
	namedVMs     = 1000
	namesSeconds = 1 // of each run
)

// measureNames compares the name server with dnsmasq: the same records, the same
// questions by dnsperf over loopback, in turns. How long an answer takes is measured
// at half of what dnsmasq can do: at full load it is only the length of the queue.
func measureNames(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 3
	}
	for _, program := range []string{"dnsperf", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: scripts/bootstrap bench installs it", err)
		}
	}
	dir, err := os.MkdirTemp(l.scratch, "names-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	hosts := make(map[string]vmdns.Host, namedVMs)
	var list, questions strings.Builder
	for addr, i := netip.MustParseAddr("10.42.0.2"), 0; i < namedVMs; addr, i = addr.Next(), i+1 {
		name := fmt.Sprintf("calm-otter-%d", i)
		hosts[name] = vmdns.Host{Addrs: []netip.Addr{addr}}
		fmt.Fprintf(&list, "%s %s.vm\n", addr, name)
		fmt.Fprintf(&questions, "%s.vm A\n", name)
	}
	d := dnsperf{questions: filepath.Join(dir, "questions")}
	hostsFile := filepath.Join(dir, "hosts")
	if err := errors.Join(os.WriteFile(d.questions, []byte(questions.String()), 0o644), os.WriteFile(hostsFile, []byte(list.String()), 0o644)); err != nil {
		return nil, err
	}

	service := vmdns.New(vmdns.Deps{Log: slog.New(slog.DiscardHandler)})
	defer service.Close()
	ours, err := service.Open(vmdns.Listener{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err == nil {
		err = service.Replace(hosts)
	}
	if err != nil {
		return nil, err
	}
	theirs, stop, err := l.dnsmasq(ctx, hostsFile)
	if err != nil {
		return nil, err
	}
	defer stop()

	var value, floor, rates, floorRates samples
	for range n {
		rate, err := d.rate(ctx, ours)
		if err != nil {
			return nil, err
		}
		other, err := d.rate(ctx, theirs)
		if err != nil {
			return nil, err
		}
		rates, floorRates = append(rates, rate), append(floorRates, other)
		value, floor = append(value, 1e6/rate), append(floor, 1e6/other)
	}
	rate := floorRates.median() / 2
	var p99, floorP99 samples
	for range n {
		took, err := d.p99(ctx, ours, rate)
		if err != nil {
			return nil, err
		}
		other, err := d.p99(ctx, theirs, rate)
		if err != nil {
			return nil, err
		}
		p99, floorP99 = append(p99, took), append(floorP99, other)
	}
	each := figure("vmdns", "µs", value, floor, namesLimit, onRatio)
	each.What, each.FloorIs = "a question to the name server at full load, 1,000 VMs", "dnsmasq"
	each.Notes = fmt.Sprintf("%s questions/s, dnsmasq %s", number(rates.median()), number(floorRates.median()))
	late := figure("vmdns-p99", "ms", p99, floorP99, namesP99, onValue)
	late.What, late.FloorIs = "the slowest hundredth of answers, at half of dnsmasq's full load", "dnsmasq"
	late.Notes = fmt.Sprintf("at %s questions/s", number(rate))
	return []Figure{each, late}, nil
}

// dnsmasq starts one that knows these hosts.
func (l *lab) dnsmasq(ctx context.Context, hosts string) (at netip.AddrPort, stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return at, nil, err
	}
	cmd := exec.CommandContext(ctx, "dnsmasq", "-d", "--conf-file=/dev/null", "--log-facility=-", "--port="+strconv.Itoa(port),
		"--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts", "--addn-hosts="+hosts, "--local=/vm/")
	r, w, err := os.Pipe()
	if err != nil {
		return at, nil, err
	}
	cmd.Stderr = w
	err = l.thread.start(cmd, unix.SIGKILL)
	_ = w.Close()
	if err != nil {
		return at, nil, errors.Join(err, r.Close())
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = r.Close()
	}
	// It answers once it has read them, and says so.
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if strings.Contains(lines.Text(), "read "+hosts) {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), stop, nil
		}
	}
	stop()
	return at, nil, errors.New("dnsmasq ended before it had read its hosts")
}

// dnsperf asks the questions in a file, over and over.
type dnsperf struct{ questions string }

var (
	dnsperfRate = regexp.MustCompile(`Queries per second: +([0-9.]+)`)
	dnsperfGood = regexp.MustCompile(`Response codes: +NOERROR [0-9]+ \(100\.00%\)`)
	dnsperfLost = regexp.MustCompile(`Queries lost: +([0-9]+)`)
)

func (d dnsperf) run(ctx context.Context, at netip.AddrPort, args ...string) (string, error) {
	host, port, err := net.SplitHostPort(at.String())
	if err != nil {
		return "", err
	}
	out, err := output(exec.CommandContext(ctx, "dnsperf", append([]string{"-s", host, "-p", port, "-d", d.questions,
		"-l", strconv.Itoa(namesSeconds), "-c", "4", "-q", "64"}, args...)...))
	if err != nil {
		return "", err
	}
	if lost := dnsperfLost.FindStringSubmatch(out); !dnsperfGood.MatchString(out) || lost == nil || lost[1] != "0" {
		return "", fmt.Errorf("not every question to %s was answered: %s", at, out[max(0, len(out)-1000):])
	}
	return out, nil
}

// rate is how many questions a second are answered.
func (d dnsperf) rate(ctx context.Context, at netip.AddrPort) (float64, error) {
	out, err := d.run(ctx, at)
	if err != nil {
		return 0, err
	}
	m := dnsperfRate.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no rate in what dnsperf says: %s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// p99 is the time within which all but a hundredth of the answers come, in ms, when
// so many questions a second are asked.
func (d dnsperf) p99(ctx context.Context, at netip.AddrPort, rate float64) (float64, error) {
	out, err := d.run(ctx, at, "-v", "-Q", strconv.Itoa(int(rate)))
	if err != nil {
		return 0, err
	}
	return latency(out, 0.99)
}

// latency is a percentile of the latencies in the verbose output of dnsperf, in ms.
func latency(out string, share float64) (float64, error) {
	var all []time.Duration
	for line := range strings.Lines(out) {
		// > NOERROR calm-otter-1.vm A 0.000123
		fields := strings.Fields(line)
		if len(fields) != 5 || fields[0] != ">" {
			continue
		}
		took, err := time.ParseDuration(fields[4] + "s")
		if err != nil {
			return 0, fmt.Errorf("understand %q: %w", line, err)
		}
		all = append(all, took)
	}
	if len(all) == 0 {
		return 0, errors.New("dnsperf says nothing of single questions")
	}
	slices.Sort(all)
	return float64(all[min(len(all)-1, int(float64(len(all))*share))]) / float64(time.Millisecond), nil
}
