//! How much of the log a VM may take: one that starts again and again must not fill it for all others.
//!
//! Pure: a bucket of lines that fills with time.

use crate::arch::Ticks;

/// Lines that a VM has at most: a few fault reports.
const MOST: u64 = 60;
/// Lines that it gets back, per second.
const PER_SECOND: u64 = 10;

/// The lines that a VM still has.
pub(super) struct Budget {
    lines: u64,
    /// Up to when lines were given back.
    since: Ticks,
    left_out: u64,
}

impl Budget {
    /// All of it.
    pub(super) fn new() -> Self {
        Self { lines: MOST, since: Ticks(0), left_out: 0 }
    }

    /// Takes `lines` at `now`; returns how many were left out since the last success. `None`: these are left out too.
    pub(super) fn take(&mut self, now: Ticks, ticks_per_second: u64, lines: u64) -> Option<u64> {
        let ticks_per_line = (ticks_per_second / PER_SECOND).max(1);
        let gained = now.0.saturating_sub(self.since.0) / ticks_per_line;
        self.since = Ticks(self.since.0.saturating_add(gained.saturating_mul(ticks_per_line)));
        self.lines = self.lines.saturating_add(gained).min(MOST);
        let Some(left) = self.lines.checked_sub(lines) else {
            self.left_out = self.left_out.saturating_add(lines);
            return None;
        };
        self.lines = left;
        Some(core::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn who_says_little_says_all() {
        let mut budget = Budget::new();
        for second in 0..1_000 {
            assert_eq!(budget.take(Ticks(second * 1_000), 1_000, PER_SECOND), Some(0));
        }
    }

    #[test]
    fn what_is_too_much_is_counted_and_said_later() {
        let mut budget = Budget::new();
        let told: Vec<u64> = (0..10_000).filter_map(|at| budget.take(Ticks(at), 1_000, 1)).collect();
        let said = told.len() as u64;
        assert_eq!(said, MOST + 10 * PER_SECOND - 1);
        let last = budget.take(Ticks(20_000), 1_000, 1).unwrap();
        assert_eq!(told.iter().sum::<u64>() + last, 10_000 - said, "each that was left out is told once");
    }
}
