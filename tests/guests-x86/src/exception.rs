//! Exceptions and interrupts: expected faults are recovered, interrupts go to the program, all else ends it.
//!
//! [`attempt!`](crate::attempt) runs instructions that may fault and goes on behind them.
#![expect(unsafe_code, reason = "vectors, and the program's own interrupt function")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::tables::{self, Table};
use crate::{MAX_CPUS, power_off, println};

/// Divide error.
pub const DE: u64 = 0;
/// Debug.
pub const DB: u64 = 1;
/// Breakpoint.
pub const BP: u64 = 3;
/// Invalid opcode.
pub const UD: u64 = 6;
/// Device not available.
pub const NM: u64 = 7;
/// Invalid task state.
pub const TS: u64 = 10;
/// Segment not present.
pub const NP: u64 = 11;
/// Stack fault.
pub const SS: u64 = 12;
/// General protection.
pub const GP: u64 = 13;
/// Page fault.
pub const PF: u64 = 14;
/// Alignment check.
pub const AC: u64 = 17;
/// NMI's vector.
pub const NMI: u64 = 2;

/// An exception that [`attempt!`](crate::attempt) caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its vector.
    pub vector: u64,
    /// Its error code; 0 if it has none.
    pub error: u64,
    /// CR2, for a page fault.
    pub address: u64,
    /// Where it left the program.
    pub rip: u64,
}

