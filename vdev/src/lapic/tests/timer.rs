//! The timer: one count is one nanosecond times the divider, and a host tick is a third of that.

use super::*;

const TICKS: u64 = HZ / 1_000_000_000;
const BY_1: u32 = 0xb;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

fn timed(entry: u32, divide: u32) -> LocalApic {
    let mut apic = one();
    let _ = apic.write(reg::LVT_TIMER, entry, 0);
    let _ = apic.write(reg::DIVIDE, divide, 0);
    apic
}

/// SDM Vol. 3A, figure 11-10.
#[test]
fn the_divider_has_the_manuals_codes() {
    let codes = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)];
    for (code, divider) in codes {
        let mut apic = timed(0x40, code);
        let _ = apic.write(reg::INITIAL_COUNT, 1000, 500);
        assert_eq!(apic.deadline(), Some(500 + 1000 * divider * TICKS), "code {code}");
    }
}

#[test]
fn one_shot_counts_down_and_interrupts_once() {
    let mut apic = timed(0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    assert_eq!(apic.read(reg::CURRENT_COUNT, 0), 1000);
    assert_eq!(apic.read(reg::CURRENT_COUNT, 400 * TICKS), 600);
    assert_eq!(apic.read(reg::CURRENT_COUNT, 1000 * TICKS - 1), 1);
    assert!(!apic.expire(1000 * TICKS - 1));
    assert!(apic.expire(1000 * TICKS));
    assert_eq!((apic.pending(), apic.deadline()), (Some(0x40), None));
    assert!(!apic.expire(u64::MAX));
    assert_eq!(apic.read(reg::CURRENT_COUNT, 1000 * TICKS), 0);
    assert_eq!(apic.read(reg::INITIAL_COUNT, 1000 * TICKS), 1000);
}

#[test]
fn an_initial_count_of_zero_stops_and_a_new_one_starts_over() {
    let mut apic = timed(0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    let _ = apic.write(reg::INITIAL_COUNT, 500, 100);
    assert_eq!(apic.deadline(), Some(100 + 500 * TICKS));
    let _ = apic.write(reg::INITIAL_COUNT, 0, 200);
    assert_eq!((apic.deadline(), apic.read(reg::CURRENT_COUNT, 200)), (None, 0));
}

#[test]
fn periodic_goes_on_without_drift_and_missed_periods_are_one_interrupt() {
    let period = 1_000_000 * TICKS;
    let mut apic = timed(PERIODIC | 0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1_000_000, 0);
    for round in 1..5 {
        assert_eq!(apic.deadline(), Some(round * period));
        assert!(apic.expire(round * period + 77));
        assert_eq!(apic.acknowledge(), 0x40);
        assert_eq!(apic.eoi(), None);
    }
    assert!(apic.expire(1000 * period + 1));
    assert_eq!(apic.deadline(), Some(1001 * period));
    assert!(!apic.expire(1000 * period + 2));
    assert_eq!(apic.read(reg::CURRENT_COUNT, 1000 * period + period / 2), 500_000);
}

#[test]
fn a_period_is_never_so_short_that_the_host_is_kept_busy() {
    for write_first in [true, false] {
        let mut apic = timed(if write_first { 0x40 } else { PERIODIC | 0x40 }, BY_1);
        let _ = apic.write(reg::INITIAL_COUNT, 1, 0);
        let _ = apic.write(reg::LVT_TIMER, PERIODIC | 0x40, 0);
        let due = apic.deadline().unwrap();
        assert!(apic.expire(due));
        assert_eq!(apic.deadline(), Some(due + 20_000 * TICKS));
        let _ = apic.write(reg::DIVIDE, 0, due);
        let due = apic.deadline().unwrap();
        assert!(apic.expire(due));
        assert_eq!(apic.deadline(), Some(due + 20_000 * TICKS));
    }
}

#[test]
fn a_masked_timer_counts_and_asks_for_nothing() {
    let mut apic = timed(MASKED | 0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.read(reg::CURRENT_COUNT, 400 * TICKS), 600);
    let _ = apic.write(reg::LVT_TIMER, 0x40, 500 * TICKS);
    assert_eq!(apic.deadline(), Some(1000 * TICKS));
    let _ = apic.write(reg::LVT_TIMER, MASKED | 0x40, 600 * TICKS);
    let _ = apic.write(reg::LVT_TIMER, 0x40, 2000 * TICKS);
    assert_eq!((apic.deadline(), apic.pending()), (None, None), "it ended masked");
}

#[test]
fn an_interrupt_that_is_due_is_not_lost_by_a_write() {
    let mut apic = timed(0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    let _ = apic.write(reg::LVT_TIMER, MASKED | 0x40, 1000 * TICKS);
    assert_eq!(apic.pending(), Some(0x40));
}

#[test]
fn what_is_left_of_a_count_goes_on_at_the_new_rate() {
    let mut apic = timed(0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    let _ = apic.write(reg::DIVIDE, 3, 400 * TICKS);
    assert_eq!(apic.read(reg::CURRENT_COUNT, 400 * TICKS), 600);
    assert_eq!(apic.deadline(), Some((400 + 600 * 16) * TICKS));
}

/// SDM Vol. 3A, 11.5.4.1.
#[test]
fn a_deadline_is_one_shot_in_the_guests_own_time() {
    let mut apic = timed(DEADLINE | 0x40, BY_1);
    apic.set_tsc_offset(0u64.wrapping_sub(1_000_000), 1_000_000);
    apic.set_tsc_deadline(500, 1_000_100);
    assert_eq!((apic.deadline(), apic.tsc_deadline(1_000_100)), (Some(1_000_500), 500));
    assert!(!apic.expire(1_000_499));
    assert!(apic.expire(1_000_500));
    assert_eq!((apic.pending(), apic.tsc_deadline(1_000_500), apic.deadline()), (Some(0x40), 0, None));
    apic.set_tsc_deadline(400, 1_000_600);
    assert_eq!(apic.deadline(), Some(1_000_600), "in the past: at once");
    apic.set_tsc_deadline(0, 1_000_600);
    assert_eq!(apic.deadline(), None, "disarmed");
    apic.set_tsc_deadline(u64::MAX, 1_000_600);
    assert_eq!(apic.tsc_deadline(1_000_600), u64::MAX);
    assert!(!apic.expire(u64::MAX - 1), "never");
}

#[test]
fn a_deadline_moves_with_the_guests_counter() {
    let mut apic = timed(DEADLINE | 0x40, BY_1);
    apic.set_tsc_deadline(5000, 1000);
    assert_eq!(apic.deadline(), Some(5000));
    apic.set_tsc_offset(3000, 1000);
    assert_eq!(apic.deadline(), Some(2000));
    apic.set_tsc_offset(6000, 1000);
    assert_eq!(apic.deadline(), Some(1000));
}

#[test]
fn deadline_mode_and_the_counts_do_not_mix() {
    let mut apic = timed(0x40, BY_1);
    apic.set_tsc_deadline(5000, 0);
    assert_eq!((apic.deadline(), apic.tsc_deadline(0)), (None, 0), "ignored outside the mode");
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    let _ = apic.write(reg::LVT_TIMER, DEADLINE | 0x40, 0);
    assert_eq!(apic.deadline(), None, "the change disarms");
    let _ = apic.write(reg::INITIAL_COUNT, 1000, 0);
    assert_eq!((apic.deadline(), apic.read(reg::CURRENT_COUNT, 0)), (None, 0));
    apic.set_tsc_deadline(5000, 0);
    let _ = apic.write(reg::LVT_TIMER, PERIODIC | 0x40, 0);
    assert_eq!((apic.deadline(), apic.tsc_deadline(0)), (None, 0), "and so does the way back");
}

#[test]
fn init_stops_the_timer() {
    let mut apic = timed(PERIODIC | 0x40, BY_1);
    let _ = apic.write(reg::INITIAL_COUNT, 1_000_000, 0);
    apic.init();
    assert_eq!((apic.deadline(), apic.expire(u64::MAX - 1), apic.wakes()), (None, false, false));
}

#[test]
fn slow_and_strange_clocks_are_never_early() {
    for hz in [0, 1, 50_000_000, 999_999_999, 4_300_000_000, u64::MAX] {
        let apics = Arc::new(Apics::new(1));
        let mut apic = made(0, &apics, Setup { ticks_per_second: hz, ..setup() });
        let _ = apic.write(reg::SPURIOUS, ENABLED, 0);
        let _ = apic.write(reg::LVT_TIMER, 0x40, 0);
        let _ = apic.write(reg::DIVIDE, 10, 0);
        let _ = apic.write(reg::INITIAL_COUNT, u32::MAX, 7);
        let exact = u128::from(u32::MAX) * 128 * u128::from(hz) / 1_000_000_000;
        let due = apic.deadline().map_or(u128::MAX, u128::from);
        assert!(due >= exact.min(u64::MAX.into()), "{hz} Hz: {due} before {exact}");
        let _ = apic.read(reg::CURRENT_COUNT, 8);
    }
}
