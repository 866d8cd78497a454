//! The local APIC, by memory and by MSRs (SDM Vol. 3A, 11), and its timer.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use core::arch::asm;

use crate::cpu;

/// Where its page lies.
pub const PAGE: u64 = 0xfee0_0000;
/// IA32_APIC_BASE: enable, x2APIC mode, boot processor.
pub const BASE_MSR: u32 = 0x1b;
/// IA32_APIC_BASE.EN.
pub const ENABLED: u64 = 1 << 11;
/// IA32_APIC_BASE.EXTD.
pub const X2APIC: u64 = 1 << 10;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// Registers, by their offset in the page.
pub mod register {
    /// Identifier.
    pub const ID: u32 = 0x20;
    /// Version.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xa0;
    /// End of interrupt.
    pub const EOI: u32 = 0xb0;
    /// Logical destination.
    pub const LDR: u32 = 0xd0;
    /// Destination format.
    pub const DFR: u32 = 0xe0;
    /// Spurious interrupt vector, software enable.
    pub const SVR: u32 = 0xf0;
    /// In service, first of eight.
    pub const ISR: u32 = 0x100;
    /// Requested, first of eight.
    pub const IRR: u32 = 0x200;
    /// Errors.
    pub const ESR: u32 = 0x280;
    /// Interrupt command, low half.
    pub const ICR: u32 = 0x300;
    /// Interrupt command, destination.
    pub const ICR_HIGH: u32 = 0x310;
    /// Timer.
    pub const TIMER: u32 = 0x320;
    /// First external pin.
    pub const LINT0: u32 = 0x350;
    /// Second external pin.
    pub const LINT1: u32 = 0x360;
    /// Error interrupt.
    pub const ERROR: u32 = 0x370;
    /// Timer's initial count.
    pub const INITIAL: u32 = 0x380;
    /// Timer's current count.
    pub const CURRENT: u32 = 0x390;
    /// Timer's divider.
    pub const DIVIDE: u32 = 0x3e0;
}

use register::{EOI, ICR, ICR_HIGH, SVR};

/// How the registers are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By memory.
    Xapic,
    /// By MSRs.
    X2apic,
}

/// Reads a memory-mapped register.
#[must_use]
pub fn peek(offset: u32) -> u32 {
    let value;
    // SAFETY: device registers.
    unsafe {
        asm!("mov {v:e}, [{a}]", v = out(reg) value, a = in(reg) PAGE + u64::from(offset), options(nostack))
    };
    value
}

/// Writes a memory-mapped register.
pub fn poke(offset: u32, value: u32) {
    // SAFETY: device registers.
    unsafe {
        asm!("mov [{a}], {v:e}", v = in(reg) value, a = in(reg) PAGE + u64::from(offset), options(nostack))
    };
}

/// The mode that this CPU's APIC is in.
#[must_use]
pub fn mode() -> Mode {
    match cpu::read_msr(BASE_MSR) {
        Ok(base) if base & X2APIC != 0 => Mode::X2apic,
        _ => Mode::Xapic,
    }
}

/// Writes a memory-mapped register as string instructions do.
pub fn store_string(offset: u32, value: u32) {
    // SAFETY: device registers; the direction flag is clear.
    unsafe {
        asm!("stosd", in("eax") value, inout("rdi") PAGE + u64::from(offset) => _, options(nostack));
    };
}

/// Copies to a memory-mapped register as string instructions do.
pub fn copy_string(offset: u32, from: &u32) {
    // SAFETY: device registers; the direction flag is clear.
    unsafe {
        asm!("movsd", inout("rsi") core::ptr::from_ref(from) => _, inout("rdi") PAGE + u64::from(offset) => _,
            options(nostack));
    };
}

/// Whether this CPU has the second mode.
#[must_use]
pub fn has_x2apic() -> bool {
    cpu::id(1, 0)[2] & 1 << 21 != 0
}

/// Whether its timer takes deadlines.
#[must_use]
pub fn has_deadline() -> bool {
    cpu::id(1, 0)[2] & 1 << 24 != 0
}

impl Mode {
    /// Switches this CPU's APIC into this mode; whether it went there.
    #[must_use]
    pub fn enter(self) -> bool {
        let Ok(base) = cpu::read_msr(BASE_MSR) else { return false };
        let enabled = base | ENABLED;
        let steps = match self {
            // The way back leads over "disabled" (SDM Vol. 3A, 11.12.5).
            Self::Xapic if base & X2APIC != 0 => [base & !(ENABLED | X2APIC), enabled & !X2APIC],
            Self::Xapic => [enabled, enabled],
            Self::X2apic => [enabled, enabled | X2APIC],
        };
        steps.into_iter().all(|value| cpu::write_msr(BASE_MSR, value).is_none())
    }

    /// Reads a register of this CPU's APIC.
    #[must_use]
    pub fn read(self, offset: u32) -> u32 {
        match self {
            Self::Xapic => peek(offset),
            Self::X2apic => {
                let value = cpu::read_msr(0x800 + (offset >> 4)).unwrap_or(0);
                u32::try_from(value & 0xffff_ffff).unwrap_or(0)
            }
        }
    }

    /// Writes a register of this CPU's APIC.
    pub fn write(self, offset: u32, value: u32) {
        match self {
            Self::Xapic => poke(offset, value),
            Self::X2apic => {
                let _ = cpu::write_msr(0x800 + (offset >> 4), value.into());
            }
        }
    }

    /// Sends an interrupt: destination and the low half of the command.
    pub fn send(self, destination: u32, command: u32) {
        match self {
            Self::Xapic => {
                poke(ICR_HIGH, destination << 24);
                poke(ICR, command);
            }
            Self::X2apic => {
                let _ = cpu::write_msr(0x800 + (ICR >> 4), u64::from(destination) << 32 | u64::from(command));
            }
        }
    }

    /// Whether the last interrupt of this CPU is still on its way.
    #[must_use]
    pub fn is_sending(self) -> bool {
        self == Self::Xapic && peek(ICR) & 1 << 12 != 0
    }

    /// Ends the interrupt in service.
    pub fn end(self) {
        self.write(EOI, 0);
    }

    /// Lets the APIC work, with 0xff as its spurious vector.
    pub fn enable(self) {
        self.write(SVR, 0x1ff);
    }

    /// Whether `vector` is set in a register of 256 bits.
    #[must_use]
    pub fn is_set(self, first: u32, vector: u8) -> bool {
        self.read(first + u32::from(vector) / 32 * 16) & 1 << (vector % 32) != 0
    }
}
