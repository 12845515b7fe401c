package accel

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rounds is the length of the measured loop: some 50 µs on hardware, and still
// well below the deadline where every instruction is emulated at a microsecond.
const rounds = 100_000

// warmup faults in the guest's pages before anything is measured.
const warmup = 1_000

// The KVM interface: requests, and the exit reason of a hlt.
const (
	kvmCreateVM            = 0xAE01
	kvmGetVCPUMmapSize     = 0xAE04
	kvmCreateVCPU          = 0xAE41
	kvmSetTSSAddr          = 0xAE47
	kvmSetIdentityMapAddr  = 0x4008AE48
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmRun                 = 0xAE80
	kvmGetRegs             = 0x8090AE81
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84

	kvmExitHLT = 5
)

type kvmMemoryRegion struct {
	Slot, Flags              uint32
	GuestAddr, Size, HostPtr uint64
}

type kvmRegs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

type kvmSegment struct {
	Base                                              uint64
	Limit                                             uint32
	Selector                                          uint16
	Type, Present, DPL, DB, S, L, G, AVL, Unusable, _ uint8
}

type kvmTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

type kvmSregs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT kvmSegment
	GDT, IDT                        kvmTable
	CR0, CR2, CR3, CR4, CR8         uint64
	EFER, APICBase                  uint64
	InterruptBitmap                 [4]uint64
}

// The guest's memory: three levels of page tables that map the first 2 MiB onto
// themselves, and the code.
const (
	guestSize = 0x10000
	pml4At    = 0x1000
	pdptAt    = 0x2000
	pdAt      = 0x3000
	codeAt    = 0x4000
)

// guestCode adds RCX, RCX-1, … 1 to RAX, then stops.
var guestCode = []byte{
	0x48, 0x01, 0xC8, // add rax, rcx
	0x48, 0xFF, 0xC9, // dec rcx
	0x75, 0xF8, //       jnz back to the add
	0xF4, //             hlt
}

// ChildMain is the child process: it runs the guest loop on the device named by
// args[0] (default /dev/kvm) and prints what it saw as JSON lines. It returns the
// process's exit code. Only Probe has use for it.
func ChildMain(args []string) int {
	// Should nobody be left to kill us, the kernel does after two seconds of CPU.
	_ = unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: 2, Max: 2})
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	runtime.LockOSThread() // a vCPU belongs to one thread, and so does its CPU clock
	device := Device
	if len(args) > 0 {
		device = args[0]
	}
	out := json.NewEncoder(os.Stdout)
	final := probeDevice(device, func(s stage) { _ = out.Encode(report{Stage: s}) })
	if out.Encode(final) != nil {
		return 1
	}
	return 0
}

// probeDevice does the work; entering is told each stage before it begins.
func probeDevice(device string, entering func(stage)) report {
	entering(stageOpen)
	kvm, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return report{Stage: stageOpen, Errno: errnoOf(err)}
	}
	entering(stageMake)
	g, err := newGuest(kvm)
	if err != nil {
		return report{Stage: stageMake, Errno: errnoOf(err)}
	}
	entering(stageEnter)
	res := report{Stage: stageDone, Rounds: rounds}
	if _, bad := g.count(warmup); bad != nil {
		return *bad
	}
	// Fast guests are measured a few times for the best; a slow one is slow.
	for i := range 3 {
		d, bad := g.count(rounds)
		if bad != nil {
			return *bad
		}
		if i == 0 || d < res.GuestNanos {
			res.GuestNanos = d
		}
		if d > slowGrace {
			break
		}
	}
	for i := range 3 {
		start := threadTime()
		runtime.KeepAlive(hostLoop(rounds))
		if d := threadTime() - start; i == 0 || d < res.HostNanos {
			res.HostNanos = d
		}
	}
	return res
}

// hostLoop is the guest's loop.
//
//go:noinline
func hostLoop(n uint64) (sum uint64) {
	for ; n != 0; n-- {
		sum += n
	}
	return sum
}

type guest struct {
	vcpu int
	run  []byte // struct kvm_run, shared with the kernel
}

// newGuest makes a VM with one vCPU in 64-bit mode. Nothing is released: the
// process ends soon.
func newGuest(kvm int) (*guest, error) {
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return nil, err
	}
	// Older Intel processors need three pages and one of the guest's space.
	_, _ = ioctl(vm, kvmSetTSSAddr, 0xFFFBD000)
	ident := uint64(0xFFFBC000)
	_, _ = ioctlPtr(vm, kvmSetIdentityMapAddr, unsafe.Pointer(&ident))

	mem, err := unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	const present, writable, huge = 1, 2, 1 << 7
	binary.LittleEndian.PutUint64(mem[pml4At:], pdptAt|present|writable)
	binary.LittleEndian.PutUint64(mem[pdptAt:], pdAt|present|writable)
	binary.LittleEndian.PutUint64(mem[pdAt:], present|writable|huge)
	copy(mem[codeAt:], guestCode)
	region := kvmMemoryRegion{Size: guestSize, HostPtr: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctlPtr(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return nil, err
	}

	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return nil, err
	}
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	var s kvmSregs
	if _, err := ioctlPtr(vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return nil, err
	}
	s.CS = kvmSegment{Limit: 0xFFFFFFFF, Selector: 8, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvmSegment{Limit: 0xFFFFFFFF, Selector: 16, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CR3 = pml4At
	s.CR4 = 1 << 5                         // PAE
	s.CR0 = 1<<31 | 1<<5 | 1<<4 | 1<<1 | 1 // PG, NE, ET, MP, PE
	s.EFER = 1<<10 | 1<<8                  // LMA, LME
	if _, err := ioctlPtr(vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return nil, err
	}
	return &guest{vcpu: vcpu, run: run}, nil
}

// count runs the loop in the guest and returns the CPU time it took, or the
// report of what went wrong.
func (g *guest) count(n uint64) (time.Duration, *report) {
	regs := kvmRegs{RCX: n, RIP: codeAt, RFLAGS: 2}
	if _, err := ioctlPtr(g.vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return 0, &report{Stage: stageEnter, Errno: errnoOf(err)}
	}
	start := threadTime()
	for {
		_, err := ioctl(g.vcpu, kvmRun, 0)
		if err == nil {
			break
		}
		if err != unix.EINTR && err != unix.EAGAIN { //nolint:errorlint // a bare errno
			return 0, &report{Stage: stageEnter, Errno: errnoOf(err)}
		}
	}
	took := threadTime() - start
	if exit := binary.LittleEndian.Uint32(g.run[8:]); exit != kvmExitHLT {
		return 0, &report{Stage: stageEnter, Exit: exit}
	}
	if _, err := ioctlPtr(g.vcpu, kvmGetRegs, unsafe.Pointer(&regs)); err != nil {
		return 0, &report{Stage: stageEnter, Errno: errnoOf(err)}
	}
	if regs.RAX != n*(n+1)/2 {
		return 0, &report{Stage: stageEnter, Wrong: true}
	}
	return took, nil
}

// threadTime is the CPU time of this thread. A busy host delays the loop but
// does not make it look slower.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func ioctlPtr(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func errnoOf(err error) int {
	if e, ok := err.(unix.Errno); ok { //nolint:errorlint // straight from a system call
		return int(e)
	}
	return int(unix.EIO)
}
