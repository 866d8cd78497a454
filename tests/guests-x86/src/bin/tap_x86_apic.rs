//! Interrupts of a PC: the local APIC in both modes, its timer, interrupts between CPUs, priorities, NMIs, and the
//! controllers and the interval timer from before.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use bulkhead_test_guests_x86::apic::{self, Mode, register};
use bulkhead_test_guests_x86::event_timer::EventTimer;
use bulkhead_test_guests_x86::exception::{self, mask_interrupts, unmask_interrupts};
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{MAX_CPUS, acpi, cpu, irq, machine, port, println, smp, tables, timer};

bulkhead_test_guests_x86::program!(main, on_interrupt, helper);

const TIMER: u8 = 0x40;
const CALL: u8 = 0x50;
const LOW: u8 = 0x45;
const HIGH: u8 = 0x95;
const ERROR: u8 = 0xf1;
const PIN: u8 = 0x61;
const LEVEL: u8 = 0x62;
/// Interrupt enables of the serial port.
const SERIAL_ENABLES: u16 = 0x3f9;
/// The 8259s' vectors, which need another end of interrupt.
const PIC: u8 = 0x20;
const SPURIOUS: u8 = 0xff;
/// A byte register of the second serial port that keeps what is written.
const SCRATCH: u16 = 0x2ff;
/// How long an interrupt may take, in microseconds: an emulator's CPUs may have to wait for each other.
const SOON: u64 = 500_000;

static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// Which vectors came, in their order.
static ORDER: [AtomicU8; 64] = [const { AtomicU8::new(0) }; 64];
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// What the scratch register held when a call came last.
static HELD: AtomicU8 = AtomicU8::new(0);
static BY_CPU: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// The mode in which handlers end interrupts: 1 is x2APIC.
static MSRS: AtomicU8 = AtomicU8::new(0);

/// Handlers of [`CALL`] end it by a string instruction.
static ENDS_BY_STRING: AtomicBool = AtomicBool::new(false);

fn mode() -> Mode {
    if MSRS.load(Relaxed) == 1 { Mode::X2apic } else { Mode::Xapic }
}

fn on_interrupt(vector: u8) {
    COUNTS[usize::from(vector)].fetch_add(1, Relaxed);
    BY_CPU[tables::cpu()].fetch_add(1, Relaxed);
    if let Some(slot) = ORDER.get(TAKEN.fetch_add(1, Relaxed)) {
        slot.store(vector, Relaxed);
    }
    // A level without end leaves no time for anything else: its cause ends here.
    if vector == LEVEL && count(LEVEL) == 3 {
        port::write8(SERIAL_ENABLES, 0);
    }
    if vector == CALL {
        HELD.store(port::read8(SCRATCH), Relaxed);
    }
    match vector {
        PIC..0x28 => port::write8(irq::PIC[0].0, irq::PIC_EOI),
        0x28..0x30 => {
            port::write8(irq::PIC[1].0, irq::PIC_EOI);
            port::write8(irq::PIC[0].0, irq::PIC_EOI);
        }
        SPURIOUS => {}
        CALL if ENDS_BY_STRING.load(Relaxed) => apic::store_string(register::EOI, 0),
        _ => mode().end(),
    }
}

fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Relaxed)
}

/// Takes interrupts until `vector` has come once more, or not soon.
fn comes(vector: u8, before: u32) -> bool {
    unmask_interrupts();
    let came = timer::spin_until(SOON, || count(vector) > before);
    mask_interrupts();
    came
}

fn helper(_cpu: usize) {
    if !mode().enter() {
        return;
    }
    mode().enable();
    loop {
        exception::wait_for_interrupt();
    }
}

fn main() {
    let mut tap = Tap::start("tap-x86-apic");
    irq::start_pics(PIC, 0);
    one_mode(&mut tap, Mode::Xapic);
    strings(&mut tap);
    priorities(&mut tap);
    errors(&mut tap);
    old_controllers(&mut tap);
    pins(&mut tap);
    event_timer(&mut tap);
    modes(&mut tap);
    if apic::has_x2apic() {
        MSRS.store(1, Relaxed);
        one_mode(&mut tap, Mode::X2apic);
        self_ipi_register(&mut tap);
    } else {
        tap.skip("x2APIC", "not offered");
    }
    tap.finish();
}

