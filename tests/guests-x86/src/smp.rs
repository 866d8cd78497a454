//! Further CPUs: started one by one by INIT and SIPI, counted when they arrive.
#![expect(unsafe_code, reason = "halts")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::start::{NEXT, TRAMPOLINE, copy_trampoline};
use crate::{MAX_CPUS, acpi, apic, timer};

static ARRIVED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// INIT, and SIPI without its vector (SDM Vol. 3A, 11.6.1).
pub const INIT: u32 = 0x4500;
/// Start-up.
pub const STARTUP: u32 = 0x4600;

pub(crate) fn came_up(cpu: usize) {
    ARRIVED[cpu].fetch_add(1, Release);
}

/// How often CPU `cpu` has arrived.
#[must_use]
pub fn arrivals(cpu: usize) -> u64 {
    ARRIVED[cpu].load(Acquire)
}

/// Starts CPU `cpu` (again) and waits until it runs the program's own code.
pub fn start(cpu: usize) -> bool {
    let before = arrivals(cpu);
    let mode = apic::mode();
    copy_trampoline();
    NEXT.store(cpu as u64, Relaxed);
    mode.send(acpi::apic_id(cpu), INIT);
    timer::delay(10_000);
    let vector = u32::try_from(TRAMPOLINE >> 12).unwrap_or(0);
    for _ in 0..2 {
        mode.send(acpi::apic_id(cpu), STARTUP | vector);
        if timer::spin_until(100_000, || arrivals(cpu) != before) {
            return true;
        }
    }
    timer::spin_until(1_000_000, || arrivals(cpu) != before)
}

/// Starts every further CPU; how many run, this one included.
pub fn start_all() -> usize {
    1 + (1..acpi::cpus()).filter(|&cpu| start(cpu)).count()
}

/// What a program runs on further CPUs if it never meant to start any.
pub fn unexpected_cpu(_cpu: usize) {}

/// Nothing any more.
pub fn halt_for_good() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
