//! A storm of everything that a guest should not do, from every CPU at once; afterwards the machine must still work.
//!
//! Random system registers by instructions written into RAM, random device accesses, random calls. Left out is only
//! what would end the program rather than annoy its host: its own translation, vectors, stack and power.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "runs instructions that it made up")]

use core::arch::asm;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
};

use bulkhead_test_guests::exception::{self, mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::gic::{self, Bits};
use bulkhead_test_guests::random::Random;
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer::{self, Timer};
use bulkhead_test_guests::{MAX_CPUS, console, machine, mmio, println, psci, registers as r, smp};

bulkhead_test_guests::program!(main, on_interrupt, helper);

/// Blocks of made-up instructions, and single operations, for each CPU.
const BLOCKS: u32 = 10_000;
const OPERATIONS: u32 = 500_000;
const BLOCK: usize = 32;
const RETURN: u32 = 0xd65f_03c0;
const RTC: usize = 0x0901_0000;
const CANARY: u64 = 0xca0a_11e5_0f0a_c0a1;

#[repr(C, align(4096))]
struct Page<T>(T);

static CODE: Page<[[AtomicU32; BLOCK + 32]; MAX_CPUS]> =
    Page([const { [const { AtomicU32::new(0) }; BLOCK + 32] }; MAX_CPUS]);
/// What cache maintenance and `DC ZVA` may destroy.
static SCRATCH: Page<[AtomicU64; 1024]> = Page([const { AtomicU64::new(0) }; 1024]);
static CANARIES: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];
static FINISHED: AtomicU32 = AtomicU32::new(0);
static UNDEFINED: AtomicU32 = AtomicU32::new(0);
static ABORTED: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicU32 = AtomicU32::new(0);
/// Whether the GIC takes part: QEMU's own dies of segmentation faults in such a storm (10.0.2, `gicv3_update`).
static STORMS_GIC: AtomicBool = AtomicBool::new(false);
static SEED: AtomicU64 = AtomicU64::new(0);

fn on_interrupt() {
    let intid = gic::acknowledge();
    if intid == gic::SPURIOUS {
        return;
    }
    Timer::Virtual.mask();
    TAKEN.fetch_add(1, AcqRel);
    gic::end(intid);
}

fn helper(cpu: usize) {
    storm(cpu);
    loop {
        smp::wait_for_event();
    }
}

fn main() {
    let mut tap = Tap::start("hostile");
    let seed = machine::argument("seed").and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("# seed={seed}");
    SEED.store(seed, Relaxed);
    STORMS_GIC.store(machine::is_hypervised(), Relaxed);
    for (index, canary) in (0..).zip(&CANARIES) {
        canary.store(CANARY ^ index, Relaxed);
    }
    let cpus = smp::start_all();
    tap.equal("all CPUs come up", cpus, machine::cpus());
    storm(0);
    while (FINISHED.load(Acquire) as usize) < cpus {
        smp::pause();
    }
    calm();
    println!("# {} UNDEFINED blocks, {} aborts", UNDEFINED.load(Relaxed), ABORTED.load(Relaxed));
    tap.check(
        "memory is as it was",
        (0..).zip(&CANARIES).all(|(index, canary)| canary.load(Relaxed) == CANARY ^ index),
    );
    afterwards(&mut tap);
    println!("survived");
    tap.finish();
}

/// All CPUs storm together: CPU_ON can then start nothing.
fn storm(cpu: usize) {
    let mut random = Random::new(SEED.load(Relaxed) << 8 | cpu as u64);
    mask_interrupts();
    for round in 0..BLOCKS {
        run_block(&mut random, cpu);
        for _ in 0..OPERATIONS / BLOCKS {
            operation(&mut random);
        }
        if round % 64 == 0 {
            smp::pause();
        }
    }
    Timer::Virtual.stop();
    Timer::Physical.stop();
    FINISHED.fetch_add(1, AcqRel);
}

