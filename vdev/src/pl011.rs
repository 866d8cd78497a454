//! Arm PL011 UART (Arm DDI 0183): the guest's console.
//!
//! There is no line speed: a byte written leaves at once, and stays in the transmit FIFO only while the console has
//! no room. Input is taken from the console only when the receive FIFO has room, so none is ever lost. As on QEMU's
//! `virt`, bytes are sent even while the UART is disabled (early consoles count on it), there is no DMA, and the
//! modem lines are not wired.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use bitflags::bitflags;

use crate::fifo::Fifo;
use crate::pl031::identity;
use crate::{Access, Device, Ports, Width};

/// Data (DDI 0183, table 3-1). The other registers follow in the manual's order.
const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
/// The first of PeriphID0-3 and PCellID0-3 (DDI 0183, 3.3.15 and 3.3.16).
const ID: u64 = 0xfe0;
/// Part 011, designer Arm, revision r1p5 (which is what makes the FIFOs 16 deep); a PrimeCell.
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Overrun in a word read from `DR`, and in `RSR`.
const DR_OVERRUN: u32 = 1 << 11;
const RSR_OVERRUN: u32 = 1 << 3;
/// `LCR_H`: FIFOs enabled.
const FIFO_ENABLE: u32 = 1 << 4;

bitflags! {
    /// `FR` (DDI 0183, 3.3.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Flags: u32 {
        const CLEAR_TO_SEND = 1 << 0;
        const DATA_SET_READY = 1 << 1;
        const CARRIER = 1 << 2;
        const BUSY = 1 << 3;
        const RECEIVE_EMPTY = 1 << 4;
        const TRANSMIT_FULL = 1 << 5;
        const RECEIVE_FULL = 1 << 6;
        const TRANSMIT_EMPTY = 1 << 7;
        const RING = 1 << 8;
    }

    /// `CR` (DDI 0183, 3.3.8): the bits that this model acts on.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Control: u32 {
        const ENABLE = 1 << 0;
        const LOOPBACK = 1 << 7;
        const TRANSMIT = 1 << 8;
        const RECEIVE = 1 << 9;
        const DTR = 1 << 10;
        const RTS = 1 << 11;
        const OUT1 = 1 << 12;
        const OUT2 = 1 << 13;
        const KEPT = 0xff87;
    }

    /// `IMSC`, `RIS`, `MIS` and `ICR` (DDI 0183, 3.3.10).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Events: u32 {
        const RECEIVE = 1 << 4;
        const TRANSMIT = 1 << 5;
        const RECEIVE_TIMEOUT = 1 << 6;
        const OVERRUN = 1 << 10;
        const ALL = 0x7ff;
    }
}

/// The UART's registers and FIFOs.
#[derive(Clone, Debug)]
pub struct Pl011 {
    flags: Flags,
    raw: Events,
    mask: Events,
    control: Control,
    line_control: u32,
    fifo_levels: u32,
    low_power: u32,
    integer_divisor: u32,
    fraction_divisor: u32,
    dma_control: u32,
    receive_status: u32,
    /// The last byte received found no room, and no byte has found room since.
    overrun: bool,
    receive: Fifo,
    transmit: Fifo,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self {
            flags: Flags::RECEIVE_EMPTY.union(Flags::TRANSMIT_EMPTY),
            raw: Events::empty(),
            mask: Events::empty(),
            control: Control::TRANSMIT.union(Control::RECEIVE),
            line_control: 0,
            fifo_levels: 0x12,
            low_power: 0,
            integer_divisor: 0,
            fraction_divisor: 0,
            dma_control: 0,
            receive_status: 0,
            overrun: false,
            receive: Fifo::new(),
            transmit: Fifo::new(),
        }
    }
}

impl Pl011 {
    /// A UART as after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[inline(never)]
    fn read(&mut self, offset: u64, ports: &mut Ports<'_>) -> u32 {
        match offset {
            FR => self.read_flags(ports),
            DR => self.read_data(ports),
            RSR => self.receive_status,
            ILPR => self.low_power,
            IBRD => self.integer_divisor,
            FBRD => self.fraction_divisor,
            LCR_H => self.line_control,
            CR => self.control.bits(),
            IFLS => self.fifo_levels,
            IMSC => self.mask.bits(),
            RIS => self.raw.bits(),
            MIS => self.raw.intersection(self.mask).bits(),
            DMACR => self.dma_control,
            ID..=0xfff => identity(&IDS, offset),
            _ => 0,
        }
    }

    #[inline(never)]
    fn write(&mut self, offset: u64, value: u32, ports: &mut Ports<'_>) {
        match offset {
            RSR => self.receive_status = 0,
            ILPR => self.low_power = value & 0xff,
            IBRD => self.integer_divisor = value & 0xffff,
            FBRD => self.fraction_divisor = value & 0x3f,
            LCR_H => self.write_line_control(value & 0xff, ports),
            CR => self.write_control(Control::from_bits_truncate(value), ports),
            IFLS => self.fifo_levels = value & 0x3f,
            IMSC => self.mask = Events::from_bits_truncate(value),
            ICR => self.raw.remove(Events::from_bits_truncate(value)),
            DMACR => self.dma_control = value & 7,
            _ => {}
        }
    }

    fn read_flags(&mut self, ports: &mut Ports<'_>) -> u32 {
        // A guest that polls for room gets it as soon as the console has it.
        if self.flags.contains(Flags::BUSY) {
            self.drain(ports);
        }
        self.flags.bits()
    }

