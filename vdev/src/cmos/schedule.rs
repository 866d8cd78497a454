//! When the clock's events come: the divider chain, and the search for an alarm's next time.

use super::calendar::DAY_S;
use crate::Clock;
use crate::isa::{NS_PER_S, moment_ns, ticks};

/// Register A: the rate of periodic interrupts, and what the divider does.
const RATE: u8 = 0x0f;
const KEPT: u8 = 0x7f;
/// From this value of the divider's field on it is held in reset, and up to that one it counts.
const DIVIDER_RESET: u8 = 6;
const DIVIDER_COUNTS: u8 = 2;
/// The crystal that everybody uses.
const CRYSTAL_HZ: u64 = 32_768;
/// From the end of a reset of the divider to the first update (MC146818, "Divider Control").
const HALF_A_SECOND_NS: u64 = 500_000_000;

/// The chain that makes seconds of the crystal's ticks.
#[derive(Clone, Debug)]
pub(super) struct Divider {
    register: u8,
    /// By how much it is ahead of real time, less than a second.
    phase_ns: u64,
}

impl Divider {
    pub(super) const fn new(register: u8) -> Self {
        Self { register, phase_ns: 0 }
    }

    /// Register A, without the bit that tells of an update.
    pub(super) const fn register(&self) -> u8 {
        self.register
    }

    pub(super) fn write(&mut self, value: u8, clock: &dyn Clock) {
        let was_reset = self.field() >= DIVIDER_RESET;
        self.register = value & KEPT;
        if was_reset && self.field() < DIVIDER_RESET {
            let real = clock.epoch_ns().saturating_add(clock.now_ns()) % NS_PER_S;
            self.phase_ns = (HALF_A_SECOND_NS + NS_PER_S - real) % NS_PER_S;
        }
    }

    pub(super) const fn is_counting(&self) -> bool {
        self.field() <= DIVIDER_COUNTS
    }

    const fn field(&self) -> u8 {
        self.register >> 4 & 7
    }

    /// Where the chain's time was 0, as a distance before the clock's.
    fn base_ns(&self, clock: &dyn Clock) -> u64 {
        clock.epoch_ns().saturating_add(self.phase_ns)
    }

    /// Seconds that the chain has counted at the moment `at_ns`.
    pub(super) fn seconds(&self, at_ns: u64, clock: &dyn Clock) -> i64 {
        i64::try_from(self.base_ns(clock).saturating_add(at_ns) / NS_PER_S).unwrap_or(i64::MAX)
    }

    /// The first full second after `after_ns`.
    pub(super) fn next_second(&self, after_ns: u64, clock: &dyn Clock) -> u64 {
        let base = self.base_ns(clock);
        let seconds = base.saturating_add(after_ns) / NS_PER_S + 1;
        later(seconds.saturating_mul(NS_PER_S).saturating_sub(base), after_ns)
    }

    /// The first periodic event after `after_ns` (MC146818, table 5).
    pub(super) fn next_periodic(&self, after_ns: u64, clock: &dyn Clock) -> Option<u64> {
        if !self.is_counting() {
            return None;
        }
        let shift = match self.register & RATE {
            0 => return None,
            1 => 7,
            2 => 8,
            rate => rate - 1,
        };
        let base = self.base_ns(clock);
        let periods = (ticks(base.saturating_add(after_ns), CRYSTAL_HZ) >> shift) + 1;
        Some(later(moment_ns(periods << shift, CRYSTAL_HZ).saturating_sub(base), after_ns))
    }
}

/// Even at the end of time, what is next is later.
fn later(at_ns: u64, after_ns: u64) -> u64 {
    at_ns.max(after_ns.saturating_add(1))
}

/// Seconds from `now` to the next second of a day that all three accept: 1 to 86,400. Each is asked for at most
/// twice the numbers that there are.
pub(super) fn next_match(
    now: i64,
    is_hour: impl Fn(i64) -> bool,
    is_minute: impl Fn(i64) -> bool,
    is_second: impl Fn(i64) -> bool,
) -> Option<u64> {
    let start = now.rem_euclid(DAY_S);
    let (midnight, next) = ((start + 1) / DAY_S * DAY_S, (start + 1) % DAY_S);
    let (hour, minute, second) = (next / 3600, next / 60 % 60, next % 60);
    let first_second = (0..60).find(|&s| is_second(s))?;
    let first_minute = (0..60).find(|&m| is_minute(m))?;
    let of_day = |hour: i64, minute: i64, second: i64| midnight + hour * 3600 + minute * 60 + second;
    let in_this_minute = || (second..60).find(|&s| is_second(s)).map(|s| of_day(hour, minute, s));
    let in_this_hour = || (minute + 1..60).find(|&m| is_minute(m)).map(|m| of_day(hour, m, first_second));
    let in_this_day = || (hour + 1..24).find(|&h| is_hour(h)).map(|h| of_day(h, first_minute, first_second));
    let in_next_day = || (0..24).find(|&h| is_hour(h)).map(|h| DAY_S + of_day(h, first_minute, first_second));
    let found = None
        .or_else(|| if is_hour(hour) && is_minute(minute) { in_this_minute() } else { None })
        .or_else(|| if is_hour(hour) { in_this_hour() } else { None })
        .or_else(in_this_day)
        .or_else(in_next_day)?;
    u64::try_from(found - start).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(now: i64, hour: Option<i64>, minute: Option<i64>, second: Option<i64>) -> Option<u64> {
        let fits = |wanted: Option<i64>, value| wanted.is_none_or(|wanted| wanted == value);
        (1..=DAY_S)
            .find(|ahead| {
                let at = (now + ahead).rem_euclid(DAY_S);
                fits(hour, at / 3600) && fits(minute, at / 60 % 60) && fits(second, at % 60)
            })
            .map(|ahead| ahead.unsigned_abs())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_next_match_is_the_one_that_counting_finds(
            now in -DAY_S..2 * DAY_S,
            hour in prop::option::of(0i64..25),
            minute in prop::option::of(0i64..61),
            second in prop::option::of(0i64..61),
        ) {
            let fits = |wanted: Option<i64>| move |value| wanted.is_none_or(|wanted| wanted == value);
            let found = next_match(now, fits(hour), fits(minute), fits(second));
            prop_assert_eq!(found, naive(now, hour, minute, second));
        }

        #[test]
        fn it_is_never_now(now in 0..DAY_S) {
            let [hour, minute, second] = [now / 3600, now / 60 % 60, now % 60];
            prop_assert_eq!(next_match(now, |h| h == hour, |m| m == minute, |s| s == second), Some(86_400));
        }
    }
}
