//! The GICv3 as a guest drives it: every kind of interrupt, in order, masked, nested, moved, more than fit.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use bulkhead_test_guests::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::gic::{self, Bits, Trigger};
use bulkhead_test_guests::registers as r;
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::{MAX_CPUS, console, machine, mmio, smp, timer};

bulkhead_test_guests::program!(main, on_interrupt, helper);

const LOG: usize = 256;
/// 20 ms are plenty for what comes at once, 2 ms for what must not come.
const SOON: u64 = 20_000;
const WHILE: u64 = 2_000;
/// In the log: the handler of a nesting interrupt left.
const LEFT: u32 = 0x1_0000;
/// The SGI whose handler opens the door, and the one it sends to itself.
const OUTER: u32 = 1;
const INNER: u32 = 2;
const UART_INTID: u32 = 33;
/// Interrupt mask set/clear; bit 5: transmit (PL011 TRM 3.3.10).
const UART_MASK: usize = console::UART + 0x38;
const UART_TRANSMIT: u32 = 1 << 5;
/// The first of 64 shared interrupts that no device has.
const SHARED: u32 = 64;

static TAKEN: [[AtomicU32; LOG]; MAX_CPUS] = [const { [const { AtomicU32::new(0) }; LOG] }; MAX_CPUS];
static COUNT: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static SPURIOUS: AtomicU32 = AtomicU32::new(0);
static PRIORITY: AtomicU32 = AtomicU32::new(0);
static WAS_ACTIVE: AtomicU32 = AtomicU32::new(0);
static MODE: AtomicU32 = AtomicU32::new(PLAIN);

const PLAIN: u32 = 0;
/// The handler of [`OUTER`] sends [`INNER`], takes interrupts for a while, and notes when it leaves.
const NESTING: u32 = 1;
/// The handler of the UART quiets it only at the third interrupt.
const LEVEL: u32 = 2;

fn on_interrupt() {
    let intid = gic::acknowledge();
    if intid == gic::SPURIOUS {
        SPURIOUS.fetch_add(1, AcqRel);
        return;
    }
    let cpu = smp::index();
    note(cpu, intid);
    match MODE.load(Acquire) {
        NESTING if intid == OUTER => nest(cpu),
        LEVEL if intid == UART_INTID && count(cpu) >= 3 => mmio::write32(UART_MASK, 0),
        _ => {}
    }
    PRIORITY.store(u32::try_from(r::icc_rpr_el1::read()).unwrap_or(u32::MAX), Release);
    WAS_ACTIVE.store(gic::get(cpu, Bits::Activate, intid).into(), Release);
    gic::end(intid);
}

fn nest(cpu: usize) {
    gic::send(INNER, cpu);
    let before = count(cpu);
    unmask_interrupts();
    timer::spin_until(WHILE, || count(cpu) != before);
    mask_interrupts();
    note(cpu, OUTER | LEFT);
}

fn note(cpu: usize, what: u32) {
    let slot = COUNT[cpu].load(Acquire);
    if let Some(entry) = TAKEN[cpu].get(slot as usize) {
        entry.store(what, Release);
    }
    COUNT[cpu].store(slot + 1, Release);
}

fn count(cpu: usize) -> u32 {
    COUNT[cpu].load(Acquire)
}

fn taken(cpu: usize) -> impl Iterator<Item = u32> {
    TAKEN[cpu].iter().take(count(cpu) as usize).map(|entry| entry.load(Acquire))
}

fn took(cpu: usize, wanted: &[u32]) -> bool {
    taken(cpu).eq(wanted.iter().copied())
}

fn forget() {
    for cpu in &COUNT {
        cpu.store(0, Release);
    }
}

/// Whether this CPU takes `wanted`, in that order and nothing more.
fn takes(wanted: &[u32]) -> bool {
    timer::spin_until(SOON, || count(0) as usize >= wanted.len());
    timer::delay(200);
    took(0, wanted)
}

/// Whether this CPU takes nothing for a while.
fn takes_nothing() -> bool {
    timer::delay(WHILE);
    count(0) == 0
}

fn helper(cpu: usize) {
    gic::start_cpu(cpu);
    unmask_interrupts();
    note(cpu, LEFT);
    loop {
        smp::wait_for_interrupt();
    }
}

