//! What the processor reads: page tables, segments, one task state segment for each CPU, whose selector numbers it.
#![expect(unsafe_code, reason = "tables that the processor reads, and the instructions that load them")]

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::MAX_CPUS;

/// Selectors: 64-bit code, data, 32-bit code, 16-bit code and data, then the tasks.
pub const CODE64: u16 = 0x08;
/// Flat data.
pub const DATA: u16 = 0x10;
/// Flat 32-bit code.
pub const CODE32: u16 = 0x18;
/// 16-bit code with base 0.
pub const CODE16: u16 = 0x20;
/// 16-bit data with base 0.
pub const DATA16: u16 = 0x28;
/// Eight descriptors that a program may fill for itself.
pub const FREE: u16 = 0x30;
const TASKS: u16 = 0x70;

const DESCRIPTORS: usize = TASKS as usize / 8 + 2 * MAX_CPUS;
pub(crate) const GDT_LIMIT: u16 = TASKS + 16 * 16 - 1;
const _: () = assert!(GDT_LIMIT as usize == DESCRIPTORS * 8 - 1);

/// A table that the processor reads and marks.
#[repr(C, align(4096))]
pub struct Table<T>(UnsafeCell<T>);

// SAFETY: written through raw pointers while one CPU runs, or by the CPU whose part it is.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    /// A table with this content.
    pub const fn new(content: T) -> Self {
        Self(UnsafeCell::new(content))
    }

    /// Where it lies; physical and linear addresses are the same.
    #[must_use]
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get().expose_provenance() as u64
    }
}

/// The root, one second-level table, and eight third-level ones that map 8 GiB.
pub static MAP: Table<[[u64; 512]; 10]> = Table::new([[0; 512]; 10]);

/// Descriptors (SDM Vol. 3A, 3.4.5): accessed, present, readable or writable.
pub(crate) static GDT: Table<[u64; DESCRIPTORS]> = Table::new({
    let mut table = [0; DESCRIPTORS];
    table[1] = 0x00af_9b00_0000_ffff;
    table[2] = 0x00cf_9300_0000_ffff;
    table[3] = 0x00cf_9b00_0000_ffff;
    table[4] = 0x0000_9b00_0000_ffff;
    table[5] = 0x0000_9300_0000_ffff;
    table
});

/// What LGDT takes.
#[repr(C, packed)]
pub(crate) struct Pointer {
    limit: u16,
    base: *const Table<[u64; DESCRIPTORS]>,
}

// SAFETY: never written.
unsafe impl Sync for Pointer {}

pub(crate) static GDT_POINTER: Pointer = Pointer { limit: GDT_LIMIT, base: &raw const GDT };

/// A 64-bit task state segment (SDM Vol. 3A, 8.7): nothing but where its I/O map would be.
#[repr(C, align(128))]
struct Task([u32; 26]);

static TASK_STATES: Table<[Task; MAX_CPUS]> = Table::new([const { Task([0; 26]) }; MAX_CPUS]);

/// Loads segments and the task of this CPU.
pub(crate) fn load(cpu: usize) {
    let task = TASK_STATES.address() + (cpu * size_of::<Task>()) as u64;
    let low = 0x67 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
    set(TASKS / 8 + 2 * index16(cpu), low);
    set(TASKS / 8 + 2 * index16(cpu) + 1, task >> 32);
    let selector = TASKS + 16 * index16(cpu);
    // SAFETY: the descriptors are valid, and flat as before.
    unsafe {
        asm!("lgdt [{p}]", "ltr {t:x}", p = in(reg) &raw const GDT_POINTER, t = in(reg) selector, options(nostack));
    }
}

/// Loads segments and task of the first CPU again, after a trip through other modes.
pub fn reload() {
    load(0);
}

fn index16(cpu: usize) -> u16 {
    u16::try_from(cpu % MAX_CPUS).unwrap_or(0)
}

/// Gives the first CPU its first interrupt stack (SDM Vol. 3A, 6.14.5).
pub fn set_interrupt_stack(top: u64) {
    let task: *mut u32 = TASK_STATES.get().cast();
    // SAFETY: the low half of IST1 lies in the first task state; the high half is zero.
    let place = unsafe { task.add(9) };
    // SAFETY: nothing is delivered by it yet.
    unsafe { place.write_volatile(u32::try_from(top).unwrap_or(0)) };
}

/// Writes a descriptor by its number in the table.
///
/// # Panics
/// If the table has no such descriptor.
pub fn set(number: u16, descriptor: u64) {
    let number = usize::from(number);
    assert!(number < DESCRIPTORS);
    let table: *mut u64 = GDT.get().cast();
    // SAFETY: the number was checked.
    let place = unsafe { table.add(number) };
    // SAFETY: in the table; a CPU reads it only when it loads the selector.
    unsafe { place.write_volatile(descriptor) };
}

/// The descriptor as the processor left it.
#[must_use]
pub fn get(number: u16) -> u64 {
    let number = usize::from(number) % DESCRIPTORS;
    let table: *const u64 = GDT.get().cast();
    // SAFETY: in the table.
    let place = unsafe { table.add(number) };
    // SAFETY: as above.
    unsafe { place.read_volatile() }
}

/// The index of the CPU that asks, by its task register: no hypervisor needs to answer that.
#[must_use]
pub fn cpu() -> usize {
    let selector: u64;
    // SAFETY: reads a register.
    unsafe { asm!("str {}", out(reg) selector, options(nomem, nostack)) };
    usize::try_from((selector & 0xffff).saturating_sub(u64::from(TASKS)) / 16).unwrap_or(0) % MAX_CPUS
}
