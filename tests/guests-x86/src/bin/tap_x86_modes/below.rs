//! One trip through every mode below long mode, in a page below 1 MiB; what was seen there comes back in slots.

use core::arch::global_asm;

use bulkhead_test_guests_x86::{exception, machine, tables};

/// Where the code is copied to; its data lies in the second half of the page.
const PAGE: u64 = 0x6000;
const GATES: u64 = PAGE + 0x800;
const FIRST_STATE: u64 = PAGE + 0xa00;
const OTHER_STATE: u64 = PAGE + 0xb00;
const SLOTS: u64 = PAGE + 0xe00;
/// A word that segments show.
const MARK: (u64, u32) = (0x1_0ffc, 0x4d41_5247);

/// What is seen, by its place in the result.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    Compatibility,
    Efer,
    InLimit,
    BeyondLimit,
    BelowExpandDown,
    AboveExpandDown,
    NotPresent,
    OtherTask,
    FirstTask,
    TaskSwitched,
    Port32,
    RealMode,
    RealSegment,
    RealInterrupt,
    BigReal,
    RealMmio,
    RealPort,
    RealString,
    Count,
}

// Everything is addressed by its place in the page: `at_NAME`. Faults store vector and error code and go on at EDI.
global_asm!(
    ".pushsection .rodata.below, \"a\"",
    ".code64",
    ".global below_start",
    "below_start:",
    "pushq %rbx",
    "pushq %rbp",
    "pushq %r12",
    "pushq %r13",
    "pushq %r14",
    "pushq %r15",
    "movq %rsp, {slots} + 0x1f0",
    "movq %cr4, %rax",
    "movq %rax, {slots} + 0x1e0",
    "pushq $0x18",
    "pushq $at_narrow",
    "lretq",
    ".code32",
    "narrow: .set at_narrow, narrow - below_start + {page}",
    "movl $0x10, %eax",
    "movl %eax, %ss",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl ${page} + 0xd00, %esp",
    "movl $0x32, {slots}",
    // Paging off, and with it long mode; then LME.
    "movl %cr0, %eax",
    "andl $0x7fffffff, %eax",
    "movl %eax, %cr0",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "movl %eax, {slots} + 4",
    "andl $0xfffffeff, %eax",
    "wrmsr",
    "lidtl at_gates_pointer",
    // A segment of 4 KiB at 64 KiB.
    "movl $0x30, %eax",
    "movl %eax, %fs",
    "movl %fs:0xffc, %eax",
    "movl %eax, {slots} + 8",
    "movl $at_beyond, %edi",
    "movl %fs:0xffd, %eax",
    "beyond: .set at_beyond, beyond - below_start + {page}",
    "movl at_fault, %eax",
    "movl %eax, {slots} + 12",
    "movl $0, at_fault",
    // The same limit, growing down.
    "movl $0x38, %eax",
    "movl %eax, %fs",
    "movl $at_down, %edi",
    "movl %fs:0x800, %eax",
    "down: .set at_down, down - below_start + {page}",
    "movl at_fault, %eax",
    "movl %eax, {slots} + 16",
    "movl $0, at_fault",
    "movl %fs:{mark}, %eax",
    "movl %eax, {slots} + 20",
    "movl $at_absent, %edi",
    "movl $0x40, %eax",
    "movl %eax, %fs",
    "absent: .set at_absent, absent - below_start + {page}",
    "movl at_fault, %eax",
    "movl %eax, {slots} + 24",
    "movl $0x10, %eax",
    "movl %eax, %fs",
    // Two tasks: there and back, if it is wanted.
    "cmpl $0, at_tasks",
    "je ports",
    "movl $0x48, %eax",
    "ltrw %ax",
    "ljmpl $0x50, $0",
    "xorl %eax, %eax",
    "strw %ax",
    "movl %eax, {slots} + 32",
    "movl %cr0, %eax",
    "movl %eax, {slots} + 36",
    "clts",
    "jmp ports",
    "other: .set at_other, other - below_start + {page}",
    "xorl %eax, %eax",
    "strw %ax",
    "movl %eax, {slots} + 28",
    "ljmpl $0x48, $0",
    "hlt",
    "ports:",
    "movw $0x3ff, %dx",
    "movb $0xa5, %al",
    "outb %al, %dx",
    "xorl %eax, %eax",
    "inb %dx, %al",
    "movl %eax, {slots} + 40",
    // Real mode, FS with the limit that it has here.
    "lidtl at_interrupts",
    "movl $0x28, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "ljmpl $0x20, $at_sixteen",
    ".code16",
    "sixteen: .set at_sixteen, sixteen - below_start + {page}",
    "movl %cr0, %eax",
    "andb $0xfe, %al",
    "movl %eax, %cr0",
    "ljmpw $0, $at_real",
    "real: .set at_real, real - below_start + {page}",
    "xorw %ax, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "movw ${page} + 0xd00, %sp",
    "movl %cr0, %eax",
    "movl %eax, {slots} + 44",
    "movw $0x1000, %ax",
    "movw %ax, %ds",
    "movl 0xffc, %eax",
    "movl %eax, %es:{slots} + 48",
    "xorw %ax, %ax",
    "movw %ax, %ds",
    "int $0x40",
    "movl ${mark}, %ebx",
    "movl %fs:(%ebx), %eax",
    "movl %eax, {slots} + 56",
    "movl $0xfee00030, %ebx",
    "movl %fs:(%ebx), %eax",
    "movl %eax, {slots} + 60",
    "movw $0x3ff, %dx",
    "movb $0x5a, %al",
    "outb %al, %dx",
    "xorl %eax, %eax",
    "inb %dx, %al",
    "movl %eax, {slots} + 64",
    "movb $0x3c, at_byte",
    "movw $at_byte, %si",
    "cld",
    "outsb %ds:(%si), %dx",
    "movl $0, {slots} + 68",
    "movw ${slots} + 68, %di",
    "insb %dx, %es:(%di)",
    "movl %cr0, %eax",
    "orb $1, %al",
    "movl %eax, %cr0",
    "ljmpl $0x18, $at_back",
    "on_interrupt: .set at_on_interrupt, on_interrupt - below_start + {page}",
    "movl $0x40, {slots} + 52",
    "iretw",
    ".code32",
    "back: .set at_back, back - below_start + {page}",
    "movl $0x10, %eax",
    "movl %eax, %ss",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %fs",
    "movl {slots} + 0x1e0, %eax",
    "movl %eax, %cr4",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "orl $0x80000000, %eax",
    "movl %eax, %cr0",
    "ljmpl $8, $at_wide",
    ".code64",
    "wide: .set at_wide, wide - below_start + {page}",
    "movq {slots} + 0x1f0, %rsp",
    "popq %r15",
    "popq %r14",
    "popq %r13",
    "popq %r12",
    "popq %rbp",
    "popq %rbx",
    "retq",
    ".code32",
    // Faults with an error code: vector and code in one word.
    "on_11: .set at_on_11, on_11 - below_start + {page}",
    "movl $0xb0000, at_fault",
    "jmp on_any",
    "on_13: .set at_on_13, on_13 - below_start + {page}",
    "movl $0xd0000, at_fault",
    "on_any: popl %eax",
    "orl %eax, at_fault",
    "movl %edi, (%esp)",
    "iretl",
    ".balign 4",
    "fault: .set at_fault, fault - below_start + {page}",
    ".long 0",
    "tasks: .set at_tasks, tasks - below_start + {page}",
    ".long 0",
    "byte: .set at_byte, byte - below_start + {page}",
    ".byte 0",
    "gates_pointer: .set at_gates_pointer, gates_pointer - below_start + {page}",
    ".word 0xff",
    ".long {gates}",
    "interrupts: .set at_interrupts, interrupts - below_start + {page}",
    ".word 0x3ff",
    ".long 0",
    // Addresses for whoever fills the tables.
    ".balign 4",
    ".global below_places",
    "below_places: .long at_on_11, at_on_13, at_other, at_on_interrupt, at_tasks",
    ".global below_end",
    "below_end:",
    ".code64",
    ".popsection",
    page = const PAGE,
    slots = const SLOTS,
    gates = const GATES,
    mark = const MARK.0,
    options(att_syntax),
);

