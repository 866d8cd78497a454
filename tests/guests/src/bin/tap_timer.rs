//! The virtual and the physical timer: on time, as often as armed, and as long as nobody clears them.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bulkhead_test_guests::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::gic::{self, Bits};
use bulkhead_test_guests::registers::{cntp_tval_el0, cntv_tval_el0, isr_el1};
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer::{self, ISTATUS, Timer};
use bulkhead_test_guests::{println, smp};

bulkhead_test_guests::program!(main, on_interrupt);

/// Interrupts taken, by timer; other interrupts; and the count at which the last one was taken.
static TAKEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static OTHERS: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);
/// How many interrupts the handler leaves without quieting the timer.
static LEAVE: AtomicU32 = AtomicU32::new(0);
const IRQ: u64 = 1 << 7;
/// 10 ms are plenty for anything that comes at once.
const SOON: u64 = 10_000;

fn on_interrupt() {
    let intid = gic::acknowledge();
    let Some(timer) = [Timer::Virtual, Timer::Physical].into_iter().find(|timer| timer.intid() == intid)
    else {
        OTHERS.fetch_add(1, Relaxed);
        if intid != gic::SPURIOUS {
            gic::end(intid);
        }
        return;
    };
    LAST.store(timer.count(), Relaxed);
    TAKEN[timer as usize].fetch_add(1, Relaxed);
    if LEAVE.load(Relaxed) == 0 {
        timer.mask();
    } else {
        LEAVE.fetch_sub(1, Relaxed);
    }
    gic::end(intid);
}

fn taken(timer: Timer) -> u32 {
    TAKEN[timer as usize].load(Relaxed)
}

fn forget(timer: Timer) {
    TAKEN[timer as usize].store(0, Relaxed);
}

fn main() {
    let mut tap = Tap::start("tap-timer");
    gic::start_distributor();
    gic::start_cpu(0);
    for timer in [Timer::Virtual, Timer::Physical] {
        println!("# {timer:?} timer");
        gic::enable(0, timer.intid(), 0x80);
        let tests: [fn(&mut Tap, Timer); 9] = [
            fires_once_on_time,
            stays_until_handled,
            is_masked_by_imask,
            is_silent_when_off,
            fires_a_hundred_times_from_wfi,
            waits_for_its_enable,
            is_taken_back,
            counts_down,
            knows_past_and_never,
        ];
        for test in tests {
            timer.stop();
            forget(timer);
            unmask_interrupts();
            test(&mut tap, timer);
            mask_interrupts();
        }
        timer.stop();
    }
    both_together(&mut tap);
    tap.equal("no other interrupt came", OTHERS.load(Relaxed), 0);
    tap.finish();
}

fn fires_once_on_time(tap: &mut Tap, timer: Timer) {
    let deadline = timer.count() + timer::ticks(1000);
    timer.arm(deadline);
    tap.equal("reads its deadline back", timer.deadline(), deadline);
    tap.check("fires", timer::spin_until(1_000_000, || taken(timer) != 0));
    tap.check("not early", LAST.load(Relaxed) >= deadline);
    timer::delay(2000);
    tap.equal("once", taken(timer), 1);
}

fn stays_until_handled(tap: &mut Tap, timer: Timer) {
    LEAVE.store(2, Relaxed);
    timer.arm(timer.count());
    tap.check("comes again while its condition holds", timer::spin_until(SOON, || taken(timer) == 3));
    timer::delay(1000);
    tap.equal("until it was handled", taken(timer), 3);
}

fn is_masked_by_imask(tap: &mut Tap, timer: Timer) {
    timer.mask();
    set_deadline(timer, timer.count());
    timer::delay(1000);
    tap.equal("IMASK holds it back", taken(timer), 0);
    tap.check("ISTATUS shows the condition", timer.control() & ISTATUS != 0);
    tap.check("and the GIC sees no pending interrupt", !gic::get(0, Bits::Pend, timer.intid()));
    timer.unmask();
    tap.check("clearing IMASK lets it through", timer::spin_until(SOON, || taken(timer) == 1));
}