fn one_mode(tap: &mut Tap, mode: Mode) {
    println!("# {mode:?}");
    tap.check("the mode can be entered", mode.enter());
    mode.enable();
    let own = acpi::apic_id(0);
    let id = mode.read(register::ID);
    tap.equal("the identifier is ACPI's", if mode == Mode::Xapic { id >> 24 } else { id }, own);
    let version = mode.read(register::VERSION);
    tap.check(
        "an integrated APIC with six entries at least",
        version & 0xff >= 0x10 && version >> 16 & 0xff >= 5,
    );
    to_oneself(tap, mode, own);
    timers(tap, mode);
    nmi(tap, mode, own);
    others(tap, mode);
}

fn to_oneself(tap: &mut Tap, mode: Mode, own: u32) {
    // Fixed by physical destination; to self, to all, by shorthand (SDM Vol. 3A, 11.6.1).
    for (name, destination, command) in [
        ("an interrupt to one's own identifier", own, 0x4000),
        ("an interrupt to self", 0, 0x4_4000),
        ("an interrupt to all", 0, 0x8_4000),
    ] {
        let before = count(CALL);
        mode.send(destination, command | u32::from(CALL));
        tap.check("nothing comes while masked", count(CALL) == before && mode.is_set(register::IRR, CALL));
        tap.check(name, comes(CALL, before));
        tap.check("and is over", !mode.is_set(register::IRR, CALL) && !mode.is_set(register::ISR, CALL));
    }
    tap.check("nothing is left on its way", !mode.is_sending());
}

fn timers(tap: &mut Tap, mode: Mode) {
    mode.write(register::DIVIDE, 0xb);
    mode.write(register::TIMER, u32::from(TIMER));
    let before = count(TIMER);
    mode.write(register::INITIAL, 100_000);
    tap.check("a one-shot timer comes", comes(TIMER, before));
    timer::delay(1000);
    tap.equal("and stays at zero", mode.read(register::CURRENT), 0);
    tap.equal("and comes once", count(TIMER), before + 1);
    mode.write(register::TIMER, 1 << 17 | u32::from(TIMER));
    mode.write(register::INITIAL, 100_000);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(TIMER) >= before + 6);
    mask_interrupts();
    tap.check("a periodic timer comes again and again", many);
    tap.check("its count runs down", mode.read(register::CURRENT) <= 100_000);
    mode.write(register::INITIAL, 0);
    let stopped = count(TIMER);
    unmask_interrupts();
    timer::delay(2000);
    mask_interrupts();
    tap.check("an initial count of zero stops it", count(TIMER) <= stopped + 1);
    mode.write(register::TIMER, 1 << 16 | u32::from(TIMER));
    mode.write(register::INITIAL, 1000);
    timer::delay(1000);
    tap.check("a masked timer does not come", !mode.is_set(register::IRR, TIMER));
    mode.write(register::INITIAL, 0);
    deadlines(tap, mode);
}

fn deadlines(tap: &mut Tap, mode: Mode) {
    if !apic::has_deadline() {
        tap.skip("deadlines", "not offered");
        return;
    }
    mode.write(register::TIMER, 2 << 17 | u32::from(TIMER));
    let mut late = 0;
    for _ in 0..20 {
        let before = count(TIMER);
        let deadline = cpu::tsc() + timer::ticks(500);
        let _ = cpu::write_msr(apic::TSC_DEADLINE, deadline);
        let came = comes(TIMER, before);
        late += u32::from(!came || cpu::tsc() < deadline);
    }
    tap.equal("a deadline comes, and not before its time", late, 0);
    tap.equal("and is gone then", cpu::read_msr(apic::TSC_DEADLINE), Ok(0));
    let before = count(TIMER);
    let _ = cpu::write_msr(apic::TSC_DEADLINE, cpu::tsc() - 1);
    tap.check("a deadline in the past comes at once", comes(TIMER, before));
    let _ = cpu::write_msr(apic::TSC_DEADLINE, cpu::tsc() + timer::ticks(50_000));
    let _ = cpu::write_msr(apic::TSC_DEADLINE, 0);
    timer::delay(60_000);
    tap.check("zero takes it back", !mode.is_set(register::IRR, TIMER));
    mode.write(register::INITIAL, 1000);
    timer::delay(1000);
    tap.check("counts mean nothing in this mode", !mode.is_set(register::IRR, TIMER));
    mode.write(register::TIMER, 1 << 16);
}

