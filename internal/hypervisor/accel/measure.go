package accel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/sysexec"
)

// report is one line the child prints. Lines before the last name the stage it
// is about to enter, so that a child that never comes back says where it was.
type report struct {
	Stage      stage         `json:"stage"`
	Errno      int           `json:"errno,omitempty"` // why Stage did not succeed
	Exit       uint32        `json:"exit,omitempty"`  // KVM's exit reason, when not the expected one
	Wrong      bool          `json:"wrong,omitempty"` // the guest computed nonsense
	Rounds     int           `json:"rounds,omitempty"`
	GuestNanos time.Duration `json:"guest,omitempty"`
	HostNanos  time.Duration `json:"host,omitempty"`
}

type stage string

const (
	stageOpen  stage = "open"  // open the device
	stageMake  stage = "make"  // create VM, memory and vCPU
	stageEnter stage = "enter" // run the guest
	stageDone  stage = "done"
)

// measure runs the child and judges what it said. The verdict is not conclusive
// when the host was too busy to give one.
func measure(ctx context.Context, o Options) (v Verdict, conclusive bool, err error) {
	if _, err := os.Stat(o.Device); errors.Is(err, fs.ErrNotExist) {
		return absent(o.Device, "does not exist"), true, nil
	}
	if len(o.Command) == 0 {
		return Verdict{}, false, errors.New("probe accelerator: no command to run")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return Verdict{}, false, fmt.Errorf("probe accelerator: %w", err)
	}
	defer r.Close()
	limit := time.Now().Add(deadline)
	child, err := sysexec.StartDetached(sysexec.Detached{
		Path: o.Command[0], Args: append(o.Command[1:len(o.Command):len(o.Command)], o.Device),
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Stdout: w,
	})
	_ = w.Close()
	if err != nil {
		return Verdict{}, false, fmt.Errorf("probe accelerator: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := r.SetReadDeadline(limit); err != nil {
		_ = child.Signal(unix.SIGKILL)
		return Verdict{}, false, fmt.Errorf("probe accelerator: %w", err)
	}
	last, heard, readErr := readReports(r)
	used := cpuTime(child)
	stuck := !end(child)
	if ctx.Err() != nil {
		return Verdict{}, false, fmt.Errorf("probe accelerator: %w", context.Cause(ctx))
	}
	if !heard && readErr == nil {
		return Verdict{}, false, fmt.Errorf("probe accelerator: %s ended without an answer", o.Command[0])
	}
	v, conclusive = judge(o.Device, last, heard, used)
	if stuck {
		v.Reason += fmt.Sprintf("; its process %d hangs in the kernel", child.PID)
	}
	return v, conclusive, nil
}

// readReports returns the child's last complete line, and why it read no more;
// nil at the end of the stream or of the reports.
func readReports(r io.Reader) (last report, heard bool, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, 16<<10))
	for lines.Scan() {
		var next report
		if json.Unmarshal(lines.Bytes(), &next) != nil {
			break
		}
		last, heard = next, true
		if last.Stage == stageDone {
			break
		}
	}
	return last, heard, lines.Err()
}

// end kills the child and gives it a moment to go. When it is stuck in the
// kernel the signal stays pending, and the process is reaped whenever it comes
// out; it also carries a CPU limit of its own.
func end(child *sysexec.Proc) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	return child.Kill(ctx) == nil
}

// judge turns the child's last words into a verdict.
func judge(device string, last report, heard bool, used time.Duration) (Verdict, bool) {
	errno := unix.Errno(last.Errno)
	switch {
	case !heard:
		return emulated("the probe of %s said nothing within %s; the host may be too busy", device, deadline), false
	case last.Stage == stageOpen && (errno == unix.EACCES || errno == unix.EPERM):
		return noPermission(device), true
	case last.Stage == stageOpen && last.Errno != 0:
		return absent(device, "does not open: "+errno.Error()), true
	case last.Errno == int(unix.EBUSY):
		v := emulated("%s opens, but another hypervisor holds the processor's virtualisation", device)
		v.Hint = "stop the other hypervisor (VirtualBox, for example)"
		return v, true
	case last.Errno != 0:
		return emulated("%s opens, but cannot %s a guest: %w", device, last.Stage, errno), true
	case last.Exit != 0:
		return emulated("%s opens, but its guest ended with KVM exit reason %d", device, last.Exit), true
	case last.Wrong:
		return emulated("%s opens, but its guest miscounts", device), true
	case last.Stage != stageDone && used < busyCPU:
		return emulated("the probe of %s did not end within %s; the host may be too busy", device, deadline), false
	case last.Stage != stageDone:
		return emulated("%s opens, but a guest loop of %d rounds did not end within %s", device, rounds, deadline), true
	}
	v := Verdict{Kind: KindWorks, Reason: "a guest runs at the host's own speed"}
	if last.GuestNanos > slowFactor*last.HostNanos+slowGrace {
		v = emulated("%s opens, but does not run guests in hardware: a loop of %d rounds takes %s in a guest and %s on the host",
			device, last.Rounds, last.GuestNanos.Round(time.Millisecond), last.HostNanos.Round(time.Microsecond))
	}
	v.Rounds, v.GuestNanos, v.HostNanos = last.Rounds, last.GuestNanos, last.HostNanos
	return v, true
}

func emulated(format string, args ...any) Verdict {
	return Verdict{
		Kind: KindEmulated, Reason: fmt.Errorf(format, args...).Error(),
		Hint: "nothing needs doing: QEMU emulates the processor instead; for full speed use a machine with hardware (or nested) virtualisation",
	}
}

func absent(device, why string) Verdict {
	return Verdict{
		Kind: KindAbsent, Reason: device + " " + why,
		Hint: "switch virtualisation on in the firmware (or nested virtualisation in the hypervisor above) and load the module: sudo modprobe -a kvm_intel kvm_amd",
	}
}

// noPermission names the group that may open the device.
func noPermission(device string) Verdict {
	v := Verdict{Kind: KindNoPermission, Reason: "this user may not open " + device}
	who := "$USER"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	var st unix.Stat_t
	group := ""
	if err := unix.Stat(device, &st); err == nil && st.Gid != 0 && st.Mode&0o060 == 0o060 {
		group = strconv.Itoa(int(st.Gid))
		if g, err := user.LookupGroupId(group); err == nil {
			group = g.Name
		}
	}
	if group == "" {
		v.Hint = fmt.Sprintf("sudo setfacl -m u:%s:rw %s (until the next boot; a udev rule makes it last)", who, device)
		return v
	}
	v.Reason += fmt.Sprintf("; group %q may", group)
	v.Hint = fmt.Sprintf("sudo usermod -aG %s %s, then log in again", group, who)
	return v
}