fn main() {
    let mut tap = Tap::start("tap-gic");
    gic::start_distributor();
    gic::start_cpu(0);
    let tests: [fn(&mut Tap); 16] = [
        identity,
        to_oneself,
        more_than_list_registers,
        equal_priorities,
        masked_by_priority,
        nested,
        shared,
        everything_at_once,
        split_end,
        active_state,
        level,
        disabled_while_pending,
        unpended,
        shut_groups,
        pended_by_register,
        to_others,
    ];
    for test in tests {
        mask_interrupts();
        MODE.store(PLAIN, Release);
        forget();
        test(&mut tap);
    }
    mask_interrupts();
    tap.equal("nothing is left active or running", r::icc_rpr_el1::read() & 0xff, 0xff);
    tap.finish();
}

fn identity(tap: &mut Tap) {
    let typer = mmio::read64(gic::redistributor(0) + 8);
    tap.equal("GICR_TYPER: this CPU's number", typer >> 8 & 0xffff, 0);
    let last = machine::cpus() - 1;
    let is_last = |cpu: usize| mmio::read64(gic::redistributor(cpu) + 8) >> 4 & 1 == 1;
    tap.check(
        "GICR_TYPER: the last redistributor says so",
        is_last(last) && (0..last).all(|cpu| !is_last(cpu)),
    );
    tap.equal("ICC_IAR1 with nothing pending", gic::acknowledge(), gic::SPURIOUS);
    tap.equal("ICC_HPPIR1 with nothing pending", r::icc_hppir1_el1::read(), 1023);
    tap.equal("ICC_RPR with nothing active", r::icc_rpr_el1::read() & 0xff, 0xff);
    gic::set_priority(0, 40, 0xa8);
    tap.check("a priority has 16 levels at least", gic::priority(0, 40) & 0xf0 == 0xa0);
    tap.check(
        "SGIs are always edge-triggered",
        mmio::read32(gic::redistributor(0) + 0x1_0c00) == 0xaaaa_aaaa,
    );
}

fn to_oneself(tap: &mut Tap) {
    unmask_interrupts();
    for sgi in 0..16 {
        forget();
        gic::send(sgi, 0);
        let holds = takes(&[sgi]);
        tap.check("an SGI to oneself is taken once", holds);
    }
    tap.equal("its handler runs at its priority", PRIORITY.load(Acquire) & 0xff, 0x80);
    tap.equal("and sees it active", WAS_ACTIVE.load(Acquire), 1);
    tap.check("afterwards it is not", !gic::get(0, Bits::Activate, 15) && !gic::get(0, Bits::Pend, 15));
}

fn more_than_list_registers(tap: &mut Tap) {
    for sgi in 0..16_u8 {
        gic::set_priority(0, sgi.into(), 0xf0 - 0x10 * sgi);
    }
    // The most urgent would be 0x00 and is.
    for sgi in 0..16 {
        gic::send(sgi, 0);
        gic::send(sgi, 0);
    }
    let pending = (0..16).all(|sgi| gic::get(0, Bits::Pend, sgi));
    tap.check("16 SGIs are pending while masked", pending);
    tap.equal("ICC_HPPIR1 names the most urgent", r::icc_hppir1_el1::read(), 15);
    unmask_interrupts();
    let wanted: [u32; 16] = core::array::from_fn(|index| 15 - u32::try_from(index).unwrap_or(0));
    tap.check("16 pending SGIs come by priority, once each", takes(&wanted));
    reset_priorities();
}

fn reset_priorities() {
    for sgi in 0..16 {
        gic::set_priority(0, sgi, 0x80);
    }
}

fn equal_priorities(tap: &mut Tap) {
    for round in 0..50 {
        mask_interrupts();
        forget();
        for sgi in 0..16 {
            gic::send((sgi + round) % 16, 0);
        }
        unmask_interrupts();
        timer::spin_until(SOON, || count(0) >= 16);
    }
    timer::delay(200);
    let each_once = (0..16).all(|sgi| taken(0).filter(|&intid| intid == sgi).count() == 1);
    tap.check("16 SGIs of one priority come once each, fifty times", each_once && count(0) == 16);
}

