//! 16550A UART (National Semiconductor PC16550D, June 1995) as a PC wires it: the guest's COM ports.
//!
//! There is no line speed: a byte written leaves at once, and stays in the transmit FIFO only while the console has
//! no room. Input is taken from the console only when the receive FIFO has room, and a character time-out is over
//! at once. There is no DMA, and nothing sends parity errors, framing errors or breaks.
//!
//! On a PC the line goes to an edge-triggered input, so it has to fall where the data sheet lets it fall. Without FIFOs it is
//! low between two received bytes: the next one follows a character time later, or as soon as line status is read. A byte that
//! is written ends THRE's interrupt, if a driver may have seen it, and raises it again a character time later. Most drivers end
//! it by reading identification; then the next byte raises it in the moment of the write, and those behind it leave it pending.

#[cfg(test)]
mod tests;

use bitflags::bitflags;

use crate::fifo::Fifo;
use crate::isa::{Byte, byte, bytewise};
use crate::{Access, Device, Ports, Width};

/// Received and transmitted data; the divisor's low byte while DLAB is set (PC16550D, table II).
const DATA: u64 = 0;
/// Interrupt enable; the divisor's high byte while DLAB is set.
const ENABLE: u64 = 1;
/// Interrupt identification when read, FIFO control when written.
const IDENTIFY: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

/// `LINE_CONTROL`: the divisor is in front of data and interrupt enable (PC16550D, 8.1).
const DIVISOR_ACCESS: u8 = 1 << 7;
/// What firmware leaves: 9600 baud.
const DIVISOR: u16 = 12;

/// FIFO control (PC16550D, 8.5).
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVE: u8 = 1 << 1;
const FIFO_CLEAR_TRANSMIT: u8 = 1 << 2;
/// The trigger level is in bits 7 and 6.
const FIFO_KEPT: u8 = 0xc1;

/// How long the line is low between two causes: a character at the highest speed, 10 bits of 1/115200 s.
const CHARACTER_NS: u64 = 86_806;

/// Interrupt identification (PC16550D, table V), highest priority first.
const ID_LINE: u8 = 0b0110;
const ID_RECEIVED: u8 = 0b0100;
const ID_TIMEOUT: u8 = 0b1100;
const ID_EMPTY: u8 = 0b0010;
const ID_MODEM: u8 = 0b0000;
const ID_NONE: u8 = 0b0001;
/// FIFOs are enabled, and work (the 16550 without A set only the upper bit).
const ID_FIFOS: u8 = 0xc0;

bitflags! {
    /// What interrupts, in the layout of interrupt enable (PC16550D, 8.7).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Sources: u8 {
        const RECEIVED = 1 << 0;
        const EMPTY = 1 << 1;
        const LINE = 1 << 2;
        const MODEM = 1 << 3;
    }

    /// Line status (PC16550D, 8.4).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Line: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
        const IDLE = Self::HOLDING_EMPTY.bits() | Self::TRANSMITTER_EMPTY.bits();
    }

    /// Modem control (PC16550D, 8.8). A PC's interrupt line goes through a gate that OUT2 opens.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Control: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    /// Modem status (PC16550D, 8.9): the four inputs, and what changed since the last read.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Modem: u8 {
        const CTS_CHANGED = 1 << 0;
        const DSR_CHANGED = 1 << 1;
        const RING_ENDED = 1 << 2;
        const CARRIER_CHANGED = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RING = 1 << 6;
        const CARRIER = 1 << 7;
        const CHANGES = 0x0f;
        const INPUTS = 0xf0;
    }
}

/// The UART's registers and FIFOs.
#[derive(Clone, Debug)]
pub struct Uart16550 {
    /// Whether a console is plugged in.
    connected: bool,
    pending: Sources,
    enabled: Sources,
    line: Line,
    control: Control,
    modem: Modem,
    line_control: u8,
    fifo_control: u8,
    scratch: u8,
    divisor: u16,
    /// The receive FIFO was cleared, or its only byte read, and the console not asked since.
    starved: bool,
    /// When the line may rise again.
    due_ns: Option<u64>,
    /// THRE is raised then.
    owes_empty: bool,
    /// A driver may have seen that THRE is pending: the next byte ends that.
    shows_empty: bool,
    receive: Fifo,
    transmit: Fifo,
}

