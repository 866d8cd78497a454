//! A storm of everything that a guest should not do, from every CPU at once; afterwards the machine must still work.
//!
//! Random MSRs, ports, device accesses, control registers, CPUID, calls, and instructions of the virtualisation extensions
//! themselves. Left out is only what would end the program rather than annoy its host: its own page tables, vectors, power.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "runs what no program should")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use bulkhead_test_guests_x86::apic::{self, Mode, register};
use bulkhead_test_guests_x86::exception::{self, mask_interrupts, unmask_interrupts};
use bulkhead_test_guests_x86::random::Random;
use bulkhead_test_guests_x86::tables::{self, Table};
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{acpi, attempt, cpu, irq, machine, port, println, smp, timer};

bulkhead_test_guests_x86::program!(main, on_interrupt, helper);

const OPERATIONS: u32 = 60_000;
const CANARY: u64 = 0xca0a_11e5_0f0a_c0a1;
const TIMER: u8 = 0x40;

static CANARIES: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];
static SCRATCH: Table<[u8; 8192]> = Table::new([0; 8192]);
static FINISHED: AtomicU32 = AtomicU32::new(0);
static FAULTS: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicU32 = AtomicU32::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);

fn on_interrupt(vector: u8) {
    if vector == TIMER {
        TAKEN.fetch_add(1, AcqRel);
    }
    Mode::Xapic.end();
}

fn helper(index: usize) {
    storm(index);
}

fn main() {
    let mut tap = Tap::start("hostile-x86");
    let seed = machine::argument("seed").and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("# seed={seed}");
    SEED.store(seed, Relaxed);
    irq::start_pics(0x20, 0);
    if !machine::is_hypervised() {
        println!("# natively nothing would survive this");
        tap.skip("the storm", "native");
        tap.finish();
    }
    for (index, canary) in (0..).zip(&CANARIES) {
        canary.store(CANARY ^ index, Relaxed);
    }
    let cpus = smp::start_all();
    tap.equal("all CPUs come up", cpus, acpi::cpus());
    storm(0);
    let all = || FINISHED.load(Acquire) as usize == cpus;
    tap.check("all CPUs finish", timer::spin_until(300_000_000, all));
    println!("# {} faults", FAULTS.load(Relaxed));
    calm();
    tap.check(
        "memory is as it was",
        (0..).zip(&CANARIES).all(|(index, canary)| canary.load(Relaxed) == CANARY ^ index),
    );
    afterwards(&mut tap);
    println!("survived");
    tap.finish();
}

fn storm(index: usize) {
    let mut random = Random::new(SEED.load(Relaxed) << 8 | index as u64);
    mask_interrupts();
    // The 8259s may be told to send vectors of exceptions: they are not listened to.
    apic::poke(register::LINT0, 1 << 16);
    let mut faults = 0;
    for _ in 0..OPERATIONS {
        let fault = match random.below(16) {
            0..=3 => msr(&mut random),
            4..=6 => ports(&mut random),
            7..=10 => devices(&mut random),
            11 => control(&mut random),
            12 => forbidden(&mut random),
            13 => calls(&mut random),
            14 => strings(&mut random),
            _ => to_oneself(&mut random),
        };
        faults += u32::from(fault.is_some());
    }
    FAULTS.fetch_add(faults, AcqRel);
    FINISHED.fetch_add(1, AcqRel);
}

type Outcome = Option<exception::Fault>;

