//! What operations cost: loops of 2,000 timed by the time stamp counter, one line `bench NAME AVERAGE` (in its ticks, which
//! are instructions where an emulator counts them) for each.
//!
//! The loop's own two instructions are included. Vectors of its own save what they change and nothing else. What a machine
//! lacks is left out.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "timed loops and vectors")]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bulkhead_test_guests_x86::apic::{self, Mode, register};
use bulkhead_test_guests_x86::exception::{self, mask_interrupts, unmask_interrupts};
use bulkhead_test_guests_x86::{acpi, attempt, console, cpu, irq, machine, println, smp, timer};

bulkhead_test_guests_x86::program!(main, exception::unexpected_interrupt, answer);

const ROUNDS: u64 = 2_000;
/// Vectors of the timer, of calls to the first CPU, and of calls to the second; the end of interrupt by memory and by MSR.
const TIMER: [u8; 2] = [0x40, 0x41];
const OWN_CALL: [u8; 2] = [0x50, 0x51];
const OTHER_CALL: [u8; 2] = [0x60, 0x61];
/// How far ahead the timer is set, in microseconds.
const AHEAD: u64 = 20;
/// The timer's modes in its entry (SDM Vol. 3A, figure 11-8).
const DEADLINE_MODE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;

/// Interrupts handled by the first CPU; by the second; the time stamp counter as the last timer handler found it.
static OWN: AtomicU64 = AtomicU64::new(0);
static OTHER: AtomicU64 = AtomicU64::new(0);
static ENTERED: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".macro end_by_memory",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    ".endm",
    ".macro end_by_msr",
    "push rcx",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "pop rcx",
    ".endm",
    ".macro finish name",
    "end_by_\\name",
    "pop rdx",
    "pop rax",
    "iretq",
    ".endm",
    ".macro handlers name",
    "bench_timer_\\name:",
    "push rax",
    "push rdx",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rip + {entered}], rax",
    "inc qword ptr [rip + {own}]",
    "finish \\name",
    "bench_own_\\name:",
    "push rax",
    "push rdx",
    "inc qword ptr [rip + {own}]",
    "finish \\name",
    "bench_other_\\name:",
    "push rax",
    "push rdx",
    "inc qword ptr [rip + {other}]",
    "finish \\name",
    ".endm",
    "handlers memory",
    "handlers msr",
    entered = sym ENTERED,
    own = sym OWN,
    other = sym OTHER,
);

unsafe extern "C" {
    fn bench_timer_memory();
    fn bench_timer_msr();
    fn bench_own_memory();
    fn bench_own_msr();
    fn bench_other_memory();
    fn bench_other_msr();
}

fn use_own_vectors() {
    let handlers: [([u8; 2], [unsafe extern "C" fn(); 2]); 3] = [
        (TIMER, [bench_timer_memory, bench_timer_msr]),
        (OWN_CALL, [bench_own_memory, bench_own_msr]),
        (OTHER_CALL, [bench_other_memory, bench_other_msr]),
    ];
    for (vectors, entries) in handlers {
        for (vector, entry) in vectors.into_iter().zip(entries) {
            exception::set(vector, entry as *const () as u64);
        }
    }
}

/// Which of two vectors belongs to a mode.
const fn of(mode: Mode, vectors: [u8; 2]) -> u8 {
    match mode {
        Mode::Xapic => vectors[0],
        Mode::X2apic => vectors[1],
    }
}

/// The quickest mode that there is.
fn best() -> Mode {
    if apic::has_x2apic() { Mode::X2apic } else { Mode::Xapic }
}

/// The second CPU: its handler answers, between two it halts.
fn answer(cpu: usize) {
    if cpu != 1 || !best().enter() {
        return;
    }
    best().enable();
    OTHER.fetch_add(1, Relaxed);
    loop {
        exception::wait_for_interrupt();
    }
}

fn main() {
    println!("# bench-x86: {} ticks in a millisecond", timer::ticks(1000));
    irq::start_pics(0x20, 0);
    use_own_vectors();
    exits();
    inside();
    interrupts(Mode::Xapic, "self-ipi-xapic");
    if apic::has_x2apic() {
        interrupts(Mode::X2apic, "self-ipi-x2apic");
    }
    if best().enter() {
        timers(best());
        other_cpu(best());
    }
    mask_interrupts();
    println!("# bench done");
}

fn report(name: &str, ticks: u64, rounds: u64) {
    let tenths = ticks * 10 / rounds;
    println!("bench {name} {}.{}", tenths / 10, tenths % 10);
}

/// Repeats instructions that may change RAX to RDX; R8 and R9 keep what they are given.
macro_rules! repeat {
    ($name:literal, $a:expr, $b:expr, $($text:literal),+) => {{
        let start = cpu::tsc();
        // SAFETY: operations that change nothing which the program stands on; RBX is put back.
        let fault = unsafe {
            attempt!("mov r11, rbx", "88:", $($text,)+ "dec r10", "jnz 88b", "mov rbx, r11";
                in("r8") $a, in("r9") $b, inout("r10") ROUNDS => _, out("r11") _, out("rax") _, out("rcx") _, out("rdx") _)
        };
        let ticks = cpu::tsc() - start;
        match fault {
            None => report($name, ticks, ROUNDS),
            Some(fault) => println!("# no {}: exception {}", $name, fault.vector),
        }
    }};
}