/// A deadline without touching the control register: TVAL moves CVAL.
fn set_deadline(timer: Timer, deadline: u64) {
    let distance = deadline.wrapping_sub(timer.count());
    match timer {
        Timer::Virtual => cntv_tval_el0::write(distance),
        Timer::Physical => cntp_tval_el0::write(distance),
    }
}

fn is_silent_when_off(tap: &mut Tap, timer: Timer) {
    timer.arm(timer.count() + timer::ticks(500));
    timer.stop();
    timer::delay(1500);
    tap.equal("silent when switched off", taken(timer), 0);
}

fn fires_a_hundred_times_from_wfi(tap: &mut Tap, timer: Timer) {
    let mut early = 0;
    mask_interrupts();
    for round in 1..=100 {
        let deadline = timer.count() + timer::ticks(100);
        timer.arm(deadline);
        smp::sleep_until(|| taken(timer) == round);
        early += u32::from(LAST.load(Relaxed) < deadline);
    }
    tap.equal("armed a hundred times, wakes WFI as often", taken(timer), 100);
    tap.equal("never early", early, 0);
}

fn waits_for_its_enable(tap: &mut Tap, timer: Timer) {
    let intid = timer.intid();
    gic::disable(0, intid);
    timer.arm(timer.count());
    timer::delay(1000);
    tap.equal("disabled in the GIC: not taken", taken(timer), 0);
    tap.check("but pending", gic::get(0, Bits::Pend, intid));
    tap.check("and reads as disabled", !gic::get(0, Bits::Enable, intid));
    gic::enable(0, intid, 0x80);
    tap.check("enabling takes it", timer::spin_until(SOON, || taken(timer) == 1));
}

fn is_taken_back(tap: &mut Tap, timer: Timer) {
    mask_interrupts();
    timer.arm(timer.count());
    tap.check("ISR_EL1 shows it while masked", timer::spin_until(SOON, || isr_el1::read() & IRQ != 0));
    timer.arm(timer.count() + timer::ticks(60_000_000));
    // A hypervisor that handed the interrupt to a list register sees the new deadline when the guest next exits.
    tap.check("a later deadline takes it back", !gic::get(0, Bits::Pend, timer.intid()));
    tap.check("and ISR_EL1 agrees", timer::spin_until(SOON, || isr_el1::read() & IRQ == 0));
    unmask_interrupts();
    timer::delay(1000);
    tap.equal("so it is never taken", taken(timer), 0);
}

fn counts_down(tap: &mut Tap, timer: Timer) {
    let read = match timer {
        Timer::Virtual => cntv_tval_el0::read,
        Timer::Physical => cntp_tval_el0::read,
    };
    let before = timer.count();
    timer.mask();
    set_deadline(timer, before + timer::ticks(1000));
    let after = timer.count();
    let deadline = timer.deadline();
    tap.check("TVAL sets CVAL", (before..=after + timer::ticks(1000)).contains(&deadline));
    let first = read();
    timer::delay(2000);
    let second = read();
    let is_negative = |value: u64| value & 1 << 31 != 0;
    tap.check("TVAL counts down, past zero", !is_negative(first) && is_negative(second));
}

fn knows_past_and_never(tap: &mut Tap, timer: Timer) {
    timer.arm(u64::MAX);
    timer::delay(1000);
    tap.equal("the last count there is never comes", taken(timer), 0);
    timer.stop();
    timer.arm(0);
    tap.check("the first is long past", timer::spin_until(SOON, || taken(timer) == 1));
}

fn both_together(tap: &mut Tap) {
    for timer in [Timer::Virtual, Timer::Physical] {
        forget(timer);
        timer.arm(timer.count() + timer::ticks(200));
    }
    timer::delay(500);
    unmask_interrupts();
    let came = timer::spin_until(SOON, || taken(Timer::Virtual) == 1 && taken(Timer::Physical) == 1);
    mask_interrupts();
    tap.check("both at once are both taken", came);
    Timer::Virtual.stop();
    Timer::Physical.stop();
}