/// One instruction that should not work, or should not matter.
macro_rules! provoke {
    ($($what:tt)*) => {{
        // SAFETY: refused, undefined, or borne by devices, scratch pages and places where nothing is.
        unsafe { attempt!($($what)*) }
    }};
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn msr(random: &mut Random) -> Outcome {
    let number = match random.below(5) {
        0 => random.below(0x1000),
        1 => 0x800 + random.below(0x100),
        2 => 0xc000_0000 + random.below(0x200),
        3 => 0xc001_0000 + random.below(0x200),
        _ => random.value() & 0xffff_ffff,
    };
    let number = low(number);
    if random.below(2) == 0 || moves_the_ground(number) {
        return cpu::read_msr(number).err();
    }
    cpu::write_msr(number, random.value())
}

/// Registers that carry the program: where its APIC is and in which mode, EFER, the segments' bases, time.
const fn moves_the_ground(number: u32) -> bool {
    matches!(number, 0x1b | 0x10 | 0x3b | 0x6e0 | 0xc000_0080 | 0xc000_0100 | 0xc000_0101 | 0x830 | 0x83f)
}

fn ports(random: &mut Random) -> Outcome {
    let number = match random.below(4) {
        0 => random.below(0x100),
        1 => 0x3f0 + random.below(0x10),
        2 => 0xcf8 + random.below(8),
        _ => random.below(0x1_0000),
    };
    let number = u16::try_from(number).unwrap_or(0);
    let value = random.value();
    match random.below(6) {
        0 => drop(port::read8(number).to_le_bytes()),
        1 => drop(port::read16(number).to_le_bytes()),
        2 => drop(port::read32(number).to_le_bytes()),
        // Power, reset by three ways, and the console's own data, divisor and modem lines.
        _ if matches!(number, 0x60..=0x64 | 0x90..=0x94 | 0x3f5..=0x3fc | 0x600..=0x60b | 0xcf6..=0xcf9 | 0x8900) =>
            {}
        3 => port::write8(number, value.to_le_bytes()[0]),
        4 => port::write16(number, u16::try_from(value & 0xffff).unwrap_or(0)),
        _ => port::write32(number, low(value)),
    }
    None
}

fn devices(random: &mut Random) -> Outcome {
    let windows = [
        (apic::PAGE, 0x1000),
        (irq::IOAPIC, 0x1000),
        (0xe000_0000, 0x10_0000),
        (0xfed0_0000, 0x1000),
        (0xa_0000, 0x2_0000),
    ];
    let (base, size) = windows[usize::try_from(random.below(5)).unwrap_or(0)];
    let offset = random.below(size) & if random.below(8) == 0 { u64::MAX } else { !3 };
    let place = base + offset;
    let value = random.value();
    // Commands could start or stop CPUs, and a spurious vector below 32 is an exception; entries of the table too.
    let is_spared = base == apic::PAGE && matches!(offset & !0xf, 0xf0 | 0x2f0..=0x37f)
        || base == irq::IOAPIC && offset & 0xff0 == 0x10;
    match random.below(10) {
        0 => provoke!("mov al, [{a}]"; a = in(reg) place, out("rax") _, options(nostack)),
        1 => provoke!("mov ax, [{a}]"; a = in(reg) place, out("rax") _, options(nostack)),
        2 => provoke!("mov rax, [{a}]"; a = in(reg) place, out("rax") _, options(nostack)),
        3 => provoke!("mov eax, [{a}]"; a = in(reg) place, out("rax") _, options(nostack)),
        _ if is_spared => None,
        4 => provoke!("mov [{a}], al"; a = in(reg) place, in("rax") value, options(nostack)),
        5 => provoke!("mov [{a}], ax"; a = in(reg) place, in("rax") value, options(nostack)),
        6 => provoke!("mov [{a}], rax"; a = in(reg) place, in("rax") value, options(nostack)),
        7 => provoke!("xadd [{a}], eax"; a = in(reg) place, inout("rax") value => _, options(nostack)),
        8 => provoke!("lock btc dword ptr [{a}], 5"; a = in(reg) place, options(nostack)),
        _ => provoke!("mov [{a}], eax"; a = in(reg) place, in("rax") value, options(nostack)),
    }
}

fn control(random: &mut Random) -> Outcome {
    let bits = random.value();
    match random.below(6) {
        0 => cpu::set_cr0(cpu::cr0() | bits & 0xffff_ffff_0000_0000 | bits & 0x1ffa_ffc0),
        1 => cpu::set_cr4(cpu::cr4() | bits & !0x7f_ffff),
        2 => cpu::set_cr8(bits & 0xfff0 | 0x10),
        3 => cpu::set_cr3(cpu::cr3() | bits & 0xfff0_0000_0000_0000 | 1 << 60),
        4 => {
            let [..] = cpu::id(low(bits), low(random.value()));
            None
        }
        // No such extended control register, or a value that XCR0 refuses.
        _ => {
            provoke!("xsetbv"; in("ecx") low(bits & 7), in("rax") bits & !1, in("rdx") bits >> 32, options(nostack))
        }
    }
}

/// What belongs to hosts.
fn forbidden(random: &mut Random) -> Outcome {
    let place = SCRATCH.address();
    let value = random.value();
    match random.below(14) {
        0 => provoke!("vmrun rax"; in("rax") place, options(nostack)),
        1 => provoke!("vmload rax"; in("rax") place, options(nostack)),
        2 => provoke!("vmsave rax"; in("rax") place, options(nostack)),
        3 => provoke!("stgi"; options(nostack)),
        4 => provoke!("clgi"; options(nostack)),
        5 => provoke!("skinit eax"; in("eax") 0, options(nostack)),
        6 => provoke!("invlpga rax, ecx"; in("rax") value, in("ecx") low(value), options(nostack)),
        7 => provoke!("vmxon [{a}]"; a = in(reg) place, options(nostack)),
        8 => provoke!("vmclear [{a}]"; a = in(reg) place, options(nostack)),
        9 => provoke!("vmlaunch"; options(nostack)),
        10 => provoke!("vmread rax, rcx"; out("rax") _, in("rcx") value, options(nostack)),
        11 => provoke!("invept rax, [{a}]"; a = in(reg) place, in("rax") 2, options(nostack)),
        12 => provoke!("rsm"; options(nostack)),
        _ => provoke!("getsec"; in("rax") value & 0xf, options(nostack)),
    }
}

fn calls(random: &mut Random) -> Outcome {
    let (a, b) = (random.value(), random.value());
    match random.below(4) {
        0 => {
            provoke!("vmmcall"; inout("rax") a => _, inout("rcx") b => _, inout("rdx") a => _, options(nostack))
        }
        1 => {
            provoke!("vmcall"; inout("rax") a => _, inout("rcx") b => _, inout("rdx") a => _, options(nostack))
        }
        2 => provoke!("rdpmc"; in("ecx") low(a), out("rax") _, out("rdx") _, options(nostack)),
        _ => provoke!("wbinvd"; options(nostack)),
    }
}

fn strings(random: &mut Random) -> Outcome {
    let (count, place) = (random.below(64), SCRATCH.address());
    let hole = 0xd800_0000 + random.below(0x1000);
    match random.below(5) {
        0 => {
            provoke!("rep insb"; in("dx") 0x3f7, inout("rcx") count => _, inout("rdi") place => _, options(nostack))
        }
        1 => {
            provoke!("rep outsd"; in("dx") 0x80, inout("rcx") count => _, inout("rsi") place => _, options(nostack))
        }
        2 => {
            provoke!("rep insw"; in("dx") 0x3f7, inout("rcx") u64::MAX => _, inout("rdi") 1_u64 << 46 => _, options(nostack))
        }
        3 => {
            provoke!("rep stosq"; inout("rcx") count => _, inout("rdi") hole => _, in("rax") 0, options(nostack))
        }
        _ => {
            provoke!("rep movsb"; inout("rcx") count => _, inout("rsi") hole => _, inout("rdi") place => _, options(nostack))
        }
    }
}

/// Interrupts and NMIs to oneself, few or many; what is pending at the end is taken there.
fn to_oneself(random: &mut Random) -> Outcome {
    let vector = 0x80 + low(random.below(0x40));
    for _ in 0..random.below(16) {
        Mode::Xapic.send(0, 0x4_4000 | vector);
    }
    for _ in 0..random.below(4) {
        Mode::Xapic.send(acpi::apic_id(tables::cpu()), 0x4400);
    }
    let flood = random.below(3) == 0;
    if flood {
        unmask_interrupts();
        // The instruction behind STI is never interrupted: something must stand between.
        cpu::pause();
        mask_interrupts();
    }
    None
}

fn calm() {
    let _ = Mode::Xapic.enter();
    for offset in [register::TPR, register::INITIAL] {
        apic::poke(offset, 0);
    }
    for offset in [register::TIMER, register::LINT0, register::LINT1, register::ERROR] {
        apic::poke(offset, 1 << 16);
    }
    irq::start_pics(0x20, 0);
    for pin in 0..24 {
        irq::route(pin, 1 << 16, 0);
    }
    // Interrupt enables, FIFO, eight bits: the console as it was.
    port::write8(0x3fb, 3);
    port::write8(0x3f9, 0);
    port::write8(0x3fa, 7);
    Mode::Xapic.enable();
    unmask_interrupts();
    timer::delay(10_000);
    mask_interrupts();
}

fn afterwards(tap: &mut Tap) {
    let before = TAKEN.load(Acquire);
    apic::poke(register::DIVIDE, 0xb);
    apic::poke(register::TIMER, u32::from(TIMER));
    apic::poke(register::INITIAL, 100_000);
    unmask_interrupts();
    tap.check("the timer interrupts", timer::spin_until(1_000_000, || TAKEN.load(Acquire) > before));
    mask_interrupts();
    tap.check("the APIC answers", apic::peek(register::VERSION) & 0xff >= 0x10);
    tap.equal("CR0 is as it was", cpu::cr0() & 0x8000_0001, 0x8000_0001);
    let before = cpu::tsc();
    timer::delay(1000);
    tap.check("time goes on", cpu::tsc() > before);
}
