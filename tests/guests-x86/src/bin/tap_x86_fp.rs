//! Vector registers: each CPU's own, whatever exits, interrupts and neighbours come between.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "fills and reads the vector registers")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire};

use bulkhead_test_guests_x86::apic::{self, Mode, register};
use bulkhead_test_guests_x86::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests_x86::random::Random;
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{MAX_CPUS, acpi, cpu, irq, println, smp, tables, timer};

bulkhead_test_guests_x86::program!(main, on_interrupt, helper);

const ROUNDS: u64 = 300;
const TIMER: u8 = 0x40;
/// XCR0: x87, SSE, AVX (SDM Vol. 1, 13.3).
const AVX: u64 = 7;

static WRONG: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static DONE: AtomicU32 = AtomicU32::new(0);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

fn on_interrupt(_vector: u8) {
    INTERRUPTS.fetch_add(1, AcqRel);
    Mode::Xapic.end();
}

/// Sixteen registers of 32 bytes, then MXCSR.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(32))]
struct State {
    registers: [u64; 64],
    mxcsr: u32,
}

/// Fills the registers from the state, does something that may leave this CPU for a while, reads them back.
macro_rules! across {
    ($sse:ident, $avx:ident, $($what:literal),+) => {
        fn $sse(state: &mut State, argument: u64) {
            // SAFETY: no code here keeps anything in vector registers; all others that change are named.
            unsafe {
                asm!("ldmxcsr [rdi + 512]",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "movups xmm\\n, [rdi + 32 * \\n]", ".endr",
                    $($what,)+
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "movups [rdi + 32 * \\n], xmm\\n", ".endr",
                    "stmxcsr [rdi + 512]",
                    in("rdi") core::ptr::from_mut(state), inout("rsi") argument => _, out("r8") _,
                    out("rax") _, out("rcx") _, out("rdx") _);
            }
        }

        fn $avx(state: &mut State, argument: u64) {
            // SAFETY: as above.
            unsafe {
                asm!("ldmxcsr [rdi + 512]",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovups ymm\\n, [rdi + 32 * \\n]", ".endr",
                    $($what,)+
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "vmovups [rdi + 32 * \\n], ymm\\n", ".endr",
                    "stmxcsr [rdi + 512]",
                    in("rdi") core::ptr::from_mut(state), inout("rsi") argument => _, out("r8") _,
                    out("rax") _, out("rcx") _, out("rdx") _);
            }
        }
    };
}

across!(sse_at_once, avx_at_once, "nop");
across!(sse_across_cpuid, avx_across_cpuid, "mov r8, rbx", "xor eax, eax", "cpuid", "mov rbx, r8");
across!(sse_across_device, avx_across_device, "mov eax, [rsi]");
across!(sse_across_port, avx_across_port, "mov edx, esi", "in al, dx");
across!(sse_across_wait, avx_across_wait, "sti", "hlt", "cli");
across!(sse_across_loop, avx_across_loop, "sti", "77: pause", "dec rsi", "jnz 77b", "cli");

type Step = (fn(&mut State, u64), u64);

const DEVICE: u64 = apic::PAGE + register::VERSION as u64;
const SSE_STEPS: [Step; 6] = [
    (sse_at_once, 0),
    (sse_across_cpuid, 0),
    (sse_across_device, DEVICE),
    (sse_across_port, 0x3fd),
    (sse_across_wait, 0),
    (sse_across_loop, 500),
];
const AVX_STEPS: [Step; 6] = [
    (avx_at_once, 0),
    (avx_across_cpuid, 0),
    (avx_across_device, DEVICE),
    (avx_across_port, 0x3fd),
    (avx_across_wait, 0),
    (avx_across_loop, 500),
];

/// Switches AVX on, where there is one.
fn has_avx() -> bool {
    let features = cpu::id(1, 0)[2];
    if features & 1 << 26 == 0 || features & 1 << 28 == 0 {
        return false;
    }
    if cpu::set_cr4(cpu::cr4() | 1 << 18).is_some() {
        return false;
    }
    // SAFETY: the processor has all three parts.
    unsafe { asm!("xsetbv", in("ecx") 0, in("rax") AVX, in("rdx") 0, options(nostack)) };
    true
}

fn repeat(index: usize, steps: &[Step], bytes: usize) {
    for round in 0..ROUNDS {
        for (number, &(step, argument)) in (0..).zip(steps) {
            let mut random = Random::new(round * 8 + number + index as u64 * 1_000_003);
            let mut wanted = State { registers: [0; 64], mxcsr: 0x1f80 };
            for register in wanted.registers.chunks_mut(4) {
                register[..bytes / 8].fill_with(|| random.next());
            }
            // Rounding, and what has been rounded by now (SDM Vol. 1, 10.2.3).
            wanted.mxcsr |= u32::try_from(random.next() & 0x603f).unwrap_or(0);
            let mut state = wanted.clone();
            apic::poke(register::INITIAL, 30_000);
            step(&mut state, argument);
            WRONG[index].fetch_add(u32::from(state != wanted), AcqRel);
        }
    }
}

fn work(index: usize) {
    if !Mode::Xapic.enter() {
        return;
    }
    Mode::Xapic.enable();
    apic::poke(register::DIVIDE, 0xb);
    // Periodic: an interrupt must not get lost before the halt that waits for one.
    apic::poke(register::TIMER, 1 << 17 | u32::from(TIMER));
    repeat(index, &SSE_STEPS, 16);
    if has_avx() {
        repeat(index, &AVX_STEPS, 32);
    }
    apic::poke(register::TIMER, 1 << 16);
    unmask_interrupts();
    mask_interrupts();
    DONE.fetch_add(1, AcqRel);
}

fn helper(_index: usize) {
    work(tables::cpu());
}

fn main() {
    let mut tap = Tap::start("tap-x86-fp");
    irq::start_pics(0x20, 0);
    let cpus = smp::start_all();
    tap.equal("all CPUs come up", cpus, acpi::cpus());
    work(0);
    let all = || DONE.load(Acquire) as usize == cpus;
    tap.check("all CPUs finish", timer::spin_until(60_000_000, all));
    for wrong in &WRONG[..cpus] {
        tap.equal("a CPU's vector registers stay its own", wrong.load(Acquire), 0);
    }
    tap.check("interrupts came meanwhile", INTERRUPTS.load(Acquire) > 100);
    println!("# AVX: {}", cpu::id(1, 0)[2] >> 28 & 1);
    tap.finish();
}
