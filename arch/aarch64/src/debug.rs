//! Self-hosted debug as a guest has it: its own breakpoints, watchpoints, single step and OS lock. What a debugger outside of
//! the machine would be spoken to by (communication channel, claim tags, power requests) is not connected to anything.
//!
//! Pure. All of these registers trap (`MDCR_EL2`: TDA, TDOSA, TDRA), so one that is not named here cannot be a way from one VM
//! to the next. Those that a guest really has are written through to the CPU and move with it. Registers: Arm ARM D24.3.

use crate::esr::Encoding;

/// What is behind a debug register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugRegister {
    /// `DBGBVR<n>_EL1`
    BreakpointValue(usize),
    /// `DBGBCR<n>_EL1`
    BreakpointControl(usize),
    /// `DBGWVR<n>_EL1`
    WatchpointValue(usize),
    /// `DBGWCR<n>_EL1`
    WatchpointControl(usize),
    /// `MDSCR_EL1`, of which the guest has [`CONTROL_BITS`].
    Control,
    /// `OSLAR_EL1`
    Lock,
    /// `OSLSR_EL1`
    LockStatus,
    /// Reads as this value, ignores writes.
    Constant(u64),
}

/// `MDSCR_EL1`: MDE, KDE, TDCC, SS. The others belong to the debugger outside.
pub const CONTROL_BITS: u64 = 1 << 15 | 1 << 13 | 1 << 12 | 1;

/// `DBGAUTHSTATUS_EL1`: the debugger outside exists, and may do nothing in non-secure state.
const NOTHING_ALLOWED: u64 = 0b1010;

/// The debug register that `encoding` names; `None` if the guest has none there.
#[must_use]
pub const fn debug_register(encoding: Encoding) -> Option<DebugRegister> {
    let number = encoding.crm() as usize;
    let register = match (encoding.op0(), encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2()) {
        (2, 0, 0, _, 4) => DebugRegister::BreakpointValue(number),
        (2, 0, 0, _, 5) => DebugRegister::BreakpointControl(number),
        (2, 0, 0, _, 6) => DebugRegister::WatchpointValue(number),
        (2, 0, 0, _, 7) => DebugRegister::WatchpointControl(number),
        (2, 0, 0, 2, 2) => DebugRegister::Control,
        (2, 0, 1, 0, 4) => DebugRegister::Lock,
        (2, 0, 1, 1, 4) => DebugRegister::LockStatus,
        (2, 0, 7, 14, 6) => DebugRegister::Constant(NOTHING_ALLOWED),
        // OSDTRRX, OSDTRTX, OSECCR, MDCCINT, MDRAR, OSDLR, DBGPRCR, DBGCLAIMSET, DBGCLAIMCLR.
        (2, 0, 0, 0 | 3 | 6, 2)
        | (2, 0, 0, 2, 0)
        | (2, 0, 1, 0, 0)
        | (2, 0, 1, 3 | 4, 4)
        | (2, 0, 7, 8 | 9, 6)
        // MDCCSR_EL0, DBGDTR_EL0, DBGDTRRX_EL0 or DBGDTRTX_EL0.
        | (2, 3, 0, 1 | 4 | 5, 0) => DebugRegister::Constant(0),
        _ => return None,
    };
    Some(register)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn register(op1: u32, crn: u32, crm: u32, op2: u32) -> Option<DebugRegister> {
        debug_register(Encoding::new(2, op1, crn, crm, op2))
    }

    #[test]
    fn breakpoints_and_watchpoints_have_their_numbers() {
        assert_eq!(register(0, 0, 0, 4), Some(DebugRegister::BreakpointValue(0)));
        assert_eq!(register(0, 0, 15, 5), Some(DebugRegister::BreakpointControl(15)));
        assert_eq!(register(0, 0, 3, 6), Some(DebugRegister::WatchpointValue(3)));
        assert_eq!(register(0, 0, 2, 7), Some(DebugRegister::WatchpointControl(2)));
    }

    #[test]
    fn what_a_debugger_outside_would_read_reaches_nobody() {
        for (name, found) in [
            ("DBGCLAIMSET_EL1", register(0, 7, 8, 6)),
            ("DBGCLAIMCLR_EL1", register(0, 7, 9, 6)),
            ("DBGDTR_EL0", register(3, 0, 4, 0)),
            ("DBGDTRTX_EL0", register(3, 0, 5, 0)),
            ("OSDTRTX_EL1", register(0, 0, 3, 2)),
            ("MDCCINT_EL1", register(0, 0, 2, 0)),
            ("OSDLR_EL1", register(0, 1, 3, 4)),
        ] {
            assert_eq!(found, Some(DebugRegister::Constant(0)), "{name}");
        }
    }

    #[test]
    fn only_debug_registers_that_are_named_exist() {
        assert_eq!(register(0, 0, 4, 2), None, "MDSELR_EL1");
        assert_eq!(register(1, 9, 0, 2), None, "BRBTS_EL1");
        assert_eq!(register(1, 0, 0, 1), None, "TRCTRACEIDR");
        assert_eq!(debug_register(Encoding::new(3, 0, 0, 2, 2)), None, "not of the debug registers");
    }
}
