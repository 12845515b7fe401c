package hypervisortest

import (
	"bytes"
	"encoding/binary"
)

// Hello is what the guest of Kernel writes to its serial console.
const Hello = "hello from the test guest\n"

// Machine is what the guest of Kernel knows of its machine.
type Machine int

// The machines.
const (
	// ACPI: the power button is an event, and a sleep state turns the machine off.
	ACPI Machine = iota
	// Keyboard: the power button is a key, and the keyboard controller resets the
	// machine.
	Keyboard
)

// arms are the instructions that make the power button count, which has to be before
// the guest says that it runs.
var arms = map[Machine][]byte{
	ACPI: {
		0xBA, 0x02, 0x06, 0, 0, //       mov edx, 0x602: the enable register of power events
		0x66, 0xB8, 0x00, 0x01, //       mov ax, 0x100: the button
		0x66, 0xEF, //                   out dx, ax
	},
}

// ends are the instructions that wait for the power button and end the machine.
var ends = map[Machine][]byte{
	ACPI: {
		0xBA, 0x00, 0x06, 0, 0, //       mov edx, 0x600: their status
		0xF3, 0x90, // poll:             pause
		0x66, 0xED, //                   in ax, dx
		0xF6, 0xC4, 0x01, //             test ah, 1
		0x74, 0xF7, //                   jz poll
		0xBA, 0x04, 0x06, 0, 0, //       mov edx, 0x604: sleep control
		0x66, 0xB8, 0x00, 0x20, //       mov ax, 0x2000: enter soft-off
		0x66, 0xEF, //                   out dx, ax
		0xF4, //                         hlt
	},
	Keyboard: {
		0xF3, 0x90, // poll:             pause
		0xE4, 0x64, //                   in al, 0x64: the controller's status
		0xA8, 0x01, //                   test al, 1: a key
		0x74, 0xF8, //                   jz poll
		0xB0, 0xFE, //                   mov al, 0xfe: reset
		0xE6, 0x64, //                   out 0x64, al
		0xF4, //                         hlt
	},
}

// Kernel returns a guest kernel of a few dozen instructions: an ELF image that
// writes Hello to the first serial port and ends the machine when the power button
// is pressed. It is entered by the PVH protocol, in 32-bit mode; the instructions
// mean the same in 64-bit mode.
func Kernel(machine Machine) []byte {
	const (
		base    = 0x100000 // where the whole file is loaded
		codeAt  = 0x100
		noteAt  = 0xC0
		noteLen = 12 + 4 + 8
	)
	code := append([]byte{
		0xBE, 0, 0, 0, 0, //             mov esi, message (patched below)
	}, arms[machine]...)
	code = append(code,
		0xBA, 0xF8, 0x03, 0, 0, //       mov edx, 0x3f8: the serial port
		0xAC,       // next:             lodsb
		0x84, 0xC0, //                   test al, al
		0x74, 0x03, //                   jz end
		0xEE,       //                   out dx, al
		0xEB, 0xF8, //                   jmp next
	)
	code = append(code, ends[machine]...)
	binary.LittleEndian.PutUint32(code[1:], uint32(base+codeAt+len(code)))
	code = append(append(code, Hello...), 0)
	size := uint64(codeAt + len(code))

	le := binary.LittleEndian
	var b bytes.Buffer
	w := func(v any) { _ = binary.Write(&b, le, v) } // a bytes.Buffer takes everything
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	w(struct {
		Type, Machine          uint16
		Version                uint32
		Entry, Phoff, Shoff    uint64
		Flags                  uint32
		Ehsize, Phsize, Phnum  uint16
		Shsize, Shnum, Shstrnd uint16
	}{Type: 2, Machine: 62, Version: 1, Entry: base + codeAt, Phoff: 64, Ehsize: 64, Phsize: 56, Phnum: 2})
	type segment struct {
		Type, Flags                                uint32
		Offset, Vaddr, Paddr, Filesz, Memsz, Align uint64
	}
	w(segment{Type: 1, Flags: 7, Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x1000})
	w(segment{Type: 4, Flags: 4, Offset: noteAt, Vaddr: base + noteAt, Paddr: base + noteAt, Filesz: noteLen, Memsz: noteLen, Align: 4})
	b.Write(make([]byte, noteAt-b.Len()))
	w([]uint32{4, 8, 18}) // sizes of name and value; the physical 32-bit entry
	b.WriteString("Xen\x00")
	w(uint64(base + codeAt))
	b.Write(make([]byte, codeAt-b.Len()))
	b.Write(code)
	return b.Bytes()
}