impl Uart16550 {
    /// A UART as after power-on. Without a console (`connected` is false) its output is lost, and nobody answers.
    #[must_use]
    pub const fn new(connected: bool) -> Self {
        Self {
            connected,
            pending: Sources::empty(),
            enabled: Sources::empty(),
            line: Line::IDLE,
            control: Control::empty(),
            modem: plugged(connected),
            line_control: 0,
            fifo_control: 0,
            scratch: 0,
            divisor: DIVISOR,
            starved: false,
            due_ns: None,
            owes_empty: false,
            shows_empty: false,
            receive: Fifo::new(),
            transmit: Fifo::new(),
        }
    }

    fn read(&mut self, offset: u64, ports: &mut Ports<'_>) -> u8 {
        self.shows_empty = true;
        match offset {
            DATA if !self.shows_divisor() => self.read_data(ports),
            IDENTIFY => self.read_identification(),
            LINE_STATUS => self.read_line_status(ports),
            MODEM_STATUS => self.read_modem_status(),
            _ => self.plain(offset),
        }
    }

    /// The registers that a read does not change.
    #[inline]
    fn plain(&self, offset: u64) -> u8 {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            DATA => low,
            ENABLE if self.shows_divisor() => high,
            ENABLE => self.enabled.bits(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.control.bits(),
            SCRATCH => self.scratch,
            _ => u8::MAX,
        }
    }

    #[inline]
    fn write(&mut self, offset: u64, value: u8, ports: &mut Ports<'_>) {
        match offset {
            DATA if !self.shows_divisor() => self.write_data(value, ports),
            SCRATCH => self.scratch = value,
            _ => self.set_up(offset, value, ports),
        }
    }