fn nmi(tap: &mut Tap, mode: Mode, own: u32) {
    let before = exception::nmis(0);
    mode.send(own, 0x4400);
    tap.check(
        "an NMI to oneself comes though interrupts are masked",
        timer::spin_until(SOON, || exception::nmis(0) > before),
    );
}

fn others(tap: &mut Tap, mode: Mode) {
    let cpus = acpi::cpus();
    if cpus < 2 {
        tap.skip("other CPUs", "there is one");
        return;
    }
    tap.check("the second CPU starts", smp::start(1));
    timer::delay(1000);
    let reaches = |destination: u32, command: u32| {
        let before = BY_CPU[1].load(Relaxed);
        mode.send(destination, command | 0x4000 | u32::from(CALL));
        timer::spin_until(SOON, || BY_CPU[1].load(Relaxed) > before)
    };
    let id = acpi::apic_id(1);
    tap.check("an interrupt by physical destination reaches it", reaches(id, 0));
    tap.check("so does one to all but self", reaches(0, 0xc_0000));
    if mode == Mode::X2apic {
        // The logical identifier follows from the physical one (SDM Vol. 3A, 11.12.10.2).
        tap.check(
            "so does one by logical destination",
            reaches((id & !0xf) << 12 | 1 << (id & 0xf), 1 << 11),
        );
    }
    let before = exception::nmis(1);
    mode.send(id, 0x4400);
    tap.check("so does an NMI", timer::spin_until(SOON, || exception::nmis(1) > before));
    let before = BY_CPU[1].load(Relaxed);
    for _ in 0..100 {
        let last = BY_CPU[1].load(Relaxed);
        mode.send(id, 0x4000 | u32::from(CALL));
        timer::spin_until(SOON, || BY_CPU[1].load(Relaxed) > last);
    }
    tap.equal("each of a hundred reaches it once", BY_CPU[1].load(Relaxed) - before, 100);
    mode.send(id, smp::INIT);
    timer::delay(10_000);
    let before = BY_CPU[1].load(Relaxed);
    mode.send(id, 0x4000 | u32::from(CALL));
    timer::delay(10_000);
    tap.equal("after INIT it takes nothing", BY_CPU[1].load(Relaxed), before);
    tap.check("and can be started again", smp::start(1));
    mode.send(id, smp::INIT);
    timer::delay(10_000);
}

/// String instructions reach the registers as all others do.
fn strings(tap: &mut Tap) {
    ENDS_BY_STRING.store(true, Relaxed);
    for _ in 0..2 {
        let before = count(CALL);
        apic::copy_string(register::ICR, &(0x4_4000 | u32::from(CALL)));
        tap.check("MOVSD to the command register sends an interrupt", comes(CALL, before));
        tap.check("STOSD to EOI ends it", !Mode::Xapic.is_set(register::ISR, CALL));
    }
    ENDS_BY_STRING.store(false, Relaxed);
}

fn priorities(tap: &mut Tap) {
    let mode = Mode::Xapic;
    TAKEN.store(0, Relaxed);
    for vector in [LOW, HIGH, CALL] {
        mode.send(0, 0x4_4000 | u32::from(vector));
    }
    unmask_interrupts();
    timer::spin_until(SOON, || TAKEN.load(Relaxed) >= 3);
    mask_interrupts();
    let order = [0, 1, 2].map(|index: usize| ORDER[index].load(Relaxed));
    tap.equal("the highest vector comes first", order, [HIGH, CALL, LOW]);
    mode.write(register::TPR, 0x60);
    tap.equal("the processor's priority follows the task's", mode.read(register::PPR) & 0xf0, 0x60);
    tap.equal("CR8 is its high half", cpu::cr8(), 6);
    let (low, high) = (count(LOW), count(HIGH));
    mode.send(0, 0x4_4000 | u32::from(LOW));
    mode.send(0, 0x4_4000 | u32::from(HIGH));
    tap.check("what is above the task's priority comes", comes(HIGH, high));
    tap.equal("what is below waits", count(LOW), low);
    unmask_interrupts();
    let _ = cpu::set_cr8(0);
    let came = timer::spin_until(SOON, || count(LOW) > low);
    mask_interrupts();
    tap.check("until CR8 lets it", came);
    between_elements(tap);
}

