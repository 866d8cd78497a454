//! Whose turn it is on a physical CPU: what others ask before they interrupt it.
//!
//! CPU time belongs to the VM that has the turn, so another VM may call its CPU away once in a turn and no more; what it
//! wanted is found at the CPU's next decision, which then comes when the turn ends. A CPU that rests, or runs the caller's
//! own VM, is always interrupted; one that decides is told that it has to look again.
//!
//! No call is lost, because both sides change one word, each in one step. A call either comes before a decision begins:
//! then the CPU, which looks only after that, sees all that the caller had written. Or it comes after: then the caller finds
//! out what the CPU does instead, and the CPU finds the call when it ends its decision.

use core::sync::atomic::{AtomicU32, Ordering, fence};

/// Somebody has called the CPU since its last decision began, or it lets nobody else do so in this turn.
const CALLED: u32 = 1 << 31;
/// The CPU decides.
const DECIDES: u32 = 0;
/// The CPU rests until something comes.
const RESTS: u32 = 1;
/// The turn of VM 0; the others' follow.
const FIRST_VM: u32 = 2;

/// The VM that a turn is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whose(u32);

impl Whose {
    /// VM number `index`.
    #[must_use]
    pub fn vm(index: usize) -> Self {
        // There are far fewer VMs, which the configuration's check sees to.
        Self(u32::try_from(index).unwrap_or(0) + FIRST_VM)
    }
}

/// Whose turn it is on one physical CPU.
#[derive(Debug)]
pub struct Turn(AtomicU32);

/// Whether other VMs may call the CPU in a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calls {
    /// One call comes through.
    Open,
    /// They are found when the turn ends.
    Deferred,
}

/// Whether the CPU was called since [`Turn::decide`]: it may have looked too early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Missed {
    /// Nobody called.
    Nothing,
    /// Somebody did.
    Something,
}

impl Turn {
    /// The turn of a CPU that has not decided yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(DECIDES))
    }

    // The CPU itself

    /// The CPU looks for what there is to do from now on. Returns whether it was called before.
    pub fn decide(&self) -> bool {
        self.0.swap(DECIDES, Ordering::AcqRel) & CALLED != 0
    }

    /// The CPU runs that VM from now on.
    pub fn give(&self, to: Whose, calls: Calls) -> Missed {
        let closed = if calls == Calls::Open { 0 } else { CALLED };
        let missed = self.end_decision(to.0 | closed);
        // `Vm::take_attention` comes after this, and a caller looks here after it has set attention: one of them sees the other.
        fence(Ordering::SeqCst);
        missed
    }

    /// The CPU rests from now on, unless something was missed.
    pub fn rest(&self) -> Missed {
        self.end_decision(RESTS)
    }

    fn end_decision(&self, next: u32) -> Missed {
        match self.0.swap(next, Ordering::AcqRel) & CALLED {
            0 => Missed::Nothing,
            _ => Missed::Something,
        }
    }

    // Everybody else

    /// The VM wants the CPU to decide anew. Returns whether that has to be kicked.
    #[must_use]
    pub fn call(&self, by: Whose) -> bool {
        let before = self.0.fetch_or(CALLED, Ordering::AcqRel);
        before & !CALLED == by.0 || before != DECIDES && before & CALLED == 0
    }

    /// Whether the VM has the CPU. Whoever asks has set the attention of one of its vCPUs before.
    #[must_use]
    #[inline]
    pub fn is_of(&self, vm: Whose) -> bool {
        self.0.load(Ordering::SeqCst) & !CALLED == vm.0
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that runs VM 1.
    fn busy(calls: Calls) -> Turn {
        let turn = Turn::new();
        assert_eq!(turn.give(Whose::vm(1), calls), Missed::Nothing);
        turn
    }

    #[test]
    fn another_vm_interrupts_a_turn_once() {
        let turn = busy(Calls::Open);
        assert_eq!(
            [turn.call(Whose::vm(0)), turn.call(Whose::vm(0)), turn.call(Whose::vm(2))],
            [true, false, false]
        );
        assert!(turn.decide(), "the CPU is told whether it was called");
        assert_eq!(turn.give(Whose::vm(1), Calls::Deferred), Missed::Nothing);
        assert!(!turn.call(Whose::vm(0)));
    }

    #[test]
    fn a_vm_reaches_its_own_turn_always() {
        let turn = busy(Calls::Deferred);
        assert!(
            turn.call(Whose::vm(1))
                && turn.call(Whose::vm(1))
                && turn.is_of(Whose::vm(1))
                && !turn.is_of(Whose::vm(0))
        );
    }

    #[test]
    fn a_cpu_that_rests_is_kicked_until_it_decides() {
        let turn = Turn::new();
        assert_eq!(turn.rest(), Missed::Nothing);
        assert_eq!([turn.call(Whose::vm(7)), turn.call(Whose::vm(8))], [true, false]);
    }

    #[test]
    fn a_call_in_the_middle_of_a_decision_is_found_at_its_end() {
        let turn = busy(Calls::Open);
        assert!(!turn.decide());
        assert!(!turn.call(Whose::vm(0)), "nobody has to be interrupted for that");
        assert_eq!(turn.give(Whose::vm(1), Calls::Open), Missed::Something);
        let _ = turn.decide();
        assert!(!turn.call(Whose::vm(0)));
        assert_eq!(turn.rest(), Missed::Something);
    }
}
