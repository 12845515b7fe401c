package model

// BootFiles is what a VMM needs of a kernel, as absolute paths.
type BootFiles struct {
	Vmlinux   string
	BzImage   string // empty when there is none
	Initramfs string
	Modules   string // image of the module tree; empty when there is none
	MMIO      bool   // it boots in a machine without PCI too
}

// Progress is what long work reports to. Stage begins a named stage and ends the
// one before; Detail and Count describe the current one (total 0: unknown).
type Progress interface {
	Stage(name string)
	Detail(text string)
	Count(done, total int64, unit string)
}