    fn read_data(&mut self, ports: &mut Ports<'_>) -> u32 {
        let overrun = if self.overrun { DR_OVERRUN } else { 0 };
        let byte = self.receive.pop().unwrap_or(0);
        if self.receive.len() < self.receive_trigger() {
            self.raw.remove(Events::RECEIVE);
        }
        if self.receive.len() == 0 {
            self.raw.remove(Events::RECEIVE_TIMEOUT);
        }
        self.pull(ports);
        u32::from(byte) | overrun
    }

    #[inline]
    fn write_data(&mut self, byte: u8, ports: &mut Ports<'_>) {
        if self.control.contains(Control::LOOPBACK) {
            self.receive_byte(byte);
            self.raw.insert(Events::TRANSMIT);
            return;
        }
        if !self.flags.contains(Flags::BUSY) && ports.console.put(byte) {
            // The FIFO filled and drained through its trigger level at once.
            self.raw.insert(Events::TRANSMIT);
            return;
        }
        self.hold(byte);
    }

    /// Keeps a byte that the console has no room for; one too many is lost, as in the manual.
    fn hold(&mut self, byte: u8) {
        if self.transmit.len() < self.depth() {
            self.transmit.push(byte);
        }
        if self.transmit.len() > self.transmit_trigger() {
            self.raw.remove(Events::TRANSMIT);
        }
        self.show_transmit();
    }

    /// Passes on what is held, as far as the console has room.
    fn drain(&mut self, ports: &mut Ports<'_>) {
        let before = self.transmit.len();
        while let Some(byte) = self.transmit.first() {
            if !ports.console.put(byte) {
                break;
            }
            self.transmit.pop();
        }
        if self.transmit.len() < before && self.transmit.len() <= self.transmit_trigger() {
            self.raw.insert(Events::TRANSMIT);
        }
        self.show_transmit();
    }

    /// Takes input as far as the FIFO has room; the time-out that tells of a short message is over at once.
    fn pull(&mut self, ports: &mut Ports<'_>) {
        let open = self.control.contains(Control::ENABLE.union(Control::RECEIVE))
            && !self.control.contains(Control::LOOPBACK);
        while open && self.receive.len() < self.depth() {
            let Some(byte) = ports.console.get() else { break };
            self.receive_byte(byte);
        }
        self.show_receive();
    }

    fn receive_byte(&mut self, byte: u8) {
        if self.receive.len() >= self.depth() {
            self.overrun = true;
            self.receive_status |= RSR_OVERRUN;
            self.raw.insert(Events::OVERRUN);
            return;
        }
        self.overrun = false;
        self.receive.push(byte);
        self.raw.insert(Events::RECEIVE_TIMEOUT);
        if self.receive.len() >= self.receive_trigger() {
            self.raw.insert(Events::RECEIVE);
        }
        self.show_receive();
    }

    fn write_line_control(&mut self, value: u32, ports: &mut Ports<'_>) {
        self.line_control = value;
        self.show_transmit();
        self.pull(ports);
    }

    fn write_control(&mut self, value: Control, ports: &mut Ports<'_>) {
        self.control = value.intersection(Control::KEPT);
        self.show_modem();
        self.pull(ports);
    }

    fn show_receive(&mut self) {
        self.flags.set(Flags::RECEIVE_EMPTY, self.receive.len() == 0);
        self.flags.set(Flags::RECEIVE_FULL, self.receive.len() >= self.depth());
    }

    fn show_transmit(&mut self) {
        self.flags.set(Flags::TRANSMIT_EMPTY, self.transmit.len() == 0);
        self.flags.set(Flags::TRANSMIT_FULL, self.transmit.len() >= self.depth());
        self.flags.set(Flags::BUSY, self.transmit.len() != 0);
    }

    /// In loopback the modem outputs come back as inputs (DDI 0183, 3.3.8).
    fn show_modem(&mut self) {
        let looped = |output| self.control.contains(Control::LOOPBACK.union(output));
        let wires = [
            (Flags::CLEAR_TO_SEND, looped(Control::RTS)),
            (Flags::DATA_SET_READY, looped(Control::DTR)),
            (Flags::CARRIER, looped(Control::OUT1)),
            (Flags::RING, looped(Control::OUT2)),
        ];
        for (flag, level) in wires {
            self.flags.set(flag, level);
        }
    }

    fn fifos_enabled(&self) -> bool {
        self.line_control & FIFO_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifos_enabled() { Fifo::DEPTH } else { 1 }
    }

    fn receive_trigger(&self) -> usize {
        if self.fifos_enabled() { trigger(self.fifo_levels >> 3) } else { 1 }
    }

    /// The transmit event is raised when no more than this many bytes are left.
    fn transmit_trigger(&self) -> usize {
        if self.fifos_enabled() { trigger(self.fifo_levels) } else { 0 }
    }
}

impl Device for Pl011 {
    #[inline]
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        match (offset, access) {
            (DR, Access::Write(_, value)) => {
                self.write_data((value & 0xff) as u8, ports);
                0
            }
            (_, Access::Read(_)) => u64::from(self.read(offset, ports)),
            (_, Access::Write(_, value)) => {
                self.write(offset, (value & 0xffff_ffff) as u32, ports);
                0
            }
        }
    }

    /// Each byte of output costs a read of FR.
    fn peek(&self, offset: u64, _: Width) -> Option<u64> {
        (offset == FR && !self.flags.contains(Flags::BUSY)).then(|| u64::from(self.flags.bits()))
    }

    fn irq(&self) -> bool {
        self.raw.intersects(self.mask)
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        if self.flags.contains(Flags::BUSY) {
            self.drain(ports);
        }
        self.pull(ports);
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// How many of 16 bytes a field of `IFLS` stands for; reserved values as the highest (DDI 0183, 3.3.9).
const fn trigger(field: u32) -> usize {
    match field & 7 {
        0 => 2,
        1 => 4,
        2 => 8,
        3 => 12,
        _ => 14,
    }
}
