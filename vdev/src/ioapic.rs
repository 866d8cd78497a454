//! The I/O APIC (82093AA data sheet, 290566): 24 pins, each with a redirection entry that says which message it sends.
//!
//! It identifies itself as version 0x20, which has the EOI register that a guest needs once it suppresses EOI broadcasts.
//! A pin's level means "asserted": which polarity a guest believes in does not matter. Messages go straight into the local
//! APICs' mailboxes.

use crate::lapic::{Apics, Delivery, Destination, Message, Trigger};
use crate::pc::IOAPIC_PINS;
use crate::{Access, VcpuSet, Width};

/// How many pins there are, as an index knows them.
const PINS: usize = IOAPIC_PINS as usize;

/// Offsets of the memory-mapped registers (82093AA, 3.1).
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END: u64 = 0x40;

/// Numbers for the select register (82093AA, 3.2); the entries follow from `ENTRIES`, lower half first.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const ENTRIES: u8 = 0x10;

/// The version, and in bits 23:16 the number of the last entry.
const VERSION_VALUE: u32 = 0x20 | (IOAPIC_PINS - 1) << 16;

/// Bits of an entry (82093AA, 3.2.4).
const LOGICAL: u64 = 1 << 11;
const STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What a guest may change: destination, mask, trigger, polarity, destination and delivery modes, vector.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The I/O APIC of one VM.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Asserted pins.
    levels: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// As after power-on: every entry masked.
    #[must_use]
    pub const fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], levels: 0 }
    }

    /// As after power-on; the pins keep their levels, which are the devices'.
    pub fn reset(&mut self) {
        *self = Self { levels: self.levels, ..Self::new() };
    }

    /// Sets the level of a pin; tells who has to look. An edge that finds its entry masked is lost, as on the hardware.
    pub fn set_pin(&mut self, pin: u32, level: bool, apics: &Apics) -> VcpuSet {
        if pin >= IOAPIC_PINS {
            return VcpuSet::EMPTY;
        }
        let old = self.levels;
        self.levels = old & !(1 << pin) | u32::from(level) << pin;
        if !level || old == self.levels {
            return VcpuSet::EMPTY;
        }
        self.deliver(pin as usize, apics)
    }

    /// One access, by its offset in the page; tells who has to look.
    pub fn access(&mut self, offset: u64, access: Access, apics: &Apics) -> (u64, VcpuSet) {
        match access {
            Access::Read(width) => (self.read(offset, width), VcpuSet::EMPTY),
            Access::Write(_, value) => (0, self.write(offset, (value & 0xffff_ffff) as u32, apics)),
        }
    }

    fn read(&self, offset: u64, width: Width) -> u64 {
        let register = match offset & !3 {
            SELECT => u32::from(self.select),
            WINDOW => self.selected(),
            _ => 0,
        };
        u64::from(register) >> ((offset & 3) * 8) & width.mask()
    }

    fn write(&mut self, offset: u64, value: u32, apics: &Apics) -> VcpuSet {
        match offset {
            SELECT => self.select = (value & 0xff) as u8,
            WINDOW => return self.write_selected(value, apics),
            END => return self.end((value & 0xff) as u8, apics),
            _ => {}
        }
        VcpuSet::EMPTY
    }

    fn selected(&self) -> u32 {
        match self.select {
            // The arbitration id follows the id (82093AA, 3.2.3).
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            _ => self.entry().map_or(0, |(pin, shift)| (self.entries[pin] >> shift & 0xffff_ffff) as u32),
        }
    }

    /// The pin that the select register names, and where its half begins.
    fn entry(&self) -> Option<(usize, u32)> {
        let half = self.select.checked_sub(ENTRIES)?;
        let pin = usize::from(half >> 1);
        (pin < PINS).then_some((pin, u32::from(half & 1) * 32))
    }

    fn write_selected(&mut self, value: u32, apics: &Apics) -> VcpuSet {
        if self.select == ID {
            self.id = value & 0x0f00_0000;
        }
        let Some((pin, shift)) = self.entry() else { return VcpuSet::EMPTY };
        let bits = WRITABLE & 0xffff_ffff << shift;
        let entry = self.entries[pin] & !bits | u64::from(value) << shift & bits;
        // An edge-triggered entry has no remote IRR: guests clear it by changing the mode there and back.
        self.entries[pin] = if entry & LEVEL == 0 { entry & !REMOTE_IRR } else { entry };
        if entry & LEVEL != 0 && self.levels >> pin & 1 != 0 {
            return self.deliver(pin, apics);
        }
        VcpuSet::EMPTY
    }

    /// A level-triggered interrupt with this vector ended: each entry that sent it sends again if its pin is still asserted.
    /// So does any whose message nobody accepted: its pin waits, though nobody will end it.
    pub fn end(&mut self, vector: u8, apics: &Apics) -> VcpuSet {
        let mut look = VcpuSet::EMPTY;
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry & (REMOTE_IRR | LEVEL) == REMOTE_IRR | LEVEL && entry & 0xff == u64::from(vector) {
                self.entries[pin] &= !REMOTE_IRR;
            }
            if self.levels >> pin & 1 != 0 && is_level(entry) {
                look = look.union(self.deliver(pin, apics));
            }
        }
        look
    }

    /// Sends the message of an asserted pin, unless it is masked or waits for the end of the last one. What nobody accepted
    /// nobody will end, so it is not waited for.
    fn deliver(&mut self, pin: usize, apics: &Apics) -> VcpuSet {
        let entry = self.entries[pin % PINS];
        if entry & (MASKED | REMOTE_IRR) != 0 {
            return VcpuSet::EMPTY;
        }
        let is_level = is_level(entry);
        let sent = apics.send(Message {
            destination: Destination::of_byte((entry >> 56) as u8, entry & LOGICAL != 0),
            delivery: delivery(entry),
            vector: (entry & 0xff) as u8,
            trigger: if is_level { Trigger::Level } else { Trigger::Edge },
        });
        if is_level && sent.is_requested {
            self.entries[pin % PINS] |= REMOTE_IRR;
        }
        sent.look
    }
}

fn delivery(entry: u64) -> Delivery {
    Delivery::of((entry & 0xffff_ffff) as u32)
}

/// Whether its interrupts have an end. NMI and the like are edges whatever the entry says (82093AA, 3.2.4, delivery mode).
fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && matches!(delivery(entry), Delivery::Fixed | Delivery::LowestPriority)
}

const _: () = assert!(WRITABLE & (STATUS | REMOTE_IRR) == 0);

#[cfg(test)]
mod tests;