fn masked_by_priority(tap: &mut Tap) {
    gic::set_priority(0, 4, 0x40);
    r::icc_pmr_el1::write(0x80);
    unmask_interrupts();
    gic::send(3, 0);
    tap.check("a priority equal to PMR is held back", takes_nothing());
    gic::send(4, 0);
    tap.check("a more urgent one passes", takes(&[4]));
    r::icc_pmr_el1::write(0x88);
    tap.check("raising PMR lets the other through", takes(&[4, 3]));
    r::icc_pmr_el1::write(0);
    forget();
    gic::send(4, 0);
    tap.check("PMR 0 holds back everything", takes_nothing());
    r::icc_pmr_el1::write(0xf8);
    tap.check("until it is opened", takes(&[4]));
    reset_priorities();
}

fn nested(tap: &mut Tap) {
    MODE.store(NESTING, Release);
    let cases: [(&str, u8, u64, &[u32]); 4] = [
        ("a more urgent interrupt nests", 0x40, 0, &[OUTER, INNER, OUTER | LEFT]),
        ("an equal one waits", 0x80, 0, &[OUTER, OUTER | LEFT, INNER]),
        ("a less urgent one waits", 0xc0, 0, &[OUTER, OUTER | LEFT, INNER]),
        ("ICC_BPR1 decides what is more urgent", 0x40, 7, &[OUTER, INNER, OUTER | LEFT]),
    ];
    for (name, inner, point, wanted) in cases {
        forget();
        gic::set_priority(0, INNER, inner);
        r::icc_bpr1_el1::write(point);
        unmask_interrupts();
        gic::send(OUTER, 0);
        let holds = takes(wanted);
        mask_interrupts();
        tap.check(name, holds);
    }
    forget();
    gic::set_priority(0, OUTER, 0x70);
    r::icc_bpr1_el1::write(7);
    unmask_interrupts();
    gic::send(OUTER, 0);
    tap.check("and within one group nothing nests", takes(&[OUTER, OUTER | LEFT, INNER]));
    mask_interrupts();
    r::icc_bpr1_el1::write(0);
    reset_priorities();
}

/// Makes 64 shared interrupts edge-triggered and lets them through; their priority is `priority(intid)`.
fn open_shared(priority: impl Fn(u32) -> u8) {
    for intid in SHARED..SHARED + 64 {
        gic::set_trigger(intid, Trigger::Edge);
        gic::set_priority(0, intid, priority(intid));
        gic::route(intid, 0);
    }
    for word in [SHARED, SHARED + 32] {
        gic::set_word(0, Bits::Enable, word, u32::MAX);
    }
    gic::settle(0);
}

fn pend_shared() {
    for word in [SHARED, SHARED + 32] {
        gic::set_word(0, Bits::Pend, word, u32::MAX);
    }
}

fn shared(tap: &mut Tap) {
    open_shared(|_| 0x80);
    unmask_interrupts();
    let one_by_one = (SHARED..SHARED + 64).all(|intid| {
        forget();
        gic::set(0, Bits::Pend, intid);
        timer::spin_until(SOON, || count(0) != 0) && took(0, &[intid])
    });
    tap.check("a shared interrupt pended by register is taken, 64 of them", one_by_one);
    mask_interrupts();
    forget();
    pend_shared();
    unmask_interrupts();
    timer::spin_until(SOON, || count(0) >= 64);
    timer::delay(200);
    let each_once = (SHARED..SHARED + 64).all(|intid| taken(0).filter(|&found| found == intid).count() == 1);
    tap.check("64 shared interrupts at once come once each", each_once && count(0) == 64);
}

fn everything_at_once(tap: &mut Tap) {
    let urgency = |intid: u32| u8::try_from(intid * 7 % 15 * 0x10).unwrap_or(0);
    open_shared(urgency);
    for sgi in 0..16 {
        gic::set_priority(0, sgi, urgency(sgi));
        gic::send(sgi, 0);
    }
    pend_shared();
    unmask_interrupts();
    timer::spin_until(SOON, || count(0) >= 80);
    timer::delay(200);
    tap.equal("80 interrupts at once all come", count(0), 80);
    tap.check("in the order of their priorities", taken(0).map(urgency).is_sorted());
    let each_once =
        (0..16).chain(SHARED..SHARED + 64).all(|intid| taken(0).filter(|&i| i == intid).count() == 1);
    tap.check("once each", each_once);
    reset_priorities();
}