    #[inline(never)]
    fn set_up(&mut self, offset: u64, value: u8, ports: &mut Ports<'_>) {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            DATA => self.divisor = u16::from_le_bytes([value, high]),
            ENABLE if self.shows_divisor() => self.divisor = u16::from_le_bytes([low, value]),
            ENABLE => self.write_enable(Sources::from_bits_truncate(value), ports),
            IDENTIFY => self.write_fifo_control(value, ports),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.write_control(Control::from_bits_truncate(value), ports),
            _ => {}
        }
    }

    fn read_data(&mut self, ports: &mut Ports<'_>) -> u8 {
        let byte = self.receive.pop().unwrap_or(0);
        if self.has_fifos() {
            self.pull(ports);
            return byte;
        }
        self.show_received();
        self.starved = true;
        if self.enabled.contains(Sources::RECEIVED) {
            self.call_back(ports);
        }
        byte
    }

    fn call_back(&mut self, ports: &Ports<'_>) {
        self.due_ns = Some(ports.clock.now_ns().saturating_add(CHARACTER_NS));
    }

    /// To see the transmitter's interrupt as the cause ends it (PC16550D, table V).
    fn read_identification(&mut self) -> u8 {
        let cause = self.cause();
        if cause == ID_EMPTY {
            self.pending.remove(Sources::EMPTY);
        }
        cause | self.fifo_marks()
    }

    fn read_line_status(&mut self, ports: &mut Ports<'_>) -> u8 {
        // A guest that polls for room gets it as soon as the console has it.
        self.drain(ports);
        if self.starved {
            self.pull(ports);
        }
        let status = self.line;
        self.line.remove(Line::OVERRUN);
        self.pending.remove(Sources::LINE);
        status.bits()
    }

    fn read_modem_status(&mut self) -> u8 {
        let status = self.modem;
        self.modem.remove(Modem::CHANGES);
        self.pending.remove(Sources::MODEM);
        status.bits()
    }

    #[inline]
    fn write_data(&mut self, byte: u8, ports: &mut Ports<'_>) {
        if self.control.contains(Control::LOOPBACK) {
            self.loop_back(byte);
        } else if self.is_blocked() || (self.connected && !ports.console.put(byte)) {
            return self.hold(byte);
        }
        // The FIFO filled and became empty at once.
        if self.is_blocked() || self.owes_empty {
            return;
        }
        if !self.pending.contains(Sources::EMPTY) {
            self.pending.insert(Sources::EMPTY);
            self.shows_empty = false;
        } else if self.shows_empty && self.enabled.contains(Sources::EMPTY) {
            self.pending.remove(Sources::EMPTY);
            self.owes_empty = true;
            self.call_back(ports);
        }
    }

    /// THRE is pending, and announced as a cause of its own.
    fn show_empty(&mut self) {
        self.owes_empty = false;
        self.pending.insert(Sources::EMPTY);
        self.shows_empty = true;
    }

    /// THRE's interrupt was raised by a byte, and nothing was read since: whoever looks now sees it.
    #[inline]
    fn hides_empty(&self) -> bool {
        !self.shows_empty && self.pending.intersection(self.enabled).contains(Sources::EMPTY)
    }

    /// Keeps a byte that the console has no room for; one too many is lost.
    fn hold(&mut self, byte: u8) {
        if self.transmit.len() < self.depth() {
            self.transmit.push(byte);
        }
        self.line.remove(Line::IDLE);
        self.pending.remove(Sources::EMPTY);
        self.owes_empty = false;
    }

    fn is_blocked(&self) -> bool {
        !self.line.contains(Line::HOLDING_EMPTY)
    }

    /// Passes on what is held, as far as the console has room.
    fn drain(&mut self, ports: &mut Ports<'_>) {
        if !self.is_blocked() {
            return;
        }
        while let Some(byte) = self.transmit.first() {
            if !ports.console.put(byte) {
                return;
            }
            self.transmit.pop();
        }
        self.became_empty();
    }

    fn became_empty(&mut self) {
        self.line.insert(Line::IDLE);
        self.show_empty();
    }

    /// Takes input as far as the FIFO has room.
    fn pull(&mut self, ports: &mut Ports<'_>) {
        self.starved = false;
        let open = self.connected && !self.control.contains(Control::LOOPBACK);
        while open && self.receive.len() < self.depth() {
            let Some(byte) = ports.console.get() else { break };
            self.receive.push(byte);
        }
        self.show_received();
    }

    /// A full FIFO keeps what it has; without FIFOs the new byte takes the old one's place (PC16550D, 8.4, bit 1).
    fn loop_back(&mut self, byte: u8) {
        if self.receive.len() >= self.depth() {
            self.line.insert(Line::OVERRUN);
            self.pending.insert(Sources::LINE);
            if self.has_fifos() {
                return;
            }
            self.receive.clear();
        }
        self.receive.push(byte);
        self.show_received();
    }

    /// Below the trigger level the character time-out, which is over at once, interrupts instead.
    fn show_received(&mut self) {
        let any = self.receive.len() != 0;
        self.line.set(Line::DATA_READY, any);
        self.pending.set(Sources::RECEIVED, any);
    }

    /// To enable the transmitter's interrupt while the FIFO is empty raises it: drivers start to send this way.
    fn write_enable(&mut self, sources: Sources, ports: &mut Ports<'_>) {
        let added = sources.difference(self.enabled);
        self.enabled = sources;
        if added.contains(Sources::EMPTY) && !self.is_blocked() {
            self.show_empty();
        }
        if self.starved {
            self.pull(ports);
        }
    }

    /// Without its bit 0 the other bits are not programmed, and a change of bit 0 clears both FIFOs (PC16550D, 8.5).
    fn write_fifo_control(&mut self, value: u8, ports: &mut Ports<'_>) {
        let turned = (value ^ self.fifo_control) & FIFO_ENABLE != 0;
        let enable = value & FIFO_ENABLE != 0;
        self.fifo_control = if enable { value & FIFO_KEPT } else { 0 };
        if turned || enable && value & FIFO_CLEAR_TRANSMIT != 0 {
            self.clear_transmit();
        }
        if turned || enable && value & FIFO_CLEAR_RECEIVE != 0 {
            self.clear_receive(ports);
        }
    }

    fn clear_transmit(&mut self) {
        self.transmit.clear();
        if self.is_blocked() {
            self.became_empty();
        }
    }

    /// Drivers clear several times while they set up. What waits in the console is left there until they look for
    /// input.
    fn clear_receive(&mut self, ports: &mut Ports<'_>) {
        self.receive.clear();
        self.show_received();
        self.starved = true;
        if self.enabled.contains(Sources::RECEIVED) {
            self.pull(ports);
        }
    }

    fn write_control(&mut self, control: Control, ports: &mut Ports<'_>) {
        self.control = control;
        self.show_modem();
        self.pull(ports);
    }

    /// In loopback the modem outputs come back as inputs (PC16550D, 8.8, bit 4).
    fn show_modem(&mut self) {
        let before = self.modem;
        let inputs = self.inputs();
        let changed = before.symmetric_difference(inputs);
        self.modem = before.intersection(Modem::CHANGES).union(inputs);
        let changes = [
            (Modem::CTS_CHANGED, changed.contains(Modem::CTS)),
            (Modem::DSR_CHANGED, changed.contains(Modem::DSR)),
            (Modem::RING_ENDED, before.contains(Modem::RING) && changed.contains(Modem::RING)),
            (Modem::CARRIER_CHANGED, changed.contains(Modem::CARRIER)),
        ];
        for (change, _) in changes.into_iter().filter(|&(_, happened)| happened) {
            self.modem.insert(change);
        }
        self.pending.set(Sources::MODEM, self.modem.intersects(Modem::CHANGES));
    }

    fn inputs(&self) -> Modem {
        if !self.control.contains(Control::LOOPBACK) {
            return plugged(self.connected);
        }
        let wires = [
            (Control::RTS, Modem::CTS),
            (Control::DTR, Modem::DSR),
            (Control::OUT1, Modem::RING),
            (Control::OUT2, Modem::CARRIER),
        ];
        let set = wires.into_iter().filter(|&(output, _)| self.control.contains(output));
        set.fold(Modem::empty(), |inputs, (_, input)| inputs.union(input))
    }

    /// The enabled cause with the highest priority (PC16550D, table V).
    fn cause(&self) -> u8 {
        let wanted = self.pending.intersection(self.enabled);
        if wanted.contains(Sources::LINE) {
            return ID_LINE;
        }
        if wanted.contains(Sources::RECEIVED) {
            return if self.receive.len() >= self.trigger() { ID_RECEIVED } else { ID_TIMEOUT };
        }
        if wanted.contains(Sources::EMPTY) {
            return ID_EMPTY;
        }
        if wanted.contains(Sources::MODEM) { ID_MODEM } else { ID_NONE }
    }

    fn fifo_marks(&self) -> u8 {
        if self.has_fifos() { ID_FIFOS } else { 0 }
    }

    fn has_fifos(&self) -> bool {
        self.fifo_control & FIFO_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.has_fifos() { Fifo::DEPTH } else { 1 }
    }

    /// Bytes from which on input is announced as such (PC16550D, 8.5).
    fn trigger(&self) -> usize {
        match self.fifo_control >> 6 {
            _ if !self.has_fifos() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    #[inline]
    fn shows_divisor(&self) -> bool {
        self.line_control & DIVISOR_ACCESS != 0
    }
}

impl Device for Uart16550 {
    #[inline]
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        bytewise(offset, access, |offset, ask| match ask {
            Byte::Read => self.read(offset, ports),
            Byte::Write(value) => {
                self.write(offset, value, ports);
                0
            }
        })
    }

    /// Each byte of output costs a read of line status, and each interrupt ends with a look for further causes.
    #[inline]
    fn peek(&self, offset: u64, width: Width) -> Option<u64> {
        let value = match offset {
            _ if width != Width::Byte => return None,
            LINE_STATUS if self.is_blocked() || self.starved || self.line.contains(Line::OVERRUN) => {
                return None;
            }
            LINE_STATUS | IDENTIFY if self.hides_empty() => return None,
            LINE_STATUS => self.line.bits(),
            MODEM_STATUS if self.modem.intersects(Modem::CHANGES) => return None,
            MODEM_STATUS => self.modem.bits(),
            DATA if !self.shows_divisor() => return None,
            IDENTIFY => match self.cause() {
                ID_EMPTY => return None,
                cause => cause | self.fifo_marks(),
            },
            _ => self.plain(offset),
        };
        Some(u64::from(value))
    }

    #[inline]
    fn poke(&mut self, offset: u64, width: Width, value: u64) -> bool {
        if width != Width::Byte {
            return false;
        }
        match offset {
            SCRATCH => self.scratch = byte(value, 0),
            LINE_CONTROL => self.line_control = byte(value, 0),
            _ => return false,
        }
        true
    }

    #[inline]
    fn irq(&self) -> bool {
        let gate = self.control.intersection(Control::OUT2.union(Control::LOOPBACK));
        self.pending.intersects(self.enabled) && gate == Control::OUT2
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.due_ns = None;
        if self.owes_empty {
            self.show_empty();
        }
        self.drain(ports);
        self.pull(ports);
    }

    fn alarm(&self) -> Option<u64> {
        self.due_ns
    }

    fn reset(&mut self) {
        *self = Self::new(self.connected);
    }
}

/// The modem's inputs: a console is always ready.
const fn plugged(connected: bool) -> Modem {
    if connected { Modem::CTS.union(Modem::DSR).union(Modem::CARRIER) } else { Modem::empty() }
}
