//! The machine's interrupt controllers beside the local APICs: the 8259s are silenced, and of the I/O APICs one pin is used.

use super::mmio::Page;
use super::out8;
use crate::machine::{Machine, Wire};

/// An I/O APIC's registers (82093AA datasheet 3.1): which one, its value.
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
const VERSION: u32 = 1;
const FIRST_PIN: u32 = 0x10;
/// A pin's entry.
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// Masks everything, and sends `wire`, if there is one, as `vector` to the CPU whose APIC has the number `to`. Whether that
/// wire reaches a pin.
pub(crate) fn route(machine: &Machine, wire: Option<Wire>, vector: u8, to: u32) -> bool {
    silence_8259s();
    let mut is_routed = false;
    for controller in &machine.io_apics {
        // SAFETY: firmware's tables say that the controller is there, `own_tables` maps it, and it reaches no memory.
        let page = unsafe { Page::new(controller.registers) };
        let pins = (read(page, VERSION) >> 16 & 0xff) + 1;
        for pin in 0..pins {
            match wire.filter(|wire| wire.number.checked_sub(controller.first) == Some(pin)) {
                // An entry names CPUs by 8 bits.
                Some(wire) if to < 0xff => {
                    write(page, FIRST_PIN + 2 * pin + 1, to << 24);
                    write(page, FIRST_PIN + 2 * pin, entry(wire, vector));
                    is_routed = true;
                }
                _ => write(page, FIRST_PIN + 2 * pin, MASKED),
            }
        }
    }
    is_routed
}

/// The lower half of a pin's entry: fixed, to one CPU by its number.
fn entry(wire: Wire, vector: u8) -> u32 {
    let mut entry = u32::from(vector);
    if wire.is_low {
        entry |= ACTIVE_LOW;
    }
    if wire.is_level {
        entry |= LEVEL;
    }
    entry
}

fn silence_8259s() {
    const ALL: u8 = 0xff;
    for mask in [0x21, 0xa1] {
        // SAFETY: the mask of an interrupt controller.
        unsafe { out8(mask, ALL) };
    }
}

fn read(page: Page, register: u32) -> u32 {
    page.write32(SELECT, register);
    page.read32(WINDOW)
}

fn write(page: Page, register: u32, value: u32) {
    page.write32(SELECT, register);
    page.write32(WINDOW, value);
}