/// What the vectors saved, as they saved it.
#[repr(C)]
pub struct Frame {
    /// R15 down to RAX.
    pub registers: [u64; 15],
    /// Of the exception or interrupt.
    pub vector: u64,
    /// The error code, or 0.
    pub error: u64,
    /// Where it happened, and with what.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

/// What one CPU expects.
pub struct Trap {
    /// Where to go on; 0: nothing is expected.
    recover: AtomicU64,
    vector: AtomicU64,
    error: AtomicU64,
    address: AtomicU64,
    rip: AtomicU64,
}

const NOTHING: u64 = u64::MAX;

static TRAPS: [Trap; MAX_CPUS] = [const {
    Trap {
        recover: AtomicU64::new(0),
        vector: AtomicU64::new(NOTHING),
        error: AtomicU64::new(0),
        address: AtomicU64::new(0),
        rip: AtomicU64::new(0),
    }
}; MAX_CPUS];
/// NMIs taken by each CPU.
static NMIS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

static VECTORS: Table<[[u64; 2]; 256]> = Table::new([[0; 2]; 256]);

// 256 entries of 16 bytes: an error code if the processor pushed none (SDM Vol. 3A, 6.15), the vector, go on together.
global_asm!(
    ".balign 16",
    ".global guest_vectors",
    "guest_vectors:",
    ".set entry, 0",
    ".rept 256",
    ".balign 16",
    ".if (entry != 8) && (entry != 10) && (entry != 11) && (entry != 12) && (entry != 13) && (entry != 14) && (entry != 17) && (entry != 21)",
    "push 0",
    ".endif",
    ".byte 0x68",
    ".long entry",
    "jmp 1f",
    ".set entry, entry + 1",
    ".endr",
    "1: push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    // The stack is aligned as calls want it: five words by the processor, two by the entry, fifteen here.
    "mov rbx, rsp",
    "and rsp, -16",
    "call {dispatch}",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    fn guest_vectors();
}

unsafe extern "Rust" {
    fn guest_interrupt(vector: u8);
}

/// Runs instructions, any of which may fault; says which exception ended them, if any. Operands are those of `asm!`; a
/// faulting instruction must not have changed the stack pointer.
#[macro_export]
macro_rules! attempt {
    ($($text:expr),+ $(; $($operands:tt)*)?) => {{
        let trap = $crate::exception::arm();
        core::arch::asm!(
            "lea {until}, [rip + 77f]", "mov [{slot}], {until}", $($text,)+ "77:",
            until = out(reg) _, slot = in(reg) trap, $($($operands)*)?
        );
        $crate::exception::disarm()
    }};
}

/// Where [`attempt!`](crate::attempt) says how to go on.
#[must_use]
pub fn arm() -> *const AtomicU64 {
    let trap = &TRAPS[tables::cpu()];
    trap.vector.store(NOTHING, Relaxed);
    &raw const trap.recover
}

/// Ends what [`arm`] began.
#[must_use]
pub fn disarm() -> Option<Fault> {
    let trap = &TRAPS[tables::cpu()];
    trap.recover.store(0, Relaxed);
    let vector = trap.vector.load(Relaxed);
    (vector != NOTHING).then(|| Fault {
        vector,
        error: trap.error.load(Relaxed),
        address: trap.address.load(Relaxed),
        rip: trap.rip.load(Relaxed),
    })
}

/// How many NMIs CPU `index` has taken.
#[must_use]
pub fn nmis(index: usize) -> u64 {
    NMIS[index].load(Relaxed)
}

extern "C" fn dispatch(frame: &mut Frame) {
    match frame.vector {
        NMI => {
            NMIS[tables::cpu()].fetch_add(1, Relaxed);
        }
        0..32 => recover(frame),
        // SAFETY: `program!` defines it with this signature.
        vector => unsafe { guest_interrupt(u8::try_from(vector).unwrap_or(0)) },
    }
}

fn recover(frame: &mut Frame) {
    let trap = &TRAPS[tables::cpu()];
    let target = trap.recover.swap(0, Relaxed);
    if target == 0 {
        unexpected(frame);
    }
    trap.vector.store(frame.vector, Relaxed);
    trap.error.store(frame.error, Relaxed);
    trap.address.store(if frame.vector == PF { fault_address() } else { 0 }, Relaxed);
    trap.rip.store(frame.rip, Relaxed);
    frame.rip = target;
    // What an alignment check or a single step needs must not last.
    frame.rflags &= !(1 << 18 | 1 << 8);
    if frame.vector == DB {
        // SAFETY: clears the reasons of debug exceptions.
        unsafe { asm!("mov dr6, {}", in(reg) 0xffff_0ff0_u64, options(nostack)) };
    }
}

fn unexpected(frame: &Frame) -> ! {
    println!(
        "Bail out! CPU {}: exception {} error {:#x} at {:#x}:{:#x} CR2 {:#x} RSP {:#x} RAX {:#x}",
        tables::cpu(),
        frame.vector,
        frame.error,
        frame.cs,
        frame.rip,
        fault_address(),
        frame.rsp,
        frame.registers[14],
    );
    power_off()
}

/// What a program does with interrupts if it expects none.
///
/// # Panics
/// Always.
pub fn unexpected_interrupt(vector: u8) {
    panic!("interrupt {vector} that nobody asked for");
}

pub(crate) fn fill_vectors() {
    for vector in 0..=255 {
        set(vector, guest_vectors as *const () as u64 + 16 * u64::from(vector));
    }
}

/// Lets `entry` serve `vector`: a 64-bit interrupt gate (SDM Vol. 3A, 6.14.1).
pub fn set(vector: u8, entry: u64) {
    let gate = entry & 0xffff | u64::from(tables::CODE64) << 16 | 0x8e00 << 32 | (entry & 0xffff_0000) << 32;
    let table: *mut [u64; 2] = VECTORS.get().cast();
    // SAFETY: the table has 256 gates.
    let place = unsafe { table.add(usize::from(vector)) };
    // SAFETY: in the table; the vector is not in use while its gate is replaced.
    unsafe { place.write_volatile([gate, entry >> 32]) };
}

pub(crate) fn load_vectors() {
    load_vectors_at(VECTORS.address(), 4095);
}

/// Loads the vector table of this address and limit; the library's own come back by [`restore_vectors`].
pub fn load_vectors_at(base: u64, limit: u16) {
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&limit.to_le_bytes());
    pointer[2..].copy_from_slice(&base.to_le_bytes());
    // SAFETY: the caller wants these vectors.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack)) };
}

/// Loads the library's vectors again.
pub fn restore_vectors() {
    load_vectors();
}

/// Takes interrupts from here on.
pub fn unmask_interrupts() {
    // SAFETY: the vectors serve them.
    unsafe { asm!("sti", options(nostack)) };
}

/// Holds interrupts back from here on.
pub fn mask_interrupts() {
    // SAFETY: only delays the vectors.
    unsafe { asm!("cli", options(nostack)) };
}

/// Waits for an interrupt, which is taken; none is taken before or after.
pub fn wait_for_interrupt() {
    // SAFETY: the vectors serve what comes; STI lets HLT begin first.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

fn fault_address() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nostack)) };
    value
}
