//! Further CPUs: started one by one, counted when they arrive; and what CPUs do while they wait.
#![expect(unsafe_code, reason = "hint instructions")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use crate::{MAX_CPUS, exception, machine, psci, registers, secondary_entry, timer};

static ARRIVED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The index of the CPU that asks.
#[must_use]
pub fn index() -> usize {
    usize::try_from(registers::tpidr_el1::read()).unwrap_or_default() % MAX_CPUS
}

pub(crate) fn came_up(context: u64) {
    ARRIVED[index()].store(context, Release);
}

/// The context with which CPU `index` last came up; 0 if it never did.
#[must_use]
pub fn context(index: usize) -> u64 {
    ARRIVED[index].load(Acquire)
}

/// Forgets that CPU `index` ever came up.
pub fn forget(index: usize) {
    ARRIVED[index].store(0, Release);
}

/// CPU_ON for CPU `index`; the answer. Its context is the index, under `mark` shifted by 8.
pub fn switch_on(index: usize, mark: u64) -> i64 {
    psci::call(psci::CPU_ON, machine::affinity(index), secondary_entry(), mark << 8 | index as u64)
}

/// Starts CPU `index` and waits (a second at most) until it runs the program's own code.
pub fn start(index: usize) -> bool {
    switch_on(index, 1) == 0 && timer::spin_until(1_000_000, || context(index) != 0)
}

/// Starts every further CPU; how many run, this one included.
pub fn start_all() -> usize {
    1 + (1..machine::cpus()).filter(|&cpu| start(cpu)).count()
}

/// Switches this CPU off.
pub fn switch_off() -> ! {
    loop {
        psci::hvc(psci::CPU_OFF, 0, 0, 0);
    }
}

/// What a program runs on further CPUs if it never meant to start any.
pub fn unexpected_cpu(_cpu: usize) {}

/// `YIELD`: lets an emulator run another CPU.
pub fn pause() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack)) };
}

/// `WFI`.
pub fn wait_for_interrupt() {
    // SAFETY: a hint that waits; `dsb` so that what this CPU did is done before.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// `WFE`.
pub fn wait_for_event() {
    // SAFETY: a hint that waits.
    unsafe { asm!("wfe", options(nostack)) };
}

/// `SEV`.
pub fn send_event() {
    // SAFETY: a hint; `dsb` so that what the waiter looks for is there.
    unsafe { asm!("dsb ish", "sev", options(nostack)) };
}

/// Sleeps until `done` holds, with interrupts taken only while `done` is not being asked.
pub fn sleep_until(done: impl Fn() -> bool) {
    while !done() {
        wait_for_interrupt();
        exception::unmask_interrupts();
        exception::mask_interrupts();
    }
}
