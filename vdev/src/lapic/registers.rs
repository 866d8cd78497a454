//! Reads and writes of registers, by the page (xAPIC) and by number (x2APIC; SDM Vol. 3A, table 11-6).
//!
//! No write relies on what the register held before: where the hardware virtualises the page, it has already put the guest's
//! value there when [`LocalApic::written`] is called.

use super::local::ILLEGAL_REGISTER;
use super::page::low_byte;
use super::register::{
    ARBITRATION_PRIORITY, COMMAND, COMMAND_HIGH, CURRENT_COUNT, DESTINATION_FORMAT, DIVIDE, END_OF_INTERRUPT,
    ERROR_STATUS, ID, IN_SERVICE, INITIAL_COUNT, LOGICAL_DESTINATION, PROCESSOR_PRIORITY, REMOTE_READ,
    REQUEST, SELF_IPI, SPURIOUS, TASK_PRIORITY, VERSION,
};
use super::{Effect, Features, LocalApic, Refused};
use crate::{Access, Width};

/// Bits of the spurious-interrupt vector register (SDM Vol. 3A, figure 11-23). The vector is writable as a whole. Focus
/// checking can be written, but there is none.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
const FOCUS_CHECKING: u32 = 1 << 9;
pub(super) const SUPPRESS_BROADCAST: u32 = 1 << 12;

/// What x2APIC mode lets a guest set in the command register; the delivery status, bit 12, is ignored.
const COMMAND_BITS: u64 = 0xffff_ffff_000c_dfff;
const DELIVERY_STATUS: u32 = 1 << 12;
const DIVIDE_BITS: u32 = 0xb;
/// The part of the destination format register that is always ones.
const FORMAT_ONES: u32 = 0x0fff_ffff;
/// The last register of the three banks of vectors.
const LAST_REQUEST: u8 = REQUEST + 7;

impl LocalApic {
    /// One access to the page, whose offset is below 4096. A guest should move 4 bytes at a multiple of 16; loads of parts are
    /// answered, other stores are dropped (SDM Vol. 3A, 11.4.1).
    pub fn access(&mut self, offset: u64, access: Access, now: u64) -> (u64, Effect) {
        let register = (offset >> 4 & 0xff) as u8;
        let within = (offset & 0xf) as u32;
        match access {
            Access::Write(Width::Word, value) if within == 0 => {
                (0, self.write(register, (value & 0xffff_ffff) as u32, now))
            }
            Access::Write(..) => (0, Effect::Nothing),
            Access::Read(width) => {
                let value = u64::from(self.read(register, now));
                (value.checked_shr(within * 8).unwrap_or(0) & width.mask(), Effect::Nothing)
            }
        }
    }

