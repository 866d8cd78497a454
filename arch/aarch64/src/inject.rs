//! Exceptions that Bulkhead delivers to a guest's EL1: what the CPU would have put into `ESR_EL1` and `PSTATE`, and where
//! it would have gone on.
//!
//! Pure: the caller writes the registers. The state that an exception changes follows the pseudocode
//! `AArch64.TakeException` and D1.3.5 of the Arm ARM; extensions that a guest is not offered (`idregs`) leave their bits of
//! `PSTATE` clear, because their controls are off.

use crate::esr::{Abort, Class};

/// An exception for EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// The instruction is undefined.
    Undefined,
    /// A load or store got no answer from the memory system.
    DataAbort(Attempt),
    /// An instruction fetch got no answer from the memory system.
    InstructionAbort(Attempt),
}

/// What a synchronous external abort is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// The load or fetch itself.
    Read,
    /// The store itself.
    Write,
    /// The CPU's walk of the guest's translation tables for it.
    TableWalk,
}

/// The guest's state at the instruction that it is interrupted at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// `SPSR_EL2`
    pub pstate: u64,
    /// `SCTLR_EL1`
    pub sctlr: u64,
}

/// What to write to make the guest take the exception. `ELR_EL1` and `SPSR_EL1` take the interrupted `ELR_EL2` and `SPSR_EL2` as
/// they are; for an abort, `FAR_EL1` takes `FAR_EL2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// For `ESR_EL1`.
    pub esr: u64,
    /// `ELR_EL2` becomes `VBAR_EL1` plus this.
    pub vector_offset: u64,
    /// For `SPSR_EL2`: the state that the handler starts in.
    pub spsr: u64,
}

/// PSTATE, as `SPSR_EL2` holds it (Arm ARM, `SPSR_EL2`).
mod pstate {
    pub(super) const MODE: u64 = 0x1f;
    pub(super) const EL0T: u64 = 0b0_0000;
    pub(super) const EL1T: u64 = 0b0_0100;
    pub(super) const EL1H: u64 = 0b0_0101;
    pub(super) const AARCH32: u64 = 1 << 4;
    pub(super) const DAIF: u64 = 0xf << 6;
    pub(super) const SSBS: u64 = 1 << 12;
    pub(super) const PAN: u64 = 1 << 22;
    pub(super) const DIT: u64 = 1 << 24;
    pub(super) const NZCV: u64 = 0xf << 28;
}

/// `SCTLR_EL1`: PAN stays as it is on exceptions.
const SCTLR_SPAN: u64 = 1 << 23;
/// `SCTLR_EL1`: the value that SSBS takes on exceptions.
const SCTLR_DSSBS: u64 = 1 << 44;

/// IL: a 32-bit instruction. Set for the unknown class and for aborts without a syndrome whatever the instruction was.
const ESR_IL: u64 = 1 << 25;
/// `WnR` of a data abort.
const ISS_WRITE: u64 = 1 << 6;
/// DFSC and IFSC: synchronous external abort.
const EXTERNAL: u64 = 0x10;
/// DFSC and IFSC: the same on a table walk, at level 3. The level of stage 1 is not reported to EL2; 3 is the one that each
/// granule and address size has.
const EXTERNAL_ON_WALK: u64 = 0x17;

impl Exception {
    /// The external abort that EL1 takes in place of an abort that EL2 took.
    #[must_use]
    pub const fn external(class: Class, abort: Abort) -> Self {
        let instruction = class.0 == Class::INSTRUCTION_ABORT_LOWER.0;
        let attempt = if abort.on_table_walk() {
            Attempt::TableWalk
        } else if abort.is_write() && !instruction {
            Attempt::Write
        } else {
            Attempt::Read
        };
        if instruction { Self::InstructionAbort(attempt) } else { Self::DataAbort(attempt) }
    }

    /// What makes a guest in the state `at` take this exception.
    #[must_use]
    pub const fn inject(self, at: Interrupted) -> Injection {
        Injection {
            esr: self.syndrome(at),
            vector_offset: vector_offset(at.pstate),
            spsr: handler_pstate(at),
        }
    }

    const fn syndrome(self, at: Interrupted) -> u64 {
        let same_level = matches!(at.pstate & pstate::MODE, pstate::EL1T | pstate::EL1H);
        let (class, iss) = match self {
            Self::Undefined => (Class::UNKNOWN, 0),
            Self::DataAbort(attempt) if same_level => (Class::DATA_ABORT_SAME, attempt.status()),
            Self::DataAbort(attempt) => (Class::DATA_ABORT_LOWER, attempt.status()),
            Self::InstructionAbort(attempt) if same_level => {
                (Class::INSTRUCTION_ABORT_SAME, attempt.status())
            }
            Self::InstructionAbort(attempt) => (Class::INSTRUCTION_ABORT_LOWER, attempt.status()),
        };
        (class.0 as u64) << 26 | ESR_IL | iss
    }
}

