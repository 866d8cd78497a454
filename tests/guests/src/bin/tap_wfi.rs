//! Waiting: WFI ended by a timer, by SGIs, by shared interrupts; WFE and SEV; YIELD.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use bulkhead_test_guests::exception::{mask_interrupts, unmask_interrupts};
use bulkhead_test_guests::gic::{self, Bits};
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer::{self, Timer};
use bulkhead_test_guests::{MAX_CPUS, machine, smp};

bulkhead_test_guests::program!(main, on_interrupt, helper);

const SGI: u32 = 3;
const SHARED: u32 = 80;
const ROUNDS: u32 = 200;

static TAKEN: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// What the second CPU does next; it clears it when done.
static ORDER: AtomicU32 = AtomicU32::new(NOTHING);
/// Whose turn it is in a game of two.
static TURN: AtomicU32 = AtomicU32::new(0);

const NOTHING: u32 = 0;
const SEND_SGI: u32 = 1;
const PEND_SHARED: u32 = 2;
const SLEEP: u32 = 3;
const PLAY_EVENTS: u32 = 4;
const PLAY_YIELD: u32 = 5;

fn on_interrupt() {
    let intid = gic::acknowledge();
    if intid == gic::SPURIOUS {
        return;
    }
    if intid == timer::VIRTUAL_INTID {
        Timer::Virtual.mask();
    }
    TAKEN[smp::index()].fetch_add(1, AcqRel);
    gic::end(intid);
}

fn taken(cpu: usize) -> u32 {
    TAKEN[cpu].load(Acquire)
}

fn helper(cpu: usize) {
    if cpu != 1 {
        return;
    }
    gic::start_cpu(cpu);
    loop {
        match ORDER.load(Acquire) {
            NOTHING => {
                smp::pause();
                continue;
            }
            SEND_SGI => {
                timer::delay(1000);
                gic::send(SGI, 0);
            }
            PEND_SHARED => {
                timer::delay(1000);
                gic::set(0, Bits::Pend, SHARED);
            }
            SLEEP => {
                let before = taken(cpu);
                smp::sleep_until(|| taken(cpu) != before);
            }
            PLAY_EVENTS => play(1, smp::wait_for_event),
            _ => play(1, smp::pause),
        }
        ORDER.store(NOTHING, Release);
    }
}

/// One side of a game: wait for `side`'s turn, give it away; [`ROUNDS`] times.
fn play(side: u32, wait: fn()) {
    for round in 0..ROUNDS {
        while TURN.load(Acquire) != 2 * round + side {
            wait();
        }
        TURN.store(2 * round + side + 1, Release);
        smp::send_event();
    }
}

fn order(what: u32) {
    ORDER.store(what, Release);
}

fn is_done() -> bool {
    timer::spin_until(2_000_000, || ORDER.load(Acquire) == NOTHING)
}

fn main() {
    let mut tap = Tap::start("tap-wfi");
    gic::start_distributor();
    gic::start_cpu(0);
    gic::enable(0, timer::VIRTUAL_INTID, 0x80);
    woken_by_timer(&mut tap);
    returns_while_masked(&mut tap);
    event_to_oneself(&mut tap);
    let names = [
        "WFI is woken by an SGI from another CPU",
        "WFI is woken by a shared interrupt",
        "another CPU's WFI is woken by an SGI",
        "two CPUs take turns by WFE and SEV",
        "two CPUs take turns by YIELD",
    ];
    if machine::cpus() > 1 && smp::start(1) {
        with_another_cpu(&mut tap, names);
    } else {
        for name in names {
            tap.skip(name, "one CPU");
        }
    }
    tap.finish();
}

fn woken_by_timer(tap: &mut Tap) {
    let deadline = timer::now() + timer::ticks(2000);
    Timer::Virtual.arm(deadline);
    smp::sleep_until(|| taken(0) == 1);
    let now = timer::now();
    tap.check("WFI is woken by the timer, not early", now >= deadline);
    tap.check("and within half a second", now < deadline + timer::ticks(500_000));
}

fn returns_while_masked(tap: &mut Tap) {
    mask_interrupts();
    let before = taken(0);
    gic::send(SGI, 0);
    for _ in 0..100 {
        smp::wait_for_interrupt();
    }
    tap.equal("WFI returns while an SGI is pending and masked", taken(0), before);
    unmask_interrupts();
    tap.check("which is taken when unmasked", timer::spin_until(10_000, || taken(0) == before + 1));
    mask_interrupts();
    Timer::Virtual.arm(timer::now());
    for _ in 0..100 {
        smp::wait_for_interrupt();
    }
    Timer::Virtual.stop();
    tap.equal("WFI returns while a timer is pending and masked", taken(0), before + 1);
}

fn event_to_oneself(tap: &mut Tap) {
    let begun = timer::now();
    for _ in 0..100 {
        smp::send_event();
        smp::wait_for_event();
    }
    tap.check("WFE after SEV returns", timer::now() - begun < timer::ticks(1_000_000));
}

fn with_another_cpu(tap: &mut Tap, names: [&str; 5]) {
    let [by_sgi, by_shared, other, events, yields] = names;
    let before = taken(0);
    order(SEND_SGI);
    smp::sleep_until(|| taken(0) == before + 1);
    tap.check(by_sgi, is_done());

    gic::set_trigger(SHARED, gic::Trigger::Edge);
    gic::route(SHARED, 0);
    gic::enable(0, SHARED, 0x60);
    order(PEND_SHARED);
    smp::sleep_until(|| taken(0) == before + 2);
    tap.check(by_shared, is_done());

    let asleep = taken(1);
    for _ in 0..20 {
        order(SLEEP);
        timer::delay(500);
        gic::send(SGI, 1);
        if !is_done() {
            break;
        }
    }
    tap.equal(other, taken(1) - asleep, 20);

    for (name, what, wait) in
        [(events, PLAY_EVENTS, smp::wait_for_event as fn()), (yields, PLAY_YIELD, smp::pause as fn())]
    {
        TURN.store(0, Release);
        order(what);
        play(0, wait);
        tap.check(name, is_done() && TURN.load(Acquire) == 2 * ROUNDS);
    }
}
