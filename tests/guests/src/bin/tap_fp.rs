//! FP, SIMD and SVE registers: each CPU's own, whatever interrupts, calls and waits come between.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "fills and reads the vector registers")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use bulkhead_test_guests::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::random::Random;
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer::{self, Timer};
use bulkhead_test_guests::{MAX_CPUS, console, gic, machine, println, psci, registers, smp};

bulkhead_test_guests::program!(main, on_interrupt, helper);

const ROUNDS: u64 = 300;
const SGI: u32 = 2;
/// CPACR_EL1: FPEN and ZEN open (Arm ARM D19.2.32).
const FP_OPEN: u64 = 3 << 20;
const SVE_OPEN: u64 = 3 << 16;
/// FPCR: rounding mode; FPSR: the cumulative flags (Arm ARM C5.2.8, C5.2.10).
const FPCR_BITS: u64 = 3 << 22;
const FPSR_BITS: u64 = 0x9f;

static WRONG: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static DONE: AtomicU32 = AtomicU32::new(0);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

fn on_interrupt() {
    let intid = gic::acknowledge();
    if intid == gic::SPURIOUS {
        return;
    }
    if intid == timer::VIRTUAL_INTID {
        Timer::Virtual.mask();
    }
    INTERRUPTS.fetch_add(1, AcqRel);
    gic::end(intid);
}

#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(16))]
struct Simd {
    v: [u64; 64],
    fpcr: u64,
    fpsr: u64,
}

#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(16))]
struct Sve {
    z: [u64; 1024],
    p: [u64; 64],
    ffr: [u64; 4],
}

/// Fills the registers from `state`, does something that may leave this CPU for a while, reads them back.
macro_rules! across {
    ($simd:ident, $sve:ident, $($what:literal),+) => {
        fn $simd(state: &mut Simd, argument: u64) {
            // SAFETY: no code here keeps anything in vector registers; all others that change are named.
            unsafe {
                asm!(".arch_extension fp", ".arch_extension simd",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "ldr q\\n, [x20, #(16 * \\n)]", ".endr",
                    "ldr x22, [x20, #512]", "ldr x23, [x20, #520]", "msr fpcr, x22", "msr fpsr, x23",
                    $($what,)+
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "str q\\n, [x20, #(16 * \\n)]", ".endr",
                    "mrs x22, fpcr", "mrs x23, fpsr", "str x22, [x20, #512]", "str x23, [x20, #520]",
                    in("x20") core::ptr::from_mut(state), in("x21") argument, out("x22") _, out("x23") _,
                    clobber_abi("C"));
            }
        }

        fn $sve(state: &mut Sve, argument: u64) {
            // SAFETY: as above; the buffers hold the longest vectors there are.
            unsafe {
                asm!(".arch_extension sve",
                    "add x22, x20, #8192", "add x23, x22, #512",
                    "ldr p0, [x23]", "wrffr p0.b",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "ldr z\\n, [x20, #\\n, mul vl]", ".endr",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "ldr p\\n, [x22, #\\n, mul vl]", ".endr",
                    $($what,)+
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "str p\\n, [x22, #\\n, mul vl]", ".endr",
                    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "str z\\n, [x20, #\\n, mul vl]", ".endr",
                    "rdffr p0.b", "str p0, [x23]",
                    in("x20") core::ptr::from_mut(state), in("x21") argument, out("x22") _, out("x23") _,
                    clobber_abi("C"));
            }
        }
    };
}

across!(simd_at_once, sve_at_once, "isb");
across!(simd_across_call, sve_across_call, "mov x0, x21", "hvc #0");
across!(simd_across_device, sve_across_device, "ldr w0, [x21]");
across!(simd_across_sgi, sve_across_sgi, "msr s3_0_c12_c11_5, x21", "isb", "isb");
across!(simd_across_wait, sve_across_wait, "wfi");
across!(simd_across_yields, sve_across_yields, "1: yield", "subs x21, x21, #1", "b.ne 1b");

type Step<T> = (fn(&mut T, u64), u64);

/// An SGI to all other CPUs; to oneself if there is no other.
fn sgi() -> u64 {
    let to_others = machine::cpus() > 1;
    u64::from(SGI) << 24 | if to_others { 1 << 40 } else { 1 }
}

