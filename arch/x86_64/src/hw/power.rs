//! Switching the machine off (ACPI 4.8.3.2, 4.8.3.7).

use super::mmio::Page;
use super::start::{known_machine, uart};
use super::{halt, in16, out8, out16};
use crate::machine::{Power, Register};

/// PM1 control: the ACPI registers are ours; go to sleep; which sleep.
const SCI_ENABLED: u16 = 1;
const SLEEP: u16 = 1 << 13;
const TYPE_SHIFT: u32 = 10;
const TYPE: u16 = 7 << TYPE_SHIFT;
/// Sleep control of machines without PM1: the same.
const REDUCED_SLEEP: u8 = 1 << 5;
const REDUCED_TYPE_SHIFT: u32 = 2;
/// How often is looked whether firmware has handed over.
const MOST_LOOKS: u32 = 1_000_000;

/// Switches the machine off, when the UART has sent what it has; where that fails it stands still.
pub fn power_off() -> ! {
    // Setting it up waits for that.
    let _ = uart();
    if let Some(machine) = known_machine() {
        try_power_off(&machine.power);
    }
    halt()
}

fn try_power_off(power: &Power) {
    let [first_type, second_type] = power.sleep_type;
    if let Some(register) = power.reduced {
        write8(register, first_type << REDUCED_TYPE_SHIFT | REDUCED_SLEEP);
        return;
    }
    let [first, second] = power.control;
    if let (Some(register), Some((port, value))) = (first, power.take_over)
        && read16(register) & SCI_ENABLED == 0
    {
        // SAFETY: firmware's own port, with the value that its table names for this.
        unsafe { out8(port, value) };
        for _ in 0..MOST_LOOKS {
            if read16(register) & SCI_ENABLED != 0 {
                break;
            }
        }
    }
    for (register, kind) in [(first, first_type), (second, second_type)] {
        if let Some(register) = register {
            let kept = read16(register) & !TYPE;
            write16(register, kept | u16::from(kind) << TYPE_SHIFT & TYPE | SLEEP);
        }
    }
}

fn read16(register: Register) -> u16 {
    match register {
        // SAFETY: a control register of the machine's power; reading it changes nothing.
        Register::Port(port) => unsafe { in16(port) },
        Register::Memory(at) => {
            let word = page(at).read32(offset(at));
            (word >> (8 * (at & 2)) & 0xffff) as u16
        }
    }
}

fn write16(register: Register, value: u16) {
    match register {
        // SAFETY: it switches the machine off, which ends everything, but breaks nothing before.
        Register::Port(port) => unsafe { out16(port, value) },
        Register::Memory(at) => page(at).write32(offset(at), value.into()),
    }
}

fn write8(register: Register, value: u8) {
    match register {
        // SAFETY: as `write16`.
        Register::Port(port) => unsafe { out8(port, value) },
        Register::Memory(at) => page(at).write8(offset(at), value),
    }
}

fn page(at: u64) -> Page {
    // SAFETY: firmware's tables name the register, `own_tables` maps it, and it reaches no memory.
    unsafe { Page::new(at) }
}

fn offset(at: u64) -> usize {
    (at & 0xfff) as usize
}