fn operation(random: &mut Random) {
    if random.below(4) == 0 {
        call(random);
        return;
    }
    let place = device(random);
    let fault = exception::catch(|| touch(random, place));
    ABORTED.fetch_add(fault.is_some().into(), Relaxed);
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn index(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap_or(0)
}

/// An address in or near a device, mostly aligned.
fn device(random: &mut Random) -> usize {
    let windows = [
        (console::UART, 0x1000),
        (console::UART, 0x50),
        (RTC, 0x1000),
        (RTC, 0x20),
        (gic::GICD, 0x1_0000),
        (gic::GICD, 0x1000),
        (gic::GICR, 0x2_0000 * machine::cpus() + 0x1000),
        (gic::redistributor(index(random, machine::cpus())) + 0x1_0000, 0x1000),
    ];
    let windows = if STORMS_GIC.load(Relaxed) { &windows[..] } else { &windows[..4] };
    let (base, size) = windows[index(random, windows.len())];
    let place = base + index(random, size);
    if random.below(16) == 0 { place } else { (place & !7) + index(random, 2) * 4 }
}

fn touch(random: &mut Random, place: usize) {
    let value = random.value();
    let [b0, b1, ..] = value.to_le_bytes();
    match random.below(8) {
        0 => drop(mmio::read8(place).to_le_bytes()),
        1 => drop(mmio::read16(place).to_le_bytes()),
        2 => drop(mmio::read64(place).to_le_bytes()),
        3 => drop(mmio::read32(place).to_le_bytes()),
        _ if must_not_be_written(place) => {}
        4 => mmio::write8(place, b0),
        5 => mmio::write16(place, u16::from_le_bytes([b0, b1])),
        6 => mmio::write64(place, value),
        _ => mmio::write32(place, low(value)),
    }
}

/// The UART's data register would print; GICR_CTLR could switch on LPIs, whose tables lie anywhere in memory.
fn must_not_be_written(place: usize) -> bool {
    let prints = (console::UART - 8..console::UART + 4).contains(&place);
    let enables_lpis = (gic::GICR..console::UART).contains(&place) && (place - gic::GICR) % 0x2_0000 < 4;
    prints || enables_lpis
}

fn call(random: &mut Random) {
    let function = match random.below(4) {
        0 => 0x8400_0000 | random.below(0x20),
        1 => 0xc400_0000 | random.below(0x20),
        2 => 0x8000_0000 | random.below(4) << 24 | random.below(0x1_0000),
        _ => random.value(),
    };
    if ends_the_program(function) {
        return;
    }
    let affinity = if random.below(2) == 0 { random.value() } else { random.below(MAX_CPUS as u64) };
    let (second, third) = (random.value(), random.value());
    let calls = [psci::hvc, psci::hvc, psci::hvc_odd, psci::smc, psci::smc, psci::smc_odd];
    let conduit = calls[index(random, calls.len())];
    let fault = exception::catch(|| {
        conduit(function, affinity, second, third);
    });
    ABORTED.fetch_add(fault.is_some().into(), Relaxed);
}

/// Functions of PSCI that switch this CPU or the machine off, reset it, or let it sleep for good (DEN0022, 5.1).
const fn ends_the_program(function: u64) -> bool {
    let is_psci = function & 0xbfff_0000 == 0x8400_0000;
    is_psci && matches!(function & 0xffff, 0x1 | 0x2 | 0x8 | 0x9 | 0xb | 0xc | 0xe | 0x12 | 0x15)
}

fn run_block(random: &mut Random, cpu: usize) {
    let code = &CODE.0[cpu];
    for word in &code[..BLOCK] {
        word.store(instruction(random), Relaxed);
    }
    code[BLOCK].store(RETURN, Relaxed);
    make_visible(code);
    let start = core::ptr::from_ref(code).expose_provenance();
    let scratch = core::ptr::from_ref(&SCRATCH).expose_provenance();
    let values = [random.value(), random.value(), random.value(), random.value()];
    let fault = exception::catch(|| {
        // SAFETY: the block changes x9 and system registers that the program does not stand on, then returns.
        unsafe {
            asm!("blr {code}", code = in(reg) start, out("x9") _, in("x10") values[0], in("x11") values[1],
                in("x12") values[2], in("x13") values[3], in("x14") scratch, clobber_abi("C"));
        }
    });
    UNDEFINED.fetch_add(fault.is_some().into(), Relaxed);
}

/// Makes written instructions fetchable, line by line of 16 bytes, the shortest there is.
fn make_visible(code: &[AtomicU32]) {
    for word in code.iter().step_by(4) {
        // SAFETY: cache maintenance by address on the program's own memory.
        unsafe { asm!("dc cvau, {0}", "ic ivau, {0}", in(reg) core::ptr::from_ref(word), options(nostack)) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
    for word in code.iter().step_by(4) {
        // SAFETY: as above; again, now that the data is where fetches look.
        unsafe { asm!("ic ivau, {0}", in(reg) core::ptr::from_ref(word), options(nostack)) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
}

/// Fields of a system instruction: op0, op1, CRn, CRm, op2 (Arm ARM C5.1.2).
#[derive(Clone, Copy)]
struct Place(u32, u32, u32, u32, u32);

impl Place {
    fn encode(self, is_read: bool, register: u32) -> u32 {
        let Self(op0, op1, n, m, op2) = self;
        0xd500_0000
            | u32::from(is_read) << 21
            | op0 << 19
            | op1 << 16
            | n << 12
            | m << 8
            | op2 << 5
            | register
    }
}

fn instruction(random: &mut Random) -> u32 {
    let mut field = |bound: u64| low(random.below(bound));
    let source = 10 + field(4);
    let place = match field(8) {
        0 => Place(1, field(8), 7 + field(2), field(16), field(8)),
        1 => Place(2, field(8), field(16), field(16), field(8)),
        2 => Place(3, 0, 12, 8 + field(5), field(8)),
        3 => Place(3, 3, 14, field(16), field(8)),
        4 => Place(3, 0, field(16), field(16), field(8)),
        5 => Place(3, 3, field(16), field(16), field(8)),
        _ => Place(3, field(8), field(16), field(16), field(8)),
    };
    let is_read = field(2) == 0;
    match place {
        // Cache maintenance and translations get an address that they may destroy; TLB maintenance any value.
        Place(1, _, 7, ..) => place.encode(false, 14),
        Place(1, ..) => place.encode(false, source),
        // The GIC's system registers: ID register 0 instead, where they must be spared.
        Place(3, 0, 12, ..) if !STORMS_GIC.load(Relaxed) => Place(3, 0, 0, 4, 0).encode(true, 9),
        _ if is_read || moves_the_ground(place) => place.encode(true, 9),
        _ => place.encode(false, source),
    }
}

/// Registers that carry the program: writing them at random ends it, not its host.
const fn moves_the_ground(place: Place) -> bool {
    match place {
        // SCTLR, SCTLR2, TCR and TTBRs and pointer keys, SPSel, MAIR and permission indirection
        Place(3, 0, 1, 0, 0 | 3) | Place(3, 0, 2, ..) | Place(3, 0, 4, 2, 0) | Place(3, 0, 10, 2, _) => true,
        // VBAR, RVBAR, RMR; TPIDR_EL1, which numbers the CPU
        Place(3, 0, 12, 0, _) | Place(3, 0, 13, 0, 4) => true,
        // ICC_BPR1: QEMU 10.0 keeps 8 as 0, then dies of an assertion (arm_gicv3_cpuif.c, icc_gprio_mask)
        Place(3, 0, 12, 12, 3) => true,
        // CNTFRQ, which the highest exception level may write: EL1 where nothing is above it
        Place(3, 3, 14, 0, 0) => true,
        // DAIF; streaming mode, which changes what the calling convention means
        Place(3, 3, 4, 2, 1 | 2) => true,
        _ => false,
    }
}

/// Puts devices and registers back to where a program would start.
fn calm() {
    r::icc_igrpen0_el1::write(0);
    r::icc_ap0r0_el1::write(0);
    r::icc_ap1r0_el1::write(0);
    r::cpacr_el1::write(0);
    r::cntkctl_el1::write(0);
    for word in 0..9 {
        gic::set_word(0, Bits::Disable, 32 * word, u32::MAX);
        gic::set_word(0, Bits::Unpend, 32 * word, u32::MAX);
        gic::set_word(0, Bits::Deactivate, 32 * word, u32::MAX);
    }
    gic::start_distributor();
    gic::start_cpu(0);
    // DMA control, interrupt mask, interrupt clear, line control, control (PL011 TRM 3.2).
    for (offset, value) in [(0x48, 0), (0x38, 0), (0x44, 0x7ff), (0x2c, 0x70), (0x30, 0x301)] {
        mmio::write32(console::UART + offset, value);
    }
    mmio::write32(RTC + 0x10, 0);
}

fn afterwards(tap: &mut Tap) {
    unmask_interrupts();
    timer::delay(1000);
    let before = TAKEN.load(Acquire);
    gic::send(3, 0);
    tap.check("an SGI is taken", timer::spin_until(20_000, || TAKEN.load(Acquire) == before + 1));
    gic::enable(0, timer::VIRTUAL_INTID, 0x80);
    Timer::Virtual.arm(timer::now() + timer::ticks(1000));
    tap.check("the timer interrupts", timer::spin_until(1_000_000, || TAKEN.load(Acquire) == before + 2));
    mask_interrupts();
    tap.check("a call is answered", psci::call(psci::VERSION, 0, 0, 0) >= 0x1_0000);
    tap.equal("SRE is set", r::icc_sre_el1::read() & 1, 1);
    let second = mmio::read32(RTC);
    tap.check("the clock counts", timer::spin_until(3_000_000, || mmio::read32(RTC) != second));
}