unsafe extern "C" {
    static below_start: u8;
    static below_end: u8;
    static below_places: [u32; 5];
}

fn put(address: u64, value: u32) {
    let to: *mut u32 = core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0));
    // SAFETY: these pages below 1 MiB belong to this trip.
    unsafe { to.write_unaligned(value) };
}

fn get(address: u64) -> u32 {
    let from: *const u32 = core::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0));
    // SAFETY: mapped.
    unsafe { from.read_unaligned() }
}

/// Whether switching tasks by hardware is promised: VMX exits instead (SDM Vol. 3C, 26.4.2).
pub(crate) fn has_tasks() -> bool {
    !machine::is_hypervised() || machine::is_amd()
}

/// Goes there and back; what was seen, by [`Slot`].
pub(crate) fn visit() -> [u32; Slot::Count as usize] {
    let from = &raw const below_start;
    let bytes = (&raw const below_end).addr() - from.addr();
    let to: *mut u8 = core::ptr::with_exposed_provenance_mut(usize::try_from(PAGE).unwrap_or(0));
    // SAFETY: the code fits into the first half of its page, which is this trip's own.
    unsafe { core::ptr::copy_nonoverlapping(from, to, bytes) };
    // SAFETY: a constant of the code above.
    let [on_11, on_13, other, on_interrupt, tasks] = unsafe { below_places };
    for vector in 0..32 {
        let handler = if vector == 11 { on_11 } else { on_13 };
        put(GATES + 8 * vector, 0x18 << 16 | handler & 0xffff);
        put(GATES + 8 * vector + 4, handler & 0xffff_0000 | 0x8e00);
    }
    for (number, descriptor) in (tables::FREE / 8..).zip([
        0x0040_9301_0000_0fff,
        0x0040_9700_0000_0fff,
        0x0040_1300_0000_ffff,
        0x0000_8900_0000_0067 | FIRST_STATE << 16,
        0x0000_8900_0000_0067 | OTHER_STATE << 16,
    ]) {
        tables::set(number, descriptor);
    }
    for offset in (0..0x68).step_by(4) {
        put(FIRST_STATE + offset, 0);
        put(OTHER_STATE + offset, 0);
    }
    // A 32-bit task state (SDM Vol. 3A, 8.2.1): EIP, EFLAGS, ESP, then ES, CS, SS, DS, FS, GS.
    for (offset, value) in [
        (32, other),
        (36, 2),
        (56, 0x6c00),
        (72, 0x10),
        (76, 0x18),
        (80, 0x10),
        (84, 0x10),
        (88, 0x10),
        (92, 0x10),
        (100, 0x68_0000),
    ] {
        put(OTHER_STATE + offset, value);
    }
    put(MARK.0, MARK.1);
    put(tasks.into(), has_tasks().into());
    let vector = get(4 * 0x40);
    put(4 * 0x40, on_interrupt);
    // SAFETY: the code comes back as a function does; it changes no memory but the page's.
    unsafe { core::arch::asm!("call {e}", e = in(reg) PAGE, clobber_abi("C")) };
    put(4 * 0x40, vector);
    tables::reload();
    exception::restore_vectors();
    core::array::from_fn(|index| get(SLOTS + 4 * index as u64))
}
