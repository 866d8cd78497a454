//! The timer (SDM Vol. 3A, 11.5.4): one-shot, periodic, TSC-deadline.
//!
//! It counts nanoseconds: its clock before the divider is 1 GHz, whatever the host's ticks are. Guests measure it, or read it in
//! CPUID leaf 0x15. Time is kept in host ticks: one moment at which it is due, and a period.

/// The timer's clock before the divider.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// The shortest period in nanoseconds. A guest that asks for less gets this, so that its timer cannot keep the host busy.
const SHORTEST_PERIOD: u64 = 20_000;

/// No moment.
const NEVER: u64 = u64::MAX;

/// Bits 18:17 of the timer's local vector table entry (SDM Vol. 3A, figure 11-8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

/// A quotient of two frequencies, with 32 bits behind the point.
#[derive(Clone, Copy, Debug)]
struct Ratio(u64);

impl Ratio {
    /// Not above the exact one, so that a count that is read never grows by it.
    fn below(of: u64, to: u64) -> Self {
        let quotient = (u128::from(of) << 32).checked_div(to.into()).unwrap_or(0);
        Self(u64::try_from(quotient).unwrap_or(u64::MAX).max(1))
    }

    /// Above the exact one, if only by 2^-32, unless it is exact.
    fn above(of: u64, to: u64) -> Self {
        let below = Self::below(of, to);
        let is_exact = u128::from(below.0) * u128::from(to) == u128::from(of) << 32;
        if is_exact { below } else { Self(below.0.saturating_add(1)) }
    }

    /// Rounded up: what is timed with it is never early.
    #[inline]
    fn scale(self, value: u64) -> u64 {
        let scaled = (u128::from(value) * u128::from(self.0) + u128::from(u32::MAX)) >> 32;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    ticks_per_ns: Ratio,
    ns_per_tick: Ratio,

    mode: Mode,
    is_masked: bool,
    /// The divider, as a shift.
    divider: u32,
    initial: u32,
    /// Ticks from the count's start to its end.
    period: u64,
    /// When the count ends or the deadline is.
    due: u64,
    /// The same, if anybody has to hear of it.
    alarm: u64,
    /// The guest's time-stamp counter less the host's ticks.
    offset: u64,
    /// As the guest wrote it; 0 is none.
    deadline: u64,
}

impl Timer {
    pub(super) fn new(ticks_per_second: u64) -> Self {
        Self {
            ticks_per_ns: Ratio::above(ticks_per_second, TIMER_HZ),
            ns_per_tick: Ratio::below(TIMER_HZ, ticks_per_second),
            mode: Mode::OneShot,
            is_masked: true,
            divider: 1,
            initial: 0,
            period: 0,
            due: NEVER,
            alarm: NEVER,
            offset: 0,
            deadline: 0,
        }
    }

    /// As after power-on. The guest's time-stamp counter goes on.
    pub(super) fn reset(&mut self) {
        self.mode = Mode::OneShot;
        self.is_masked = true;
        self.divider = 1;
        self.stop();
    }

    /// When [`elapse`](Self::elapse) has something to say.
    #[inline]
    pub(super) fn alarm(&self) -> u64 {
        self.alarm
    }

    /// Brings the timer up to `now`; tells whether it was due, and its interrupt is not masked.
    #[inline]
    pub(super) fn elapse(&mut self, now: u64) -> bool {
        if now < self.due || self.due == NEVER {
            return false;
        }
        match self.mode {
            Mode::OneShot => self.due = NEVER,
            Mode::Periodic => self.next_period(now),
            Mode::Deadline => {
                self.deadline = 0;
                self.due = NEVER;
            }
        }
        self.rearm();
        !self.is_masked
    }

    /// Periods that went by unseen are one: a requested vector is requested once.
    #[inline]
    fn next_period(&mut self, now: u64) {
        self.due = self.due.saturating_add(self.period);
        if now >= self.due {
            let missed = (now - self.due).checked_div(self.period).unwrap_or(0);
            let ahead = self.period.saturating_mul(missed.saturating_add(1));
            self.due = self.due.saturating_add(ahead);
        }
    }

    /// Takes the mode and the mask from the local vector table entry. A change to or from TSC-deadline mode disarms the timer
    /// (SDM Vol. 3A, 11.5.4.1).
    pub(super) fn configure(&mut self, entry: u32) {
        let mode = match entry >> 17 & 3 {
            1 => Mode::Periodic,
            2 => Mode::Deadline,
            _ => Mode::OneShot,
        };
        if (mode == Mode::Deadline) != (self.mode == Mode::Deadline) {
            self.stop();
        }
        if mode == Mode::Periodic {
            self.period = self.period.max(self.ticks_per_ns.scale(SHORTEST_PERIOD));
        }
        self.mode = mode;
        self.is_masked = entry & super::local::MASKED != 0;
        self.rearm();
    }

    /// Starts a count, or stops it with 0.
    #[inline]
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == Mode::Deadline {
            return;
        }
        self.initial = count;
        self.period = self.ticks(count);
        if self.mode == Mode::Periodic {
            self.period = self.period.max(self.ticks_per_ns.scale(SHORTEST_PERIOD));
        }
        self.due = if count == 0 { NEVER } else { now.saturating_add(self.period) };
        self.rearm();
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn current(&self, now: u64) -> u32 {
        if self.mode == Mode::Deadline || self.due == NEVER {
            return 0;
        }
        let left = self.ns_per_tick.scale(self.due.saturating_sub(now));
        let count = left.div_ceil(1 << self.divider);
        u32::try_from(count).unwrap_or(u32::MAX).min(self.initial)
    }

    /// Bits 3, 1 and 0 of the divide configuration register: 0 is by 2, 1 by 4, ..., 7 by 1 (SDM Vol. 3A, figure 11-10). What is
    /// left of the count goes on at the new rate.
    pub(super) fn set_divider(&mut self, register: u32, now: u64) {
        let left = self.current(now);
        let code = register >> 1 & 4 | register & 3;
        self.divider = (code + 1) & 7;
        if self.mode == Mode::Deadline || self.due == NEVER {
            return;
        }
        self.set_initial(self.initial, now);
        self.due = now.saturating_add(self.ticks(left));
        self.rearm();
    }

    /// The guest's deadline; ignored outside TSC-deadline mode.
    #[inline]
    pub(super) fn set_deadline(&mut self, deadline: u64, now: u64) {
        if self.mode != Mode::Deadline {
            return;
        }
        self.deadline = deadline;
        self.due = if deadline == 0 {
            NEVER
        } else {
            now.saturating_add(deadline.saturating_sub(now.wrapping_add(self.offset)))
        };
        self.rearm();
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    pub(super) fn set_offset(&mut self, offset: u64, now: u64) {
        self.offset = offset;
        self.set_deadline(self.deadline, now);
    }

    #[inline]
    fn ticks(&self, count: u32) -> u64 {
        self.ticks_per_ns.scale(u64::from(count) << self.divider)
    }

    fn stop(&mut self) {
        self.initial = 0;
        self.period = 0;
        self.deadline = 0;
        self.due = NEVER;
        self.rearm();
    }

    #[inline]
    fn rearm(&mut self) {
        self.alarm = if self.is_masked { NEVER } else { self.due };
    }
}