/// A string instruction is interrupted between its elements, not only at its end.
fn between_elements(tap: &mut Tap) {
    let numbers: [u8; 64] = core::array::from_fn(|index| u8::try_from(index + 1).unwrap_or(0));
    let before = count(CALL);
    Mode::Xapic.send(0, 0x4_4000 | u32::from(CALL));
    port::write_all_unmasked(SCRATCH, &numbers);
    mask_interrupts();
    tap.equal("an interrupt comes with a string instruction behind STI", count(CALL), before + 1);
    tap.check("after its first elements", (1..60).contains(&HELD.load(Relaxed)));
    tap.equal("which goes on until its end", port::read8(SCRATCH), 64);
    let (fault, left) = port::write_all_stepping(SCRATCH, &numbers);
    tap.equal(
        "a single step is one element",
        (fault.map(|fault| fault.vector), left),
        (Some(exception::DB), 63),
    );
}

fn errors(tap: &mut Tap) {
    let mode = Mode::Xapic;
    if machine::is_emulated_amd() {
        tap.skip("an illegal vector", "QEMU delivers it");
    } else {
        mode.write(register::ERROR, u32::from(ERROR));
        mode.write(register::ESR, 0);
        let before = count(ERROR);
        mode.send(0, 0x4_4000 | 5);
        tap.check("an illegal vector is an error", comes(ERROR, before));
        mode.write(register::ESR, 0);
        tap.check("and told so", mode.read(register::ESR) & 0x60 != 0);
        mode.write(register::ERROR, 1 << 16);
    }
    mode.write(register::SVR, 0xff);
    tap.check("an APIC that is switched off masks its entries", mode.read(register::TIMER) & 1 << 16 != 0);
    mode.enable();
}

/// Counter 0 of the interval timer, rate generator, so many times a second.
fn start_interval(hertz: u64) {
    let [low, high, ..] = (timer::PIT_HERTZ / hertz).to_le_bytes();
    port::write8(0x43, 0x34);
    port::write8(0x40, low);
    port::write8(0x40, high);
}

fn old_controllers(tap: &mut Tap) {
    let mode = Mode::Xapic;
    // The 8259's output comes by the first pin.
    mode.write(register::LINT0, 0x700);
    start_interval(1000);
    irq::start_pics(PIC, 1);
    let before = count(PIC);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(PIC) >= before + 5);
    mask_interrupts();
    tap.check("the interval timer interrupts by the 8259", many);
    let before = count(PIC);
    let _ = cpu::set_cr8(15);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(PIC) >= before + 5);
    mask_interrupts();
    let _ = cpu::set_cr8(0);
    tap.check("whatever the task priority is", many);
    port::write8(irq::PIC[0].1, 0xff);
    tap.equal("the 8259's mask can be read", port::read8(irq::PIC[0].1), 0xff);
    timer::delay(3000);
    port::write8(irq::PIC[0].0, 0x0a);
    tap.equal("a masked request waits", port::read8(irq::PIC[0].0) & 1, 1);
    port::write8(irq::PIC[0].0, 0x0b);
    tap.equal("and nothing is in service", port::read8(irq::PIC[0].0), 0);
    // Latched, the count can be read low byte first.
    port::write8(0x43, 0);
    let latched = u16::from_le_bytes([port::read8(0x40), port::read8(0x40)]);
    tap.check("the interval timer's count can be read", u64::from(latched) <= timer::PIT_HERTZ / 1000);
    mode.write(register::LINT0, 1 << 16);
}

fn pins(tap: &mut Tap) {
    let version = irq::ioapic_read(1);
    tap.equal("the IOAPIC has 24 pins", version >> 16 & 0xff, 23);
    // The interval timer is at pin 2 (ACPI's interrupt source override).
    irq::route(2, u32::from(PIN), acpi::apic_id(0));
    tap.equal("an entry can be read back", irq::ioapic_read(0x14) & 0x1_ffff, u32::from(PIN));
    let before = count(PIN);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(PIN) >= before + 5);
    mask_interrupts();
    tap.check("the interval timer interrupts by the IOAPIC", many);
    irq::route(2, 1 << 16 | u32::from(PIN), acpi::apic_id(0));
    let _ = comes(PIN, count(PIN));
    let masked = count(PIN);
    unmask_interrupts();
    timer::delay(5000);
    mask_interrupts();
    tap.equal("a masked pin is silent", count(PIN), masked);
    // The serial port's line is a level: it comes again until its cause is gone.
    irq::route(4, 1 << 15 | u32::from(LEVEL), acpi::apic_id(0));
    port::write8(0x3fc, 0xb);
    port::write8(SERIAL_ENABLES, 2);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(LEVEL) >= 3);
    timer::delay(1000);
    mask_interrupts();
    port::write8(SERIAL_ENABLES, 0);
    tap.check("a level comes until its cause is gone", many);
    tap.equal("and not after", count(LEVEL), 3);
    irq::route(4, 1 << 16, 0);
    // The interval timer back to a mode in which it is silent.
    port::write8(0x43, 0x30);
}

