//! A guest's x87, SSE, AVX and further states, which no code of ours uses: they stay in the CPU while a guest is loaded.

use super::{cpuid, forget_x87_pointers, fxrstor, fxsave, read_cr4, xrstor, xsave};
use alloc::boxed::Box;
use alloc::vec;

/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;
/// What FXSAVE writes, and the header behind it (SDM Vol. 1, 13.4.1).
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
/// The power-on value of MXCSR, and its place.
const MXCSR: [u8; 4] = 0x1f80u32.to_le_bytes();
const MXCSR_AT: usize = 24;
/// The value of FCW after FNINIT, at the start.
const FCW: [u8; 2] = 0x37fu16.to_le_bytes();

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Room for all extended states that the CPU has.
pub struct ExtendedState {
    lines: Box<[Line]>,
    by_xsave: bool,
    /// See [`leaks_pointers`].
    leaks_pointers: bool,
}

impl Default for ExtendedState {
    fn default() -> Self {
        Self::new()
    }
}

impl ExtendedState {
    /// The initial states. Allocates.
    #[must_use]
    pub fn new() -> Self {
        let by_xsave = read_cr4() & OSXSAVE != 0;
        let all = if by_xsave { cpuid(0xd, 0).ecx as usize } else { 0 };
        let bytes = all.max(LEGACY_BYTES + HEADER_BYTES);
        let mut new = Self {
            lines: vec![Line([0; 64]); bytes.div_ceil(64)].into(),
            by_xsave,
            leaks_pointers: leaks_pointers(),
        };
        new.reset();
        new
    }

    /// Goes back to the initial states.
    pub fn reset(&mut self) {
        self.lines.fill(Line([0; 64]));
        if let Some(Line(first)) = self.lines.first_mut() {
            first[..2].copy_from_slice(&FCW);
            first[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR);
        }
    }

    /// Copies the states of `mask`, which XCR0 enables, out of the CPU.
    pub fn save(&mut self, mask: u64) {
        let area = self.lines.as_mut_ptr().cast();
        if self.by_xsave {
            // SAFETY: lines of 64 bytes, as many as all states take.
            unsafe { xsave(area, mask) };
        } else {
            // SAFETY: aligned, and at least 512 bytes.
            unsafe { fxsave(area) };
        }
    }

    /// Copies the states of `mask`, which XCR0 enables, into the CPU.
    pub fn load(&self, mask: u64) {
        if self.leaks_pointers {
            forget_x87_pointers();
        }
        let area = self.lines.as_ptr().cast();
        if self.by_xsave {
            // SAFETY: as in `save`; the content is the initial one, or what the CPU wrote.
            unsafe { xrstor(area, mask) };
        } else {
            // SAFETY: as above.
            unsafe { fxrstor(area) };
        }
    }
}

/// Whether FXRSTOR and XRSTOR leave the x87 unit's last instruction and operand as they are while no exception is pending:
/// another guest's (APM Vol. 5, FXRSTOR). Newer CPUs say that they restore them always.
fn leaks_pointers() -> bool {
    const RESTORES_POINTERS: u32 = 1 << 2;
    let maker = cpuid(0, 0).ebx;
    let is_amd = [*b"Auth", *b"Hygo"].map(u32::from_le_bytes).contains(&maker);
    is_amd && cpuid(0x8000_0008, 0).ebx & RESTORES_POINTERS == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::{Leaf, set_cpuid};

    #[test]
    fn pointers_are_forgotten_where_they_would_leak() {
        let leaks = |maker: [u8; 4], ebx| {
            set_cpuid(0, 0, Leaf { ebx: u32::from_le_bytes(maker), ..Leaf::default() });
            set_cpuid(0x8000_0008, 0, Leaf { ebx, ..Leaf::default() });
            leaks_pointers()
        };
        assert!(leaks(*b"Auth", 0));
        assert!(!leaks(*b"Auth", 4));
        assert!(!leaks(*b"Genu", 0));
    }

    #[test]
    fn the_initial_state_is_that_of_a_reset_cpu() {
        let state = ExtendedState::new();
        assert_eq!(state.lines[0].0[..2], [0x7f, 0x03]);
        assert_eq!(state.lines[0].0[24..28], [0x80, 0x1f, 0, 0]);
        assert!(state.lines.len() * 64 >= 576);
    }
}
