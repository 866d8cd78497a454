//! Segments, task state segments and the interrupt descriptor table (SDM Vol. 3A, 3.4, 6.14, 7.7). All CPUs share the first and
//! the last; each has a task state of its own, which names its stacks for faults.

use crate::machine::MAX_CPUS;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The selectors.
pub(super) const CODE_64: u16 = 0x08;
/// See above.
pub(super) const DATA: u16 = 0x10;
/// See above.
pub(super) const CODE_32: u16 = 0x18;
const FIRST_TASK: u16 = 0x20;
/// Descriptors of the task states take two entries.
const ENTRIES: usize = 4 + 2 * MAX_CPUS;
/// The limit of the table of segments.
pub(super) const GDT_LIMIT: u16 = limit(8 * ENTRIES);
const IDT_LIMIT: u16 = limit(size_of::<[Gate; 256]>());

#[expect(clippy::cast_possible_truncation, reason = "no table is that large")]
const fn limit(bytes: usize) -> u16 {
    (bytes - 1) as u16
}

/// The segments.
pub(super) static GDT: [AtomicU64; ENTRIES] = {
    let mut segments = [const { AtomicU64::new(0) }; ENTRIES];
    segments[1] = AtomicU64::new(0x00af_9b00_0000_ffff);
    segments[2] = AtomicU64::new(0x00cf_9300_0000_ffff);
    segments[3] = AtomicU64::new(0x00cf_9b00_0000_ffff);
    segments
};

/// A task state segment: 104 bytes, whose 64-bit fields lie at odd words.
#[repr(C)]
struct Task([AtomicU32; 26]);

static TASKS: [Task; MAX_CPUS] = [const { Task([const { AtomicU32::new(0) }; 26]) }; MAX_CPUS];

/// A gate: 16 bytes.
#[repr(C, align(16))]
struct Gate([AtomicU64; 2]);

static IDT: [Gate; 256] = [const { Gate([const { AtomicU64::new(0) }; 2]) }; 256];

global_asm!(include_str!("vectors.S"), trap = sym super::start::trap, options(att_syntax));

unsafe extern "C" {
    safe static bulkhead_stubs: u8;
}

/// The stacks that a CPU changes to (numbers of the interrupt stack table).
#[derive(Clone, Copy)]
enum Stack {
    /// The one that was interrupted.
    Same = 0,
    /// That of our own faults.
    Faults = 1,
    /// That of what comes from outside at any time: NMI and machine check.
    Alarms = 2,
}

const fn stack_of(vector: usize) -> Stack {
    match vector {
        2 | 18 => Stack::Alarms,
        0..32 => Stack::Faults,
        _ => Stack::Same,
    }
}

/// Makes the table of gates: once, on the boot CPU.
pub(super) fn make_gates() {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    let stubs = (&raw const bulkhead_stubs).addr() as u64;
    for (vector, Gate([low, high])) in IDT.iter().enumerate() {
        let target = stubs + 16 * vector as u64;
        let gate = target & 0xffff
            | u64::from(CODE_64) << 16
            | (stack_of(vector) as u64) << 32
            | PRESENT_INTERRUPT_GATE
            | (target >> 16 & 0xffff) << 48;
        low.store(gate, Ordering::Relaxed);
        high.store(target >> 32, Ordering::Relaxed);
    }
}

/// Makes this CPU use the tables. `faults` and `alarms` are the ends of its stacks for them.
pub(super) fn load(cpu: usize, faults: u64, alarms: u64) {
    let (Some(Task(task)), Some(selector)) = (TASKS.get(cpu), selector(cpu)) else { return };
    set_u64(task, 9, faults);
    set_u64(task, 11, alarms);
    // No map of I/O permissions.
    task[25].store(104 << 16, Ordering::Relaxed);
    describe(usize::from(selector) / 8, task.as_ptr().addr() as u64);
    let segments = Pointer { limit: GDT_LIMIT, base: GDT.as_ptr().addr() as u64 };
    let gates = Pointer { limit: IDT_LIMIT, base: IDT.as_ptr().addr() as u64 };
    // SAFETY: the segments in use have the same numbers in this table, which lives for ever.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const segments, options(nostack, readonly, preserves_flags)) };
    // SAFETY: every gate leads to its stub.
    unsafe { asm!("lidt [{}]", in(reg) &raw const gates, options(nostack, readonly, preserves_flags)) };
    // SAFETY: the segment was just described, and is available: each CPU does this once.
    unsafe { asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// What a CPU may load task register with, by its number.
fn selector(cpu: usize) -> Option<u16> {
    u16::try_from(cpu).ok().map(|cpu| FIRST_TASK + 16 * cpu)
}

/// The base of the task state that `selector` names.
pub(super) fn task_base(selector: u16) -> u64 {
    let cpu = usize::from(selector.saturating_sub(FIRST_TASK)) / 16;
    TASKS.get(cpu).map_or(0, |task| task.0.as_ptr().addr() as u64)
}

/// Writes the descriptor of an available task state at `base` (SDM Vol. 3A, figure 7-4).
fn describe(entry: usize, base: u64) {
    const PRESENT_AVAILABLE: u64 = 0x89 << 40;
    const LIMIT: u64 = 103;
    let low = LIMIT | (base & 0xff_ffff) << 16 | PRESENT_AVAILABLE | (base >> 24 & 0xff) << 56;
    GDT[entry].store(low, Ordering::Relaxed);
    GDT[entry + 1].store(base >> 32, Ordering::Relaxed);
}

#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn set_u64(task: &[AtomicU32; 26], word: usize, value: u64) {
    task[word].store(value as u32, Ordering::Relaxed);
    task[word + 1].store((value >> 32) as u32, Ordering::Relaxed);
}

/// The operand of LGDT and LIDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}
