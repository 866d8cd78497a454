//! What operations cost: loops timed by the virtual counter, one line `bench NAME AVERAGE` (ns) for each.
//!
//! Under `-icount shift=0` a nanosecond is an instruction. The loop's own instructions are included. Vectors of its
//! own save what a compiled handler may change, and nothing else.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "timed loops and vectors")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bulkhead_test_guests::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::timer::{self, Timer};
use bulkhead_test_guests::{console, gic, machine, println, psci, registers, smp};

bulkhead_test_guests::program!(main, bulkhead_test_guests::exception::unexpected_interrupt, answer);

const CALLS: u64 = 10_000;
const ROUNDS: u64 = 1_000;
const SGI: u32 = 1;
/// How far ahead the timer is set, in microseconds.
const AHEAD: u64 = 20;

/// Interrupts handled, by CPU; and the counter as the last handler found it.
static HANDLED: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static ENTERED: AtomicU64 = AtomicU64::new(0);
/// Whether the second CPU spins rather than sleeps.
static BUSY: AtomicU32 = AtomicU32::new(0);

// The interrupt entry reads the counter as early as it can; all others go to the library's vectors.
global_asm!(
    ".balign 2048",
    "bench_vectors:",
    ".set entry, 0",
    ".rept 5",
    ".balign 128",
    "b guest_vectors + entry * 128",
    ".set entry, entry + 1",
    ".endr",
    ".balign 128",
    "stp x0, x1, [sp, #-160]!",
    "mrs x0, cntvct_el0",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x30, [sp, #144]",
    "bl {handler}",
    "ldp x18, x30, [sp, #144]",
    "ldp x16, x17, [sp, #128]",
    "ldp x14, x15, [sp, #112]",
    "ldp x12, x13, [sp, #96]",
    "ldp x10, x11, [sp, #80]",
    "ldp x8, x9, [sp, #64]",
    "ldp x6, x7, [sp, #48]",
    "ldp x4, x5, [sp, #32]",
    "ldp x2, x3, [sp, #16]",
    "ldp x0, x1, [sp], #160",
    "eret",
    ".balign 128",
    ".set entry, 6",
    ".rept 10",
    ".balign 128",
    "b guest_vectors + entry * 128",
    ".set entry, entry + 1",
    ".endr",
    handler = sym handler,
);

unsafe extern "C" {
    fn bench_vectors();
}

extern "C" fn handler(now: u64) {
    let intid = gic::acknowledge();
    ENTERED.store(now, Relaxed);
    if intid == timer::VIRTUAL_INTID {
        Timer::Virtual.stop();
    }
    let count = &HANDLED[smp::index() & 1];
    count.store(count.load(Relaxed) + 1, Relaxed);
    gic::end(intid);
}

fn handled(cpu: usize) -> u32 {
    HANDLED[cpu].load(Relaxed)
}

fn use_own_vectors() {
    // SAFETY: the table above serves interrupts and passes all else on.
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) bench_vectors as *const (), options(nostack)) };
}

/// The second CPU: its handler answers, between two it sleeps or spins.
fn answer(cpu: usize) {
    if cpu != 1 {
        return;
    }
    gic::start_cpu(cpu);
    use_own_vectors();
    unmask_interrupts();
    loop {
        if BUSY.load(Relaxed) == 0 {
            smp::wait_for_interrupt();
        } else {
            smp::pause();
        }
    }
}

fn main() {
    println!("# bench: one tick is {} ns", 1_000_000_000 / registers::cntfrq_el0::read());
    gic::start_distributor();
    gic::start_cpu(0);
    gic::enable(0, timer::VIRTUAL_INTID, 0x80);
    use_own_vectors();
    report("hypercall", time(hypercalls), CALLS);
    report("gicd-typer-read", time(|| loads(gic::GICD_TYPER)), ROUNDS);
    report("uart-fr-read", time(|| loads(console::FLAGS)), ROUNDS);
    unmask_interrupts();
    report("self-sgi", time(self_sgis), ROUNDS);
    lateness("timer-busy", || ());
    lateness("timer-wfi", smp::wait_for_interrupt);
    if machine::cpus() > 1 && smp::start(1) {
        timer::delay(100);
        report("ipi", time(ipis), ROUNDS);
        BUSY.store(1, Relaxed);
        gic::send(SGI, 1);
        timer::delay(100);
        println!("# the same while the second CPU spins: {}", Tenths(time(ipis), ROUNDS));
    }
    mask_interrupts();
    println!("# bench done");
}

fn time(operations: impl FnOnce()) -> u64 {
    let start = timer::now();
    operations();
    timer::now() - start
}

/// Ticks by rounds, shown as nanoseconds with one decimal.
struct Tenths(u64, u64);

impl core::fmt::Display for Tenths {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let tenths = self.0 * (10_000_000_000 / registers::cntfrq_el0::read()) / self.1;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}

fn report(name: &str, ticks: u64, rounds: u64) {
    println!("bench {name} {}", Tenths(ticks, rounds));
}

fn hypercalls() {
    // SAFETY: PSCI_VERSION changes nothing but x0 to x3.
    unsafe {
        asm!("1: mov x0, x20", "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "hvc #0", "subs x21, x21, #1", "b.ne 1b",
            in("x20") psci::VERSION, inout("x21") CALLS => _, clobber_abi("C"), options(nostack));
    }
}

fn loads(address: usize) {
    // SAFETY: device registers whose loads have no effect.
    unsafe {
        asm!("1: ldr w9, [{a}]", "subs {n}, {n}, #1", "b.ne 1b",
            a = in(reg) address, n = inout(reg) ROUNDS => _, out("x9") _, options(nostack));
    }
}

fn self_sgis() {
    let request = gic::request(SGI, 0);
    for _ in 0..ROUNDS {
        let before = handled(0);
        registers::icc_sgi1r_el1::write(request);
        while handled(0) == before {}
    }
}

/// Programmes the timer again and again; how much later than its deadline the handler runs.
fn lateness(name: &str, wait: impl Fn()) {
    let (mut total, mut most) = (0, 0);
    for _ in 0..ROUNDS {
        let before = handled(0);
        let deadline = timer::now() + timer::ticks(AHEAD);
        Timer::Virtual.arm(deadline);
        while handled(0) == before {
            wait();
        }
        let late = ENTERED.load(Relaxed).saturating_sub(deadline);
        total += late;
        most = most.max(late);
    }
    report(name, total, ROUNDS);
    println!("bench-max {name} {}", Tenths(most, 1));
}

fn ipis() {
    let request = gic::request(SGI, 1);
    for _ in 0..ROUNDS {
        let before = handled(1);
        registers::icc_sgi1r_el1::write(request);
        while handled(1) == before {
            smp::pause();
        }
    }
}
