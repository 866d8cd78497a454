//! From the loader's jump to `guest_main`: multiboot header, identity map, long mode, stacks; and the same for further
//! CPUs from their first instruction in real mode on.
//!
//! Relies on the multiboot machine state: 32-bit protected mode, flat, paging off (Multiboot Specification 0.6.96, 3.2).
#![expect(unsafe_code, reason = "start code: assembly and the program's own names")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{MAX_CPUS, exception, machine, smp, tables, timer};

const STACK_BYTES: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_BYTES]; MAX_CPUS]>);

// SAFETY: each CPU touches only the stack of its own index, and only as its stack.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_BYTES]; MAX_CPUS]));

/// Registers as the first CPU found them at entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryState {
    /// EAX: the loader's magic number.
    pub magic: u32,
    /// EBX: where its information lies.
    pub information: u32,
    /// CR0.
    pub cr0: u32,
    /// EFLAGS.
    pub flags: u32,
}

/// In `.data`, since the start code fills it first of all.
static ENTRY: [AtomicU32; 4] = [const { AtomicU32::new(u32::MAX) }; 4];
/// The index that the CPU started last shall have.
pub(crate) static NEXT: AtomicU64 = AtomicU64::new(0);

/// What the first CPU found in its registers at entry.
#[must_use]
pub fn entry_state() -> EntryState {
    let word = |index: usize| ENTRY[index].load(Relaxed);
    EntryState { magic: word(0), information: word(1), cr0: word(2), flags: word(3) }
}

/// Where further CPUs begin: a page below 1 MiB; its number is the vector of the SIPI.
pub(crate) const TRAMPOLINE: u64 = 0x7000;

// CR4: PAE, OSFXSR, OSXMMEXCPT; EFER (MSR 0xc000_0080): LME, NXE; CR0: PG, WP, NE, MP, PE (SDM Vol. 3A, 2.5, 2.2.1).
global_asm!(
    ".pushsection .head, \"ax\"",
    ".balign 4",
    ".long 0x1badb002, 3, -(0x1badb002 + 3)",
    ".code32",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov dword ptr [{entry}], eax",
    "mov dword ptr [{entry} + 4], ebx",
    "mov ecx, cr0",
    "mov dword ptr [{entry} + 8], ecx",
    "mov esp, offset {stacks} + {stack_bytes}",
    "pushfd",
    "pop dword ptr [{entry} + 12]",
    // The identity map: 8 GiB by pages of 2 MiB.
    "mov edi, offset {map}",
    "lea eax, [edi + 0x1003]",
    "mov dword ptr [edi], eax",
    "mov ecx, 8",
    "lea ebx, [edi + 0x1000]",
    "lea eax, [edi + 0x2003]",
    "1: mov dword ptr [ebx], eax",
    "add ebx, 8",
    "add eax, 0x1000",
    "loop 1b",
    "lea ebx, [edi + 0x2000]",
    "xor ecx, ecx",
    "2: mov eax, ecx",
    "shl eax, 21",
    "or eax, 0x83",
    "mov dword ptr [ebx], eax",
    "mov eax, ecx",
    "shr eax, 11",
    "mov dword ptr [ebx + 4], eax",
    "add ebx, 8",
    "inc ecx",
    "cmp ecx, 4096",
    "jb 2b",
    "lgdt [{gdt_pointer}]",
    ".byte 0xea",
    ".long enter_long_mode",
    ".word {code32}",
    // Any CPU, in flat 32-bit mode.
    "enter_long_mode:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov eax, offset {map}",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "xor edx, edx",
    "mov eax, 0x900",
    "wrmsr",
    "mov eax, 0x80010023",
    "mov cr0, eax",
    ".byte 0xea",
    ".long in_long_mode",
    ".word {code64}",
    ".code64",
    "in_long_mode:",
    "mov edi, dword ptr [rip + {next}]",
    "mov eax, edi",
    "inc eax",
    "imul rax, rax, {stack_bytes}",
    "lea rsp, [rip + {stacks}]",
    "add rsp, rax",
    "xor ebp, ebp",
    "call {arrive}",
    "ud2",
    // What is copied to the trampoline: real mode, at the start of a page.
    ".code16",
    ".global trampoline_start",
    "trampoline_start:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    // lgdt with a 32-bit base, by an address in this page.
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word {trampoline} + trampoline_gdt - trampoline_start",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long enter_long_mode",
    ".word {code32}",
    "trampoline_gdt: .word {gdt_limit}",
    ".long {gdt}",
    ".global trampoline_end",
    "trampoline_end:",
    ".code64",
    ".popsection",
    entry = sym ENTRY,
    stacks = sym STACKS,
    stack_bytes = const STACK_BYTES,
    map = sym tables::MAP,
    gdt = sym tables::GDT,
    gdt_pointer = sym tables::GDT_POINTER,
    gdt_limit = const tables::GDT_LIMIT,
    code32 = const tables::CODE32,
    code64 = const tables::CODE64,
    data = const tables::DATA,
    next = sym NEXT,
    trampoline = const TRAMPOLINE,
    arrive = sym arrive,
);

unsafe extern "Rust" {
    fn guest_main();
    fn guest_secondary(cpu: usize);
}

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Puts the first instructions of further CPUs where a SIPI finds them.
pub(crate) fn copy_trampoline() {
    let from = &raw const trampoline_start;
    let bytes = (&raw const trampoline_end).addr() - from.addr();
    let to: *mut u8 = core::ptr::with_exposed_provenance_mut(usize::try_from(TRAMPOLINE).unwrap_or(0));
    // SAFETY: both are mapped; nothing else lies in that page.
    unsafe { core::ptr::copy_nonoverlapping(from, to, bytes) };
}

extern "C" fn arrive(cpu: usize) -> ! {
    tables::load(cpu);
    if cpu == 0 {
        exception::fill_vectors();
    }
    exception::load_vectors();
    if cpu != 0 {
        smp::came_up(cpu);
        // SAFETY: `program!` defines it with this signature.
        unsafe { guest_secondary(cpu) };
        smp::halt_for_good();
    }
    machine::discover();
    timer::calibrate();
    // SAFETY: `program!` defines it with this signature.
    unsafe { guest_main() };
    machine::power_off()
}