/// The event timer in the interval timer's place, as a system does it that knows no other way.
fn event_timer(tap: &mut Tap) {
    let Some(timer) = EventTimer::find() else { return tap.skip("the event timer", "there is none") };
    irq::route(2, u32::from(PIN), acpi::apic_id(0));
    let (now, millisecond) = (timer.read(EventTimer::COUNTER), timer.per_millisecond());
    timer.write(EventTimer::FIRST, 2 << 9 | 4);
    timer.write(EventTimer::FIRST_VALUE, now + 5 * millisecond);
    let before = count(PIN);
    timer.write(EventTimer::CONFIGURATION, 3);
    tap.check("the event timer interrupts", comes(PIN, before));
    tap.check("not before its time", timer.read(EventTimer::COUNTER) >= now + 5 * millisecond);
    timer::delay(10_000);
    tap.equal("and once", count(PIN), before + 1);
    timer.write(EventTimer::CONFIGURATION, 0);
    timer.write(EventTimer::FIRST, 2 << 9 | 0x4c);
    timer.write(EventTimer::FIRST_VALUE, timer.read(EventTimer::COUNTER) + millisecond);
    timer.write(EventTimer::FIRST_VALUE, millisecond);
    timer.write(EventTimer::CONFIGURATION, 3);
    unmask_interrupts();
    let many = timer::spin_until(SOON, || count(PIN) >= before + 6);
    mask_interrupts();
    tap.check("with periods it comes again and again", many);
    timer.write(EventTimer::FIRST, 0);
    timer.write(EventTimer::CONFIGURATION, 0);
    irq::route(2, 1 << 16 | u32::from(PIN), acpi::apic_id(0));
}

fn modes(tap: &mut Tap) {
    let base = cpu::read_msr(apic::BASE_MSR).unwrap_or(0);
    tap.equal("the first CPU is the boot processor", base >> 8 & 1, 1);
    tap.equal("the APIC is where it always is", base & 0xf_ffff_f000, apic::PAGE);
    if machine::is_emulated_amd() {
        return;
    }
    let fault = cpu::write_msr(apic::BASE_MSR, base & !apic::ENABLED | apic::X2APIC);
    tap.equal("x2APIC without the APIC is refused", fault.map(|fault| fault.vector), Some(exception::GP));
    let fault = cpu::write_msr(apic::BASE_MSR, base | 1 << 62);
    tap.equal("an address beyond all is refused", fault.map(|fault| fault.vector), Some(exception::GP));
}

fn self_ipi_register(tap: &mut Tap) {
    let before = count(CALL);
    tap.equal("the self-interrupt register can be written", cpu::write_msr(0x83f, CALL.into()), None);
    tap.check("and interrupts", comes(CALL, before));
    if machine::is_emulated_amd() {
        tap.skip("what x2APIC mode refuses", "QEMU refuses less");
    } else {
        refusals(tap);
    }
    tap.check("the way back over off is not", Mode::Xapic.enter() && apic::mode() == Mode::Xapic);
    MSRS.store(0, Relaxed);
}

fn refusals(tap: &mut Tap) {
    for (name, register) in [("EOI", 0x80b), ("self-interrupt", 0x83f), ("a hole", 0x804)] {
        println!("# {name}");
        let fault = cpu::read_msr(register).err().map(|fault| fault.vector);
        tap.equal("what cannot be read in x2APIC mode is refused", fault, Some(exception::GP));
    }
    let fault = cpu::write_msr(0x80b, 1).map(|fault| fault.vector);
    tap.equal("an end of interrupt other than zero is refused", fault, Some(exception::GP));
    let fault = cpu::write_msr(apic::BASE_MSR, apic::PAGE | apic::ENABLED | 1 << 8).map(|fault| fault.vector);
    tap.equal("the way back without switching off is refused", fault, Some(exception::GP));
}
