//! Exception vectors: expected faults are recovered, interrupts go to the program, all else ends it.
//!
//! [`catch`] runs an instruction that may fault: a faulting load, store or system instruction is stepped over, a
//! faulting fetch returns to its caller, and a single step is the only one.
#![expect(unsafe_code, reason = "vectors, and the program's own interrupt function")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::registers::mdscr_el1;
use crate::{MAX_CPUS, println, psci, smp};

/// What [`catch`] caught first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
}

impl Fault {
    /// ESR_EL1.EC (Arm ARM D19.2.40).
    #[must_use]
    pub const fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// ESR_EL1.ISS bits 5 to 0: the fault status code of an abort.
    #[must_use]
    pub const fn status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// ESR_EL1.ISS.WnR.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        self.esr & 1 << 6 != 0
    }
}

/// EC: an instruction that does not exist here.
pub const UNDEFINED: u64 = 0x00;
/// EC: instruction abort from EL1.
pub const INSTRUCTION_ABORT: u64 = 0x21;
/// EC: a branch to an address that is not a multiple of 4.
pub const PC_ALIGNMENT: u64 = 0x22;
/// EC: data abort from EL1.
pub const DATA_ABORT: u64 = 0x25;
/// EC: a single step of EL1 is done.
pub const STEP: u64 = 0x33;
/// DFSC, IFSC: synchronous external abort, not on a table walk.
pub const EXTERNAL_ABORT: u64 = 0x10;

/// What the vectors saved, as they saved it.
#[repr(C)]
struct Frame {
    x0_to_x18: [u64; 19],
    x29: u64,
    x30: u64,
    elr: u64,
    spsr: u64,
    unused: u64,
}

struct Trap {
    armed: AtomicU64,
    caught: AtomicU64,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
}

static TRAPS: [Trap; MAX_CPUS] = [const {
    Trap {
        armed: AtomicU64::new(0),
        caught: AtomicU64::new(0),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        elr: AtomicU64::new(0),
    }
}; MAX_CPUS];

// Sixteen entries of 128 bytes: save x0 and x1, say which entry, go on together.
global_asm!(
    ".balign 2048",
    ".global guest_vectors",
    "guest_vectors:",
    ".set entry, 0",
    ".rept 16",
    ".balign 128",
    "sub sp, sp, #192",
    "stp x0, x1, [sp]",
    "mov x0, #entry",
    "b 1f",
    ".set entry, entry + 1",
    ".endr",
    "1: stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x29, [sp, #144]",
    "mrs x2, elr_el1",
    "mrs x3, spsr_el1",
    "stp x30, x2, [sp, #160]",
    "str x3, [sp, #176]",
    "mov x1, sp",
    "bl {dispatch}",
    "ldp x30, x2, [sp, #160]",
    "ldr x3, [sp, #176]",
    "msr elr_el1, x2",
    "msr spsr_el1, x3",
    "ldp x18, x29, [sp, #144]",
    "ldp x16, x17, [sp, #128]",
    "ldp x14, x15, [sp, #112]",
    "ldp x12, x13, [sp, #96]",
    "ldp x10, x11, [sp, #80]",
    "ldp x8, x9, [sp, #64]",
    "ldp x6, x7, [sp, #48]",
    "ldp x4, x5, [sp, #32]",
    "ldp x2, x3, [sp, #16]",
    "ldp x0, x1, [sp]",
    "add sp, sp, #192",
    "eret",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    pub(crate) fn guest_vectors();
}

unsafe extern "Rust" {
    fn guest_interrupt();
}

/// Vector entries of EL1 with its own stack (Arm ARM D1.3.1.2).
const SYNCHRONOUS: u64 = 4;
const INTERRUPT: u64 = 5;

extern "C" fn dispatch(entry: u64, frame: &mut Frame) {
    match entry {
        SYNCHRONOUS => recover(frame),
        // SAFETY: `program!` defines it with this signature.
        INTERRUPT => unsafe { guest_interrupt() },
        _ => unexpected(entry, frame),
    }
}

fn recover(frame: &mut Frame) {
    let trap = &TRAPS[smp::index()];
    if trap.armed.load(Relaxed) == 0 {
        unexpected(SYNCHRONOUS, frame);
    }
    let fault = Fault { esr: syndrome(), far: fault_address(), elr: frame.elr };
    if trap.caught.fetch_add(1, Relaxed) == 0 {
        trap.esr.store(fault.esr, Relaxed);
        trap.far.store(fault.far, Relaxed);
        trap.elr.store(fault.elr, Relaxed);
    }
    frame.elr = match fault.class() {
        INSTRUCTION_ABORT | PC_ALIGNMENT => frame.x30,
        STEP => {
            mdscr_el1::write(0);
            frame.elr
        }
        _ => frame.elr.wrapping_add(4),
    };
}

fn unexpected(entry: u64, frame: &Frame) -> ! {
    println!(
        "Bail out! CPU {}: exception by vector {entry}: ESR {:#x} FAR {:#x} ELR {:#x} SPSR {:#x} x0 {:#x} x30 {:#x} x29 {:#x}",
        smp::index(),
        syndrome(),
        fault_address(),
        frame.elr,
        frame.spsr,
        frame.x0_to_x18[0],
        frame.x30,
        frame.x29
    );
    psci::system_off()
}

/// What a program does with interrupts if it expects none.
///
/// # Panics
/// Always.
pub fn unexpected_interrupt() {
    panic!("an interrupt that nobody asked for");
}

/// Runs `operation`; the first exception that it raised, if any. Each faulting instruction is stepped over.
pub fn catch(operation: impl FnOnce()) -> Option<Fault> {
    let trap = &TRAPS[smp::index()];
    trap.caught.store(0, Relaxed);
    trap.armed.store(1, Relaxed);
    operation();
    trap.armed.store(0, Relaxed);
    (trap.caught.load(Relaxed) != 0).then(|| Fault {
        esr: trap.esr.load(Relaxed),
        far: trap.far.load(Relaxed),
        elr: trap.elr.load(Relaxed),
    })
}

/// Calls `address` as a function that returns at once.
///
/// # Safety
/// `address` either cannot be fetched from (under [`catch`]) or holds code that keeps the calling convention.
pub unsafe fn call(address: usize) {
    // SAFETY: the caller's; a faulting fetch returns by x30.
    unsafe { asm!("blr {a}", a = in(reg) address, clobber_abi("C")) };
}

/// Takes interrupts from here on.
pub fn unmask_interrupts() {
    // SAFETY: the vectors serve them.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
}

/// Holds interrupts back from here on.
pub fn mask_interrupts() {
    // SAFETY: only delays the vectors.
    unsafe { asm!("msr daifset, #2", "isb", options(nostack)) };
}

fn syndrome() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, esr_el1", out(reg) value, options(nostack)) };
    value
}

fn fault_address() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, far_el1", out(reg) value, options(nostack)) };
    value
}