    /// Reads the register with this number by the page. Where there is none it reads 0, an error for the guest to find.
    #[inline]
    pub fn read(&mut self, register: u8, now: u64) -> u32 {
        match register {
            TASK_PRIORITY | ID | VERSION | SPURIOUS | COMMAND | COMMAND_HIGH => self.page.get(register),
            // Remote reads and arbitration are of the past, the end of an interrupt is write-only.
            DESTINATION_FORMAT | ARBITRATION_PRIORITY | REMOTE_READ | END_OF_INTERRUPT => {
                self.page.get(register)
            }
            _ => self.read_common(register, now).unwrap_or_else(|| {
                self.fail(ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Reads 0x800 + `register`, as x2APIC mode numbers the registers.
    ///
    /// # Errors
    /// [`Refused`] outside x2APIC mode, for a register that this mode does not have, and for one that can only be written.
    #[inline]
    pub fn read_x2apic(&mut self, register: u8, now: u64) -> Result<u64, Refused> {
        if !self.is_x2apic() {
            return Err(Refused);
        }
        match register {
            TASK_PRIORITY | ID | VERSION | SPURIOUS => Ok(self.page.get(register).into()),
            COMMAND => Ok(u64::from(self.page.get(COMMAND)) | u64::from(self.page.upper(COMMAND)) << 32),
            _ => self.read_common(register, now).map(u64::from).ok_or(Refused),
        }
    }

    /// What both modes have.
    fn read_common(&mut self, register: u8, now: u64) -> Option<u32> {
        match register {
            PROCESSOR_PRIORITY => Some(self.processor_priority().into()),
            CURRENT_COUNT => {
                self.expire(now);
                Some(self.timer.current(now))
            }
            IN_SERVICE..=LAST_REQUEST => {
                self.absorb();
                Some(self.page.get(register))
            }
            LOGICAL_DESTINATION | ERROR_STATUS | INITIAL_COUNT | DIVIDE => Some(self.page.get(register)),
            _ => self.entry_bits(register).map(|_| self.page.get(register)),
        }
    }

    /// Writes the register with this number by the page. Where there is none, that is an error for the guest to find; what
    /// can only be read stays.
    #[inline]
    pub fn write(&mut self, register: u8, value: u32, now: u64) -> Effect {
        match register {
            END_OF_INTERRUPT => self.end(),
            COMMAND => {
                self.page.set(COMMAND, value & !DELIVERY_STATUS);
                self.send_by_byte(value, self.page.get(COMMAND_HIGH))
            }
            COMMAND_HIGH => {
                self.page.set(COMMAND_HIGH, value & 0xff00_0000);
                Effect::Nothing
            }
            _ => self.write_rest(register, value, now),
        }
    }

    /// The hardware has put what the guest wrote into the page, and left the guest (SDM Vol. 3C, 30.4.3.3, APIC-write exits).
    #[inline]
    pub fn written(&mut self, register: u8, now: u64) -> Effect {
        self.write(register, self.page.get(register), now)
    }

    fn write_rest(&mut self, register: u8, value: u32, now: u64) -> Effect {
        match register {
            ID => self.identify(),
            LOGICAL_DESTINATION => {
                self.page.set(register, value & 0xff00_0000);
                self.publish();
            }
            DESTINATION_FORMAT => {
                self.page.set(register, value | FORMAT_ONES);
                self.publish();
            }
            VERSION | ARBITRATION_PRIORITY | PROCESSOR_PRIORITY | REMOTE_READ | CURRENT_COUNT => {}
            IN_SERVICE..=LAST_REQUEST => {}
            _ if self.writable_bits(register).is_some() => self.write_common(register, value, now),
            _ => self.fail(ILLEGAL_REGISTER),
        }
        Effect::Nothing
    }

    /// Writes 0x800 + `register`, as x2APIC mode numbers the registers.
    ///
    /// # Errors
    /// [`Refused`] outside x2APIC mode, for a register that cannot be written, and for reserved bits.
    #[inline]
    pub fn write_x2apic(&mut self, register: u8, value: u64, now: u64) -> Result<Effect, Refused> {
        if !self.is_x2apic() {
            return Err(Refused);
        }
        let (low, high) = ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
        match register {
            END_OF_INTERRUPT if value == 0 => Ok(self.end()),
            COMMAND if value & !COMMAND_BITS == 0 => {
                self.page.set(COMMAND, low & !DELIVERY_STATUS);
                self.page.set_upper(COMMAND, high);
                Ok(self.send_by_word(low, high))
            }
            SELF_IPI if value <= 0xff => Ok(self.send_to_self(low_byte(low))),
            _ => {
                let bits = self.writable_bits(register).ok_or(Refused)?;
                if value & !u64::from(bits) != 0 {
                    return Err(Refused);
                }
                self.write_common(register, low, now);
                Ok(Effect::Nothing)
            }
        }
    }

    /// The bits that x2APIC mode does not refuse, in the registers that both modes write alike.
    fn writable_bits(&self, register: u8) -> Option<u32> {
        match register {
            TASK_PRIORITY => Some(0xff),
            SPURIOUS => Some(self.spurious_bits()),
            ERROR_STATUS => Some(0),
            INITIAL_COUNT => Some(u32::MAX),
            DIVIDE => Some(DIVIDE_BITS),
            _ => self.entry_bits(register).map(|bits| bits | Self::READ_ONLY),
        }
    }

    fn spurious_bits(&self) -> u32 {
        let suppression =
            if self.features.contains(Features::EOI_SUPPRESSION) { SUPPRESS_BROADCAST } else { 0 };
        suppression | FOCUS_CHECKING | SOFTWARE_ENABLE | 0xff
    }

    fn write_common(&mut self, register: u8, value: u32, now: u64) {
        match register {
            TASK_PRIORITY => self.page.set(register, value & 0xff),
            SPURIOUS => self.set_spurious(value, now),
            // The errors so far become readable, and new ones interrupt again (SDM Vol. 3A, 11.5.3).
            ERROR_STATUS => self.page.set(register, core::mem::take(&mut self.errors)),
            INITIAL_COUNT => {
                self.expire(now);
                self.timer.set_initial(value, now);
                self.page.set(register, self.timer.initial());
            }
            DIVIDE => {
                self.expire(now);
                self.page.set(register, value & DIVIDE_BITS);
                self.timer.set_divider(value, now);
            }
            _ => self.set_entry(register, value, now),
        }
    }

    fn set_spurious(&mut self, value: u32, now: u64) {
        self.expire(now);
        self.page.set(SPURIOUS, value & self.spurious_bits());
        if !self.is_enabled_by_software() {
            self.mask_all();
        }
        self.publish();
    }

    #[inline]
    fn end(&mut self) -> Effect {
        self.eoi().map_or(Effect::Nothing, Effect::Ended)
    }
}