fn exits() {
    repeat!("cpuid", 0_u64, 0_u64, "xor eax, eax", "cpuid");
    // Natively there is nobody to call, and on AMD's processors another instruction to do it.
    if machine::is_hypervised() {
        if machine::is_amd() {
            repeat!("hypercall", 0_u64, 0_u64, "mov eax, r8d", "vmmcall");
        } else {
            repeat!("hypercall", 0_u64, 0_u64, "mov eax, r8d", "vmcall");
        }
    }
    repeat!("out-uart", u64::from(console::SCRATCH), 0_u64, "mov edx, r8d", "out dx, al");
    repeat!("in-uart", u64::from(console::SCRATCH), 0_u64, "mov edx, r8d", "in al, dx");
    repeat!("ioapic", irq::IOAPIC, 0_u64, "mov dword ptr [r8], 1", "mov eax, [r8 + 16]");
    repeat!("rdmsr", u64::from(apic::BASE_MSR), 0_u64, "mov ecx, r8d", "rdmsr");
    if Mode::Xapic.enter() {
        repeat!("lapic-read", apic::PAGE + u64::from(register::VERSION), 0_u64, "mov eax, [r8]");
    }
}

/// What hardware does without anybody's help.
fn inside() {
    repeat!("mov-cr3", cpu::cr3(), 0_u64, "mov cr3, r8");
    repeat!("cr0-ts", cpu::cr0() | 8, cpu::cr0(), "mov cr0, r8", "mov cr0, r9");
    repeat!("invlpg", apic::PAGE, 0_u64, "invlpg [r8]");
    repeat!("rdtsc", 0_u64, 0_u64, "rdtsc");
}

/// An interrupt to oneself, from the command to the handler's return.
fn interrupts(mode: Mode, name: &str) {
    if !mode.enter() {
        println!("# no {name}: the mode was refused");
        return;
    }
    mode.enable();
    let command = 1 << 18 | u64::from(of(mode, OWN_CALL));
    unmask_interrupts();
    let start = cpu::tsc();
    for _ in 0..ROUNDS {
        let before = OWN.load(Relaxed);
        match mode {
            Mode::Xapic => apic::poke(register::ICR, u32::try_from(command).unwrap_or(0)),
            // SAFETY: a fixed interrupt to this CPU.
            Mode::X2apic => unsafe {
                asm!("wrmsr", in("ecx") 0x830, in("rax") command, in("rdx") 0, options(nostack));
            },
        }
        while OWN.load(Relaxed) == before {}
    }
    report(name, cpu::tsc() - start, ROUNDS);
    mask_interrupts();
}

/// Programmes the timer again and again; how much later than its deadline the handler runs.
fn timers(mode: Mode) {
    mode.enable();
    if apic::has_deadline() {
        mode.write(register::TIMER, DEADLINE_MODE | u32::from(of(mode, TIMER)));
        let arm = |_: u64| {
            let deadline = cpu::tsc() + timer::ticks(AHEAD);
            let _ = cpu::write_msr(apic::TSC_DEADLINE, deadline);
            deadline
        };
        println!("# timer: deadlines");
        lateness("timer-busy", arm, cpu::pause);
        lateness("timer-hlt", arm, exception::wait_for_interrupt);
        return;
    }
    mode.write(register::DIVIDE, 0xb);
    mode.write(register::TIMER, MASKED);
    mode.write(register::INITIAL, u32::MAX);
    let start = cpu::tsc();
    let count = u64::from(mode.read(register::CURRENT));
    timer::delay(10_000);
    let (ticks, counts) = (cpu::tsc() - start, (count - u64::from(mode.read(register::CURRENT))).max(1));
    println!("# timer: one-shot, {counts} counts in {ticks} ticks");
    mode.write(register::TIMER, u32::from(of(mode, TIMER)));
    let arm = |counts_ahead: u64| {
        mode.write(register::INITIAL, u32::try_from(counts_ahead).unwrap_or(u32::MAX));
        cpu::tsc() + counts_ahead * ticks / counts
    };
    let ahead = |microseconds: u64| timer::ticks(microseconds) * counts / ticks;
    lateness("timer-busy", |_| arm(ahead(AHEAD)), cpu::pause);
    lateness("timer-hlt", |_| arm(ahead(AHEAD)), exception::wait_for_interrupt);
}

fn lateness(name: &str, arm: impl Fn(u64) -> u64, wait: impl Fn()) {
    let is_busy = name == "timer-busy";
    let (mut total, mut most) = (0, 0);
    for round in 0..ROUNDS {
        let before = OWN.load(Relaxed);
        let deadline = arm(round);
        if is_busy {
            unmask_interrupts();
        }
        while OWN.load(Relaxed) == before {
            wait();
        }
        mask_interrupts();
        let late = ENTERED.load(Relaxed).saturating_sub(deadline);
        total += late;
        most = most.max(late);
    }
    report(name, total, ROUNDS);
    println!("bench-max {name} {most}.0");
}

/// An interrupt to the second CPU, until memory shows that it was taken.
fn other_cpu(mode: Mode) {
    if acpi::cpus() < 2 || !smp::start(1) || !timer::spin_until(1_000_000, || OTHER.load(Relaxed) == 1) {
        println!("# no ipi: there is no second CPU");
        return;
    }
    timer::delay(1000);
    let start = cpu::tsc();
    for _ in 0..ROUNDS {
        let before = OTHER.load(Relaxed);
        mode.send(acpi::apic_id(1), of(mode, OTHER_CALL).into());
        while OTHER.load(Relaxed) == before {
            cpu::pause();
        }
    }
    report("ipi", cpu::tsc() - start, ROUNDS);
}