impl Attempt {
    const fn status(self) -> u64 {
        match self {
            Self::Read => EXTERNAL,
            Self::Write => EXTERNAL | ISS_WRITE,
            Self::TableWalk => EXTERNAL_ON_WALK,
        }
    }
}

/// The vector of a synchronous exception that EL1 takes from this state (Arm ARM D1.3.1).
const fn vector_offset(interrupted: u64) -> u64 {
    match interrupted & pstate::MODE {
        pstate::EL1T => 0x000,
        pstate::EL1H => 0x200,
        pstate::EL0T => 0x400,
        mode if mode & pstate::AARCH32 != 0 => 0x600,
        // Nothing below EL2 but the modes above can run: HCR_EL2 gives EL1 AArch64 alone.
        _ => 0x200,
    }
}

/// The state in which a handler at EL1 starts: all masked, on its own stack, no single step, no BTYPE, no illegal state;
/// condition flags and DIT stay.
const fn handler_pstate(at: Interrupted) -> u64 {
    let mut new = pstate::EL1H | pstate::DAIF | at.pstate & (pstate::NZCV | pstate::DIT | pstate::PAN);
    if at.sctlr & SCTLR_SPAN == 0 {
        new |= pstate::PAN;
    }
    if at.sctlr & SCTLR_DSSBS != 0 {
        new |= pstate::SSBS;
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esr::Esr;

    const FLAGS: u64 = 0xa << 28;

    fn at(pstate: u64) -> Interrupted {
        Interrupted { pstate, sctlr: SCTLR_SPAN }
    }

    #[test]
    fn the_vector_follows_the_interrupted_mode() {
        for (mode, offset) in [(0b0_0000, 0x400), (0b0_0100, 0), (0b0_0101, 0x200), (0b1_0000, 0x600)] {
            assert_eq!(Exception::Undefined.inject(at(mode)).vector_offset, offset, "{mode:#07b}");
        }
    }

    #[test]
    fn the_class_of_an_abort_follows_the_interrupted_level() {
        let syndrome = |exception: Exception, mode| exception.inject(at(mode)).esr;
        assert_eq!(syndrome(Exception::DataAbort(Attempt::Read), 0), 0x9200_0010);
        assert_eq!(syndrome(Exception::DataAbort(Attempt::Write), 5), 0x9600_0050);
        assert_eq!(syndrome(Exception::DataAbort(Attempt::TableWalk), 4), 0x9600_0017);
        assert_eq!(syndrome(Exception::DataAbort(Attempt::Read), 0x10), 0x9200_0010, "AArch32");
        assert_eq!(syndrome(Exception::InstructionAbort(Attempt::Read), 0), 0x8200_0010);
        assert_eq!(syndrome(Exception::InstructionAbort(Attempt::TableWalk), 5), 0x8600_0017);
        assert_eq!(syndrome(Exception::Undefined, 0), 0x0200_0000);
    }

    #[test]
    fn handlers_start_masked_on_their_own_stack_with_the_flags_as_they_were() {
        // Single step, illegal state, BTYPE, UAO, TCO and ALLINT were set, all unmasked.
        let busy = FLAGS | pstate::DIT | 1 << 25 | 1 << 23 | 1 << 21 | 1 << 20 | 1 << 13 | 3 << 10;
        assert_eq!(Exception::Undefined.inject(at(busy)).spsr, FLAGS | pstate::DIT | 0x3c5);
    }

    #[test]
    fn pan_is_set_unless_span_keeps_it() {
        let spsr =
            |pstate, sctlr| Exception::Undefined.inject(Interrupted { pstate, sctlr }).spsr & pstate::PAN;
        assert_eq!(spsr(0, 0), pstate::PAN);
        assert_eq!(spsr(0, SCTLR_SPAN), 0);
        assert_eq!(spsr(pstate::PAN, SCTLR_SPAN), pstate::PAN);
    }

    #[test]
    fn ssbs_takes_its_default() {
        let spsr =
            |pstate, sctlr| Exception::Undefined.inject(Interrupted { pstate, sctlr }).spsr & pstate::SSBS;
        assert_eq!(spsr(pstate::SSBS, 0), 0);
        assert_eq!(spsr(0, SCTLR_DSSBS), pstate::SSBS);
    }

    #[test]
    fn an_abort_of_the_guest_becomes_an_external_abort_of_the_same_kind() {
        let external = |esr| Exception::external(Esr(esr).class(), Esr(esr).abort());
        assert_eq!(external(0x9383_0045), Exception::DataAbort(Attempt::Write));
        assert_eq!(external(0x9383_0005), Exception::DataAbort(Attempt::Read));
        assert_eq!(external(0x9200_00c5), Exception::DataAbort(Attempt::TableWalk));
        assert_eq!(external(0x8200_0006), Exception::InstructionAbort(Attempt::Read));
        assert_eq!(external(0x8200_0086), Exception::InstructionAbort(Attempt::TableWalk));
    }
}