fn split_end(tap: &mut Tap) {
    r::icc_ctlr_el1::write(gic::EOI_MODE);
    unmask_interrupts();
    gic::send(5, 0);
    tap.check("EOImode 1: an SGI is taken", takes(&[5]));
    tap.check("and stays active after EOIR", gic::get(0, Bits::Activate, 5));
    tap.equal("while its priority is dropped", r::icc_rpr_el1::read() & 0xff, 0xff);
    forget();
    gic::send(5, 0);
    tap.check("sent again, it waits", takes_nothing() && gic::get(0, Bits::Pend, 5));
    gic::send(6, 0);
    tap.check("another of its priority does not", takes(&[6]));
    gic::deactivate(5);
    tap.check("DIR lets the waiting one come", takes(&[6, 5]));
    gic::deactivate(5);
    gic::deactivate(6);
    tap.check("and ends both", !gic::get(0, Bits::Activate, 5) && !gic::get(0, Bits::Activate, 6));
    r::icc_ctlr_el1::write(0);
}

fn active_state(tap: &mut Tap) {
    open_shared(|_| 0x80);
    unmask_interrupts();
    gic::set(0, Bits::Activate, SHARED + 6);
    gic::set(0, Bits::Pend, SHARED + 6);
    tap.check("made active by register, a pending interrupt waits", takes_nothing());
    gic::set(0, Bits::Deactivate, SHARED + 6);
    tap.check("made inactive, it comes", takes(&[SHARED + 6]));
}

fn level(tap: &mut Tap) {
    mmio::write32(console::UART + 0x30, 0x301);
    mmio::write32(UART_MASK, 0);
    gic::set_trigger(UART_INTID, Trigger::Level);
    gic::route(UART_INTID, 0);
    gic::enable(0, UART_INTID, 0x80);
    console::put(b'#');
    console::put(b'\n');
    MODE.store(LEVEL, Release);
    mmio::write32(UART_MASK, UART_TRANSMIT);
    let pends = timer::spin_until(SOON, || gic::get(0, Bits::Pend, UART_INTID));
    tap.check("the UART's line makes its interrupt pending", pends);
    gic::set(0, Bits::Unpend, UART_INTID);
    tap.check("which ICPENDR cannot undo", gic::get(0, Bits::Pend, UART_INTID));
    unmask_interrupts();
    tap.check("it comes until the line falls", takes(&[UART_INTID; 3]));
    tap.check("then it is not pending", !gic::get(0, Bits::Pend, UART_INTID));
    mask_interrupts();
    forget();
    mmio::write32(UART_MASK, UART_TRANSMIT);
    timer::spin_until(SOON, || gic::get(0, Bits::Pend, UART_INTID));
    mmio::write32(UART_MASK, 0);
    timer::spin_until(SOON, || !gic::get(0, Bits::Pend, UART_INTID));
    unmask_interrupts();
    tap.check("a line that fell before it was taken leaves nothing", takes_nothing());
    gic::disable(0, UART_INTID);
}

fn disabled_while_pending(tap: &mut Tap) {
    open_shared(|_| 0x80);
    for intid in [7, SHARED + 9] {
        forget();
        gic::disable(0, intid);
        gic::set(0, Bits::Pend, intid);
        unmask_interrupts();
        tap.check("disabled, a pending interrupt waits", takes_nothing());
        gic::enable(0, intid, 0x80);
        tap.check("enabled, it comes", takes(&[intid]));
        mask_interrupts();
        forget();
        gic::set(0, Bits::Pend, intid);
        gic::disable(0, intid);
        unmask_interrupts();
        tap.check("disabled after it was pended, it waits", takes_nothing());
        mask_interrupts();
        gic::enable(0, intid, 0x80);
        tap.check("and is still pending", gic::get(0, Bits::Pend, intid));
        unmask_interrupts();
        tap.check("and comes", takes(&[intid]));
        mask_interrupts();
    }
}

fn unpended(tap: &mut Tap) {
    open_shared(|_| 0x80);
    for intid in [8, SHARED + 10] {
        gic::set(0, Bits::Pend, intid);
        tap.check("pended while masked", gic::get(0, Bits::Pend, intid));
        gic::set(0, Bits::Unpend, intid);
        tap.check("unpended", !gic::get(0, Bits::Pend, intid));
        unmask_interrupts();
        tap.check("never comes", takes_nothing());
        mask_interrupts();
    }
}

