//! The high precision event timer (IA-PC HPET Specification 1.0a): its registers, where ACPI says.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use core::arch::asm;

use crate::acpi;
use crate::machine::byte;

/// Where the table has the address (3.2.4).
const ADDRESS: u64 = 44;
const FEMTOSECONDS_PER_MS: u64 = 1_000_000_000_000;

/// The timer at its address.
#[derive(Clone, Copy)]
pub struct EventTimer(u64);

impl EventTimer {
    /// Capabilities, with the period above.
    pub const CAPABILITIES: u64 = 0x000;
    /// The counter runs (bit 0), the first comparator has the interval timer's line (bit 1).
    pub const CONFIGURATION: u64 = 0x010;
    /// The main counter.
    pub const COUNTER: u64 = 0x0f0;
    /// The first comparator's configuration.
    pub const FIRST: u64 = 0x100;
    /// And its value.
    pub const FIRST_VALUE: u64 = 0x108;

    /// The machine's, if it has one.
    #[must_use]
    pub fn find() -> Option<Self> {
        let place = acpi::table(b"HPET")?.address + ADDRESS;
        Some(Self(u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|index| byte(place + index)))))
    }

    /// Ticks of the main counter in a millisecond.
    #[must_use]
    pub fn per_millisecond(self) -> u64 {
        FEMTOSECONDS_PER_MS / (self.read(Self::CAPABILITIES) >> 32).max(1)
    }

    /// Reads a register.
    #[must_use]
    pub fn read(self, register: u64) -> u64 {
        let value;
        // SAFETY: a device's register.
        unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) self.0 + register, options(nostack)) };
        value
    }

    /// Writes a register.
    pub fn write(self, register: u64, value: u64) {
        // SAFETY: as above; the timer reaches no memory.
        unsafe { asm!("mov [{}], {}", in(reg) self.0 + register, in(reg) value, options(nostack)) };
    }
}
