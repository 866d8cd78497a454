//! The register page: the local APIC's registers where the architecture has them (SDM Vol. 3A, 11.4.1, table 11-1).
//!
//! Each register is 32 bits wide and begins a 16-byte line, so that its number is its offset >> 4, which is also its
//! number in x2APIC mode less 0x800. Hardware that virtualises the page has the same layout: there this is the page it uses.

use core::num::NonZero;
use core::sync::atomic::{AtomicU32, Ordering};

/// One virtual CPU's registers. Only the CPU that runs it reads or writes them: atomics, because the hardware is a
/// second writer while the guest runs.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page(pub [AtomicU32; 1024]);

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl Page {
    /// All registers 0.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }

    /// The register with this number.
    #[inline]
    #[must_use]
    pub fn get(&self, register: u8) -> u32 {
        self.0[usize::from(register) * 4].load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set(&self, register: u8, value: u32) {
        self.0[usize::from(register) * 4].store(value, Ordering::Relaxed);
    }

    /// The upper half of a register that the hardware reads as 64 bits in x2APIC mode (SDM Vol. 3C, 30.5).
    #[inline]
    pub(super) fn set_upper(&self, register: u8, value: u32) {
        self.0[usize::from(register) * 4 + 1].store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn upper(&self, register: u8) -> u32 {
        self.0[usize::from(register) * 4 + 1].load(Ordering::Relaxed)
    }

    /// The highest vector of the eight registers from `first`, of which only those in `words` are looked at; 0 if there is
    /// none, which is no vector that an APIC delivers.
    #[inline]
    pub(super) fn highest(&self, first: u8, words: u8) -> u8 {
        let mut words = words;
        while let Some(left) = NonZero::new(words) {
            let word = low_byte(left.ilog2());
            if let Some(bits) = NonZero::new(self.get(first.wrapping_add(word))) {
                return word << 5 | low_byte(bits.ilog2());
            }
            words &= !(1 << (word & 7));
        }
        0
    }

    pub(super) fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The number of the register that holds `vector` in the bank that begins at `first`, and its bit there.
#[inline]
pub(super) const fn place(first: u8, vector: u8) -> (u8, u32) {
    (first.wrapping_add(vector >> 5), 1 << (vector & 31))
}

#[inline]
pub(super) const fn low_byte(value: u32) -> u8 {
    (value & 0xff) as u8
}

/// Registers by number (SDM Vol. 3A, table 11-1; APM Vol. 2, table 16-2).
pub mod register {
    #![allow(missing_docs, reason = "the manual's names")]
    pub const ID: u8 = 0x02;
    pub const VERSION: u8 = 0x03;
    pub const TASK_PRIORITY: u8 = 0x08;
    pub const ARBITRATION_PRIORITY: u8 = 0x09;
    pub const PROCESSOR_PRIORITY: u8 = 0x0a;
    pub const END_OF_INTERRUPT: u8 = 0x0b;
    pub const REMOTE_READ: u8 = 0x0c;
    pub const LOGICAL_DESTINATION: u8 = 0x0d;
    pub const DESTINATION_FORMAT: u8 = 0x0e;
    pub const SPURIOUS: u8 = 0x0f;
    pub const IN_SERVICE: u8 = 0x10;
    pub const TRIGGER_MODE: u8 = 0x18;
    pub const REQUEST: u8 = 0x20;
    pub const ERROR_STATUS: u8 = 0x28;
    pub const LVT_CMCI: u8 = 0x2f;
    pub const COMMAND: u8 = 0x30;
    pub const COMMAND_HIGH: u8 = 0x31;
    pub const LVT_TIMER: u8 = 0x32;
    pub const LVT_THERMAL: u8 = 0x33;
    pub const LVT_PERFORMANCE: u8 = 0x34;
    pub const LVT_LINT0: u8 = 0x35;
    pub const LVT_LINT1: u8 = 0x36;
    pub const LVT_ERROR: u8 = 0x37;
    pub const INITIAL_COUNT: u8 = 0x38;
    pub const CURRENT_COUNT: u8 = 0x39;
    pub const DIVIDE: u8 = 0x3e;
    pub const SELF_IPI: u8 = 0x3f;
}