fn shut_groups(tap: &mut Tap) {
    unmask_interrupts();
    gic::set_distributor(false);
    gic::send(9, 0);
    tap.check("GICD_CTLR shuts group 1", takes_nothing());
    gic::set_distributor(true);
    tap.check("and opens it", takes(&[9]));
    forget();
    r::icc_igrpen1_el1::write(0);
    gic::send(10, 0);
    tap.check("ICC_IGRPEN1 shuts it for this CPU", takes_nothing());
    r::icc_igrpen1_el1::write(1);
    tap.check("and opens it", takes(&[10]));
}

fn pended_by_register(tap: &mut Tap) {
    unmask_interrupts();
    gic::set(0, Bits::Pend, 11);
    tap.check("an SGI pended by GICR_ISPENDR0 comes", takes(&[11]));
    forget();
    gic::enable(0, timer::PHYSICAL_INTID, 0x80);
    mmio::write32(gic::GICD + 0x200, u32::MAX);
    tap.check("GICD_ISPENDR0 does nothing", takes_nothing());
    gic::disable(0, timer::PHYSICAL_INTID);
}

fn to_others(tap: &mut Tap) {
    let cpus = smp::start_all();
    tap.equal("all CPUs come up", cpus, machine::cpus());
    if cpus < 2 {
        tap.skip("interrupts to others", "one CPU");
        return;
    }
    timer::spin_until(1_000_000, || (1..cpus).all(|cpu| count(cpu) == 1));
    unmask_interrupts();
    for cpu in 1..cpus {
        forget();
        for sgi in 0..16 {
            gic::send(sgi, cpu);
            timer::spin_until(SOON, || count(cpu) > sgi);
        }
        let wanted: [u32; 16] = core::array::from_fn(|index| u32::try_from(index).unwrap_or(0));
        let elsewhere = (0..cpus).filter(|&other| other != cpu).all(|other| count(other) == 0);
        tap.check("16 SGIs to another CPU come there alone", took(cpu, &wanted) && elsewhere);
    }
    forget();
    gic::send_to_others(12);
    timer::spin_until(SOON, || (1..cpus).all(|cpu| count(cpu) != 0));
    timer::delay(WHILE);
    let others = (1..cpus).all(|cpu| took(cpu, &[12]));
    tap.check("an SGI to all others comes to each and not to oneself", others && count(0) == 0);
    storm(tap);
    moved(tap);
}

/// SGIs sent faster than they are taken may melt together but the last one always arrives.
fn storm(tap: &mut Tap) {
    let arrived = (0..500).all(|_| {
        forget();
        gic::send(13, 1);
        timer::spin_until(SOON, || count(1) != 0)
    });
    tap.check("500 SGIs to another CPU, each seen to arrive", arrived);
}

fn moved(tap: &mut Tap) {
    open_shared(|_| 0x80);
    let intid = SHARED + 12;
    forget();
    gic::route(intid, 1);
    tap.equal("GICD_IROUTER reads back", gic::routed_to(intid) & 0xff_00ff_ffff, machine::affinity(1));
    gic::set(0, Bits::Pend, intid);
    timer::spin_until(SOON, || count(1) != 0);
    tap.check("a routed interrupt comes to the other CPU", took(1, &[intid]) && count(0) == 0);
    forget();
    gic::disable(0, intid);
    gic::set(0, Bits::Pend, intid);
    gic::route(intid, 0);
    gic::enable(0, intid, 0x80);
    let here = takes(&[intid]);
    tap.check("routed back while pending, it comes here", here && count(1) == 0);
    mask_interrupts();
    forget();
    gic::set(0, Bits::Pend, intid);
    timer::delay(200);
    gic::route(intid, 1);
    let there = timer::spin_until(SOON, || count(1) != 0);
    unmask_interrupts();
    timer::delay(200);
    tap.check("moved while pending here, it comes there", there && count(0) == 0);
    forget();
    let ping = (0..200).all(|round| {
        forget();
        let cpu = round % 2;
        gic::route(intid, cpu);
        gic::set(0, Bits::Pend, intid);
        timer::spin_until(SOON, || count(cpu) != 0) && count(1 - cpu) == 0
    });
    tap.check("moved 200 times, it always comes where it was sent", ping);
}
