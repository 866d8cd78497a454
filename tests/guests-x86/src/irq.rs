//! The two interrupt controllers beside the local APIC: the 8259 pair and the IOAPIC.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use core::arch::asm;

use crate::port;

/// Where the IOAPIC lies.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Command and data of both 8259.
pub const PIC: [(u16, u16); 2] = [(0x20, 0x21), (0xa0, 0xa1)];
/// Non-specific end of interrupt.
pub const PIC_EOI: u8 = 0x20;

/// Vectors `base` to `base + 15`, everything masked but what `open` has bits for.
pub fn start_pics(base: u8, open: u16) {
    let [low, high] = (!open).to_le_bytes();
    for ((command, data), (vector, wiring, mask)) in
        PIC.into_iter().zip([(base, 4, low), (base + 8, 2, high)])
    {
        // ICW1 to ICW4: edges, cascade, 8086 mode (8259A data sheet).
        port::write8(command, 0x11);
        port::write8(data, vector);
        port::write8(data, wiring);
        port::write8(data, 1);
        port::write8(data, mask);
    }
}

/// Reads a register of the IOAPIC.
#[must_use]
pub fn ioapic_read(register: u8) -> u32 {
    let value;
    // SAFETY: device registers.
    unsafe {
        asm!("mov [{a}], {r:e}", "mov {v:e}, [{a} + 16]", a = in(reg) IOAPIC, r = in(reg) u32::from(register),
            v = out(reg) value, options(nostack));
    }
    value
}

/// Writes a register of the IOAPIC.
pub fn ioapic_write(register: u8, value: u32) {
    // SAFETY: device registers.
    unsafe {
        asm!("mov [{a}], {r:e}", "mov [{a} + 16], {v:e}", a = in(reg) IOAPIC, r = in(reg) u32::from(register),
            v = in(reg) value, options(nostack));
    }
}

/// Routes a pin: the low half of its entry, and the destination's APIC identifier.
pub fn route(pin: u8, low: u32, destination: u32) {
    ioapic_write(0x11 + 2 * pin, destination << 24);
    ioapic_write(0x10 + 2 * pin, low);
}
