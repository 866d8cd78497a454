//! The machine's own PL011 (Arm DDI 0183), which carries all consoles.

use super::mmio::Registers;
use bulkhead::console::Uart;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const INTERRUPT_MASK: usize = 0x38;
const INTERRUPT_CLEAR: usize = 0x44;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;

/// FR: nothing to read, no room to write.
const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_FULL: u32 = 1 << 5;
/// IMSC: received, receive timeout, room to write.
const RECEIVE: u32 = 1 << 4;
const TRANSMIT: u32 = 1 << 5;
const RECEIVE_TIMEOUT: u32 = 1 << 6;
/// `LCR_H`: FIFOs on, 8 bits. CR: UART, transmitter and receiver on.
const FIFO_8_BITS: u32 = 1 << 4 | 3 << 5;
const ENABLE: u32 = 1 | 1 << 8 | 1 << 9;

/// The UART, as the loader left it (speed above all).
pub struct Pl011 {
    registers: Registers,
    wants_room: bool,
}

impl Pl011 {
    /// A UART that sends; it does not interrupt.
    #[must_use]
    pub fn new(registers: Registers) -> Self {
        registers.write32(CONTROL, ENABLE);
        Self { registers, wants_room: false }
    }

    /// From now on what is received interrupts.
    pub fn start_receiving(&mut self) {
        self.registers.write32(LINE_CONTROL, FIFO_8_BITS);
        self.registers.write32(INTERRUPT_CLEAR, 0x7ff);
        self.registers.write32(INTERRUPT_MASK, RECEIVE | RECEIVE_TIMEOUT);
    }
}

impl Uart for Pl011 {
    fn has_room(&mut self) -> bool {
        self.registers.read32(FLAGS) & TRANSMIT_FULL == 0
    }

    fn put(&mut self, byte: u8) {
        self.registers.write32(DATA, byte.into());
    }

    fn get(&mut self) -> Option<u8> {
        if self.registers.read32(FLAGS) & RECEIVE_EMPTY != 0 {
            return None;
        }
        let [byte, ..] = self.registers.read32(DATA).to_le_bytes();
        Some(byte)
    }

    fn want_room(&mut self, wanted: bool) {
        if wanted != self.wants_room {
            self.wants_room = wanted;
            let transmit = if wanted { TRANSMIT } else { 0 };
            self.registers.write32(INTERRUPT_MASK, RECEIVE | RECEIVE_TIMEOUT | transmit);
        }
    }
}