fn repeat<T: Clone + PartialEq>(cpu: usize, steps: &[Step<T>], fill: impl Fn(u64) -> T) -> bool {
    let mut wrong = 0;
    for round in 0..ROUNDS {
        for (index, &(step, argument)) in (0..).zip(steps) {
            let wanted = fill(round * 8 + index + (cpu as u64) * 1_000_003);
            let mut state = wanted.clone();
            Timer::Virtual.arm(timer::now() + timer::ticks(30));
            step(&mut state, argument);
            wrong += u32::from(state != wanted);
        }
    }
    WRONG[cpu].fetch_add(wrong, AcqRel);
    wrong == 0
}

fn fill_simd(seed: u64) -> Simd {
    let mut random = Random::new(seed);
    Simd {
        v: core::array::from_fn(|_| random.next()),
        fpcr: random.next() & FPCR_BITS,
        fpsr: random.next() & FPSR_BITS,
    }
}

fn fill_sve(seed: u64) -> Sve {
    let mut random = Random::new(seed);
    // FFR holds ones below some element and zeros from there on (Arm ARM C6.2, WRFFR).
    let ones = random.below(65);
    let ffr = 1u64.checked_shl(u32::try_from(ones).unwrap_or(0)).map_or(u64::MAX, |bit| bit - 1);
    let mut state = Sve {
        z: core::array::from_fn(|_| random.next()),
        p: core::array::from_fn(|_| random.next()),
        ffr: [0; 4],
    };
    state.ffr[0] = ffr & (u64::MAX >> (64 - predicate_bits().min(64)));
    state
}

/// Bits of a predicate register: bytes of a vector.
fn predicate_bits() -> u64 {
    let bytes: u64;
    // SAFETY: asks for the vector length.
    unsafe { asm!(".arch_extension sve", "rdvl {}, #1", out(reg) bytes, options(nomem, nostack)) };
    bytes
}

fn has_sve() -> bool {
    registers::id_aa64pfr0_el1::read() >> 32 & 0xf != 0
}

fn work(cpu: usize) {
    gic::start_cpu(cpu);
    gic::enable(cpu, timer::VIRTUAL_INTID, 0x80);
    registers::cpacr_el1::write(FP_OPEN | if has_sve() { SVE_OPEN } else { 0 });
    let flags = console::FLAGS as u64;
    let simd: [Step<Simd>; 6] = [
        (simd_at_once, 0),
        (simd_across_call, psci::VERSION),
        (simd_across_device, flags),
        (simd_across_sgi, sgi()),
        (simd_across_wait, 0),
        (simd_across_yields, 500),
    ];
    unmask_interrupts();
    repeat(cpu, &simd[..4], fill_simd);
    repeat(cpu, &simd[5..], fill_simd);
    mask_interrupts();
    repeat(cpu, &simd[4..5], fill_simd);
    if has_sve() {
        registers::zcr_el1::write(0xf);
        let sve: [Step<Sve>; 6] = [
            (sve_at_once, 0),
            (sve_across_call, psci::VERSION),
            (sve_across_device, flags),
            (sve_across_sgi, sgi()),
            (sve_across_wait, 0),
            (sve_across_yields, 500),
        ];
        unmask_interrupts();
        repeat(cpu, &sve[..4], fill_sve);
        repeat(cpu, &sve[5..], fill_sve);
        mask_interrupts();
        repeat(cpu, &sve[4..5], fill_sve);
    }
    Timer::Virtual.stop();
    DONE.fetch_add(1, AcqRel);
    unmask_interrupts();
}

/// A further CPU goes on taking SGIs until the others are done.
fn helper(cpu: usize) {
    work(cpu);
    loop {
        smp::wait_for_interrupt();
    }
}

fn main() {
    let mut tap = Tap::start("tap-fp");
    gic::start_distributor();
    DONE.store(0, Release);
    let cpus = smp::start_all();
    tap.equal("all CPUs come up", cpus, machine::cpus());
    work(0);
    let all = || DONE.load(Acquire) as usize == cpus;
    tap.check("all CPUs finish", timer::spin_until(60_000_000, all));
    for wrong in &WRONG[..cpus] {
        tap.equal("a CPU's vector registers stay its own", wrong.load(Acquire), 0);
    }
    tap.check("interrupts came meanwhile", INTERRUPTS.load(Acquire) > 100);
    if has_sve() {
        println!("# SVE: {} bits", predicate_bits() * 8);
    } else {
        tap.skip("SVE", "not offered");
    }
    tap.finish();
}
