//! The hardware: every privileged instruction, and nothing that decides.
//!
//! `metal` is the real CPU, `fake` a scripted one for tests on the host; they offer the same names. Here is all of this
//! crate's `unsafe` but one promise (that of the seam, made in `el2`), and only here it matters what CPU it is compiled for.
#![expect(unsafe_code, reason = "privileged instructions, device registers and the way into a guest")]

pub mod enable;
pub mod mmio;
pub mod pl011;
mod registers;

#[cfg(not(target_os = "none"))]
mod fake;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub(crate) mod loader;
#[cfg(target_os = "none")]
mod metal;
#[cfg(target_os = "none")]
pub mod recovery;
#[cfg(target_os = "none")]
pub mod start;

#[cfg(not(target_os = "none"))]
pub use fake::*;
#[cfg(target_os = "none")]
pub use metal::*;
#[cfg(target_os = "none")]
pub use recovery::{give_up, keep_running};

/// A guest's general registers, and where the host's stack pointer lies while the guest runs. `vectors.S` knows the layout:
/// x0 to x30 at 8 bytes each, then the stack pointer at 248.
#[derive(Clone, Default)]
#[repr(C, align(16))]
pub struct GuestRegisters {
    /// x0 to x30.
    pub x: [u64; 31],
    host_stack: u64,
}

/// What kind of exception ended a guest's turn: the vector it came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vector {
    /// An instruction's doing.
    Synchronous,
    /// A physical interrupt.
    Irq,
    /// A physical fast interrupt: none is configured.
    Fiq,
    /// A system error.
    SError,
}

/// The state of a processor that may be returned to as a guest (Arm ARM C5.2.19): never EL2 or above.
#[must_use]
pub const fn guest_pstate(value: u64) -> u64 {
    const AARCH32: u64 = 1 << 4;
    const MODE: u64 = 0xf;
    const EL1H: u64 = 5;
    let is_guest = if value & AARCH32 != 0 { value & MODE == 0 } else { matches!(value & MODE, 0 | 4 | 5) };
    if is_guest { value } else { value & !(AARCH32 | MODE) | EL1H }
}

#[cfg(test)]
mod tests {
    use super::guest_pstate;

    #[test]
    fn no_state_above_el1_is_entered() {
        assert_eq!(guest_pstate(0x3c9), 0x3c5, "EL2h");
        assert_eq!(guest_pstate(0x3cd), 0x3c5, "EL3h");
        assert_eq!(guest_pstate(0x13), 0x05, "AArch32 supervisor");
        for state in [0x3c5, 0x3c4, 0x0, 0x10, 0x6000_0000] {
            assert_eq!(guest_pstate(state), state);
        }
    }
}
