//! What the loader and the firmware say: RAM, CPUs, boot arguments; whether a hypervisor is below; how to power off.
#![expect(unsafe_code, reason = "the loader's information is found by its address")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::{acpi, console, cpu, entry_state, port, smp};

/// What EAX holds at entry (Multiboot Specification 0.6.96, 3.2).
pub const MULTIBOOT_MAGIC: u32 = 0x2bad_b002;
/// ACPI's control register of Bulkhead's PC and of QEMU's q35; SLP_EN with SLP_TYP 0 powers them off.
pub const PM1_CONTROL: u16 = 0x604;
const SLEEP: u16 = 1 << 13;
/// Bochs ends when it reads this word at its port.
const BOCHS_PORT: u16 = 0x8900;

struct Line(UnsafeCell<[u8; 256]>);

// SAFETY: written by `discover` before anything reads it.
unsafe impl Sync for Line {}

static LINE: Line = Line(UnsafeCell::new([0; 256]));
static LINE_BYTES: AtomicUsize = AtomicUsize::new(0);
static RAM_END: AtomicU64 = AtomicU64::new(0);
static HYPERVISED: AtomicBool = AtomicBool::new(false);

fn word(address: u64) -> u32 {
    let from: *const u32 = core::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0));
    // SAFETY: the loader's information lies in mapped RAM.
    unsafe { from.read_unaligned() }
}

pub(crate) fn byte(address: u64) -> u8 {
    let from: *const u8 = core::ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0));
    // SAFETY: mapped, and reading it has no effect.
    unsafe { from.read_volatile() }
}

pub(crate) fn discover() {
    acpi::discover();
    // Bulkhead offers neither of the two; QEMU's and Bochs' processors of the presets have one.
    let (vmx, svm) = (cpu::id(1, 0)[2] & 1 << 5, cpu::id(0x8000_0001, 0)[2] & 1 << 2);
    HYPERVISED.store(vmx == 0 && svm == 0, Relaxed);
    let entry = entry_state();
    if entry.magic != MULTIBOOT_MAGIC {
        return;
    }
    let information = u64::from(entry.information);
    let flags = word(information);
    if flags & 1 != 0 {
        // mem_upper: KiB from 1 MiB to the first hole.
        RAM_END.store((1 << 20) + u64::from(word(information + 8)) * 1024, Relaxed);
    }
    if flags & 1 << 2 == 0 {
        return;
    }
    let from = u64::from(word(information + 16));
    let line: *mut u8 = LINE.0.get().cast();
    for index in 0..255_usize {
        let letter = byte(from + index as u64);
        if letter == 0 {
            break;
        }
        // SAFETY: below the length of the line.
        let place = unsafe { line.add(index) };
        // SAFETY: as above; nobody reads yet.
        unsafe { place.write(letter) };
        LINE_BYTES.store(index + 1, Relaxed);
    }
}

/// The first address behind the RAM that starts at 1 MiB.
#[must_use]
pub fn ram_end() -> u64 {
    RAM_END.load(Relaxed)
}

/// What follows `key=` on the command line.
#[must_use]
pub fn argument(key: &str) -> Option<&'static str> {
    // SAFETY: `discover` was its only writer.
    let line: &'static [u8; 256] = unsafe { &*LINE.0.get() };
    let text = core::str::from_utf8(line.get(..LINE_BYTES.load(Relaxed))?).ok()?;
    text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// How many CPUs the firmware names; at most [`MAX_CPUS`](crate::MAX_CPUS) are used.
#[must_use]
pub fn cpus() -> usize {
    acpi::cpus()
}

/// Whether Bulkhead is below.
#[must_use]
pub fn is_hypervised() -> bool {
    HYPERVISED.load(Relaxed)
}

/// Whether AMD made the processor, or someone pretends so.
#[must_use]
pub fn is_amd() -> bool {
    cpu::id(0, 0)[1] == u32::from_le_bytes(*b"Auth")
}

/// Whether this is QEMU's own processor with SVM, whose emulation is lax.
#[must_use]
pub fn is_emulated_amd() -> bool {
    !is_hypervised() && cpu::id(0x8000_0001, 0)[2] & 1 << 2 != 0
}

/// Powers the machine off.
pub fn power_off() -> ! {
    console::drain();
    port::write16(PM1_CONTROL, SLEEP);
    for byte in b"Shutdown" {
        port::write8(BOCHS_PORT, *byte);
    }
    smp::halt_for_good()
}
