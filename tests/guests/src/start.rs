//! From the loader's jump to `guest_main`: image header, identity map, relocations, zeros, stacks.
//!
//! Relies on the arm64 Linux boot protocol: MMU off, x0 = FDT, the image's memory clean to the point of coherency.
//! The map is switched on before the first store, so that no line is ever written both cached and uncached.
#![expect(unsafe_code, reason = "start code: assembly and the program's own names")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{MAX_CPUS, exception, machine, mmu, psci};

const STACK_BYTES: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_BYTES]; MAX_CPUS]>);

// SAFETY: each CPU touches only the stack of its own index, and only as its stack.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_BYTES]; MAX_CPUS]));

/// The bits of a secondary CPU's context that the start code takes as its index; the others are the program's.
pub const ENTRY_CONTEXT_MASK: u64 = 0xff;

/// Registers as the first CPU found them at entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryState {
    /// x0 to x3.
    pub arguments: [u64; 4],
    /// DAIF.
    pub daif: u64,
    /// CurrentEL.
    pub current_el: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

static ENTRY: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];

/// What the first CPU found in its registers at entry.
#[must_use]
pub fn entry_state() -> EntryState {
    let word = |index: usize| ENTRY[index].load(Relaxed);
    EntryState {
        arguments: [word(0), word(1), word(2), word(3)],
        daif: word(4),
        current_el: word(5),
        sctlr: word(6),
    }
}

// The header is that of Documentation/arch/arm64/booting.rst: flags 0xa = little-endian, 4 KiB pages, anywhere.
// SCTLR_EL1: the RES1 bits of Armv8.0, I, C and M (Arm ARM D19.2). R_AARCH64_RELATIVE is 1027 (AAELF64 5.7.13).
global_asm!(
    ".pushsection .head, \"ax\"",
    ".global _start",
    "_start:",
    "b 1f",
    "nop",
    ".quad 0",
    ".quad __image_size",
    ".quad 0xa",
    ".quad 0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".word 0",
    "1: mov x20, x0",
    "mov x21, x1",
    "mov x22, x2",
    "mov x23, x3",
    "mrs x24, daif",
    "mrs x25, CurrentEL",
    "mrs x26, sctlr_el1",
    "bl 8f",
    // Relocations: the image is linked at 0 and starts on a page.
    "adrp x0, _start",
    "adrp x1, __relocations_start",
    "add x1, x1, :lo12:__relocations_start",
    "adrp x2, __relocations_end",
    "add x2, x2, :lo12:__relocations_end",
    "2: cmp x1, x2",
    "b.hs 4f",
    "ldp x3, x4, [x1], #16",
    "ldr x5, [x1], #8",
    "cmp x4, #1027",
    "3: b.ne 3b",
    "add x5, x5, x0",
    "str x5, [x0, x3]",
    "b 2b",
    // Zeros, in steps of 16.
    "4: adrp x1, __zeros_start",
    "add x1, x1, :lo12:__zeros_start",
    "adrp x2, __zeros_end",
    "add x2, x2, :lo12:__zeros_end",
    "5: cmp x1, x2",
    "b.hs 6f",
    "stp xzr, xzr, [x1], #16",
    "b 5b",
    "6: adrp x1, {entry}",
    "add x1, x1, :lo12:{entry}",
    "stp x20, x21, [x1]",
    "stp x22, x23, [x1, #16]",
    "stp x24, x25, [x1, #32]",
    "str x26, [x1, #48]",
    "mov x19, xzr",
    "bl 9f",
    "bl {primary}",
    // A further CPU: x0 = context, index in its low byte.
    ".global secondary_start",
    "secondary_start:",
    "mov x20, x0",
    "and x19, x0, #{index_mask}",
    "bl 8f",
    "bl 9f",
    "mov x0, x20",
    "bl {secondary}",
    // The identity map on, by registers alone.
    "8: mov x9, #{mair}",
    "msr mair_el1, x9",
    "ldr x9, ={tcr}",
    "msr tcr_el1, x9",
    "adrp x9, {table}",
    "msr ttbr0_el1, x9",
    "isb",
    "tlbi vmalle1",
    "ic iallu",
    "dsb nsh",
    "isb",
    "ldr x9, =0x30d01805",
    "msr sctlr_el1, x9",
    "isb",
    "ret",
    // Stack, vectors and number of CPU x19.
    "9: msr spsel, #1",
    "msr tpidr_el1, x19",
    "add x9, x19, #1",
    "mov x10, #{stack_bytes}",
    "adrp x11, {stacks}",
    "madd x9, x9, x10, x11",
    "mov sp, x9",
    "adrp x9, {vectors}",
    "add x9, x9, :lo12:{vectors}",
    "msr vbar_el1, x9",
    "isb",
    "mov x29, xzr",
    "ret",
    ".ltorg",
    ".popsection",
    entry = sym ENTRY,
    primary = sym primary,
    secondary = sym secondary,
    table = sym mmu::TABLE,
    stacks = sym STACKS,
    vectors = sym exception::guest_vectors,
    mair = const mmu::MAIR,
    tcr = const mmu::TCR,
    stack_bytes = const STACK_BYTES,
    index_mask = const ENTRY_CONTEXT_MASK,
);

unsafe extern "Rust" {
    fn guest_main();
    fn guest_secondary(cpu: usize);
}

unsafe extern "C" {
    fn secondary_start() -> !;
}

/// Where CPU_ON lets a further CPU begin; its context is its index, plus what the program likes in the high bits.
#[must_use]
pub fn secondary_entry() -> u64 {
    secondary_start as *const () as u64
}

extern "C" fn primary() -> ! {
    machine::discover();
    // SAFETY: `program!` defines it with this signature.
    unsafe { guest_main() };
    psci::system_off()
}

extern "C" fn secondary(context: u64) -> ! {
    crate::smp::came_up(context);
    // SAFETY: `program!` defines it with this signature.
    unsafe { guest_secondary(crate::smp::index()) };
    crate::smp::switch_off()
}
