//! Equal turns: each ready vCPU runs for one slice, then the next in the list.

use super::Decision;
use crate::arch::Ticks;

/// The policy and whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundRobin {
    slice: u64,
    turn: usize,
    ends: Ticks,
}

impl RoundRobin {
    /// Turns of `slice` ticks of the counter.
    #[must_use]
    pub const fn new(slice: u64) -> Self {
        Self { slice, turn: 0, ends: Ticks(0) }
    }

    /// Decides at `now`; bit `n` of `ready` says that vCPU `n` of the list can run.
    pub fn next(&mut self, now: Ticks, ready: u64) -> Option<Decision> {
        if ready == 0 {
            return None;
        }
        let waits = ready >> self.turn & 1 == 0;
        if waits || now >= self.ends {
            let after = ready & (u64::MAX << self.turn) << 1;
            let candidates = if after == 0 { ready } else { after };
            self.turn = candidates.trailing_zeros() as usize;
            self.ends = Ticks(now.0.saturating_add(self.slice));
        }
        let alone = ready.is_power_of_two();
        Some(Decision { run: self.turn, ends: self.ends, until: (!alone).then_some(self.ends) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nobody_ready_means_nobody_runs() {
        assert_eq!(RoundRobin::new(10).next(Ticks(5), 0), None);
    }

    #[test]
    fn one_alone_runs_without_a_deadline() {
        let decision = RoundRobin::new(10).next(Ticks(5), 4);
        assert_eq!(decision, Some(Decision { run: 2, ends: Ticks(15), until: None }));
    }

    #[test]
    fn a_turn_lasts_a_slice() {
        let mut policy = RoundRobin::new(10);
        let turn = |run, ends| Some(Decision { run, ends: Ticks(ends), until: Some(Ticks(ends)) });
        assert_eq!(policy.next(Ticks(0), 0b11), turn(1, 10));
        assert_eq!(policy.next(Ticks(9), 0b11), turn(1, 10));
        assert_eq!(policy.next(Ticks(10), 0b11), turn(0, 20));
    }

    #[test]
    fn who_waits_gives_its_turn_away() {
        let mut policy = RoundRobin::new(10);
        assert_eq!(policy.next(Ticks(0), 0b110).map(|decision| decision.run), Some(1));
        assert_eq!(policy.next(Ticks(1), 0b100).map(|decision| decision.run), Some(2));
    }

    proptest! {
        #[test]
        fn whoever_is_ready_runs_within_one_round(ready in 1u64.., start in 0u64..1000) {
            let mut policy = RoundRobin::new(7);
            let mut seen = 0;
            for turn in 0..64 {
                let run = policy.next(Ticks(start + turn * 7), ready).unwrap().run;
                prop_assert!(ready >> run & 1 == 1);
                seen |= 1 << run;
            }
            prop_assert_eq!(seen, ready);
        }
    }
}
