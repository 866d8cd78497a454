//! 8254 programmable interval timer (Intel 231164) with port 0x61 as a PC wires them: counter 0 interrupts, counter 2
//! has a gate and can be read.
//!
//! Counts and outputs are functions of the lent clock, so nothing happens while they run. Only the interrupt line
//! lives in time: it rises exactly when OUT of counter 0 rises at the end of a count, and falls where nobody looks,
//! in the middle of a period or when a new count is written. One call of [`Device::notify`] makes at most one
//! transition, so that no edge is lost when the host is late. Late edges follow one another closely, but not so
//! closely that a guest which asks for hundreds of thousands of interrupts a second floods its host; what is more
//! than 100 ms late is dropped. A new count in modes 2 and 3 is taken at the end of the whole period.

mod counter;
#[cfg(test)]
mod tests;

use self::counter::{Counter, Mode};
use crate::isa::{Byte, bytewise, moment_ns, ticks};
use crate::pc::PIT_HZ;
use crate::{Access, Device, Ports};

/// Counters 0 to 2, then the control word (8254, figure 5), then port 0x61.
const CONTROL: u64 = 3;
const PORT_61: u64 = 4;

/// The control word selects no counter: read-back (8254, figure 10).
const READ_BACK: u8 = 3;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;
/// The control word's field that says which bytes: none, so it is a latch command (8254, figure 9).
const BYTES: u8 = 0x30;

/// Port 0x61: gate of counter 2, speaker, and two switches for errors that never come.
const PORT_61_GATE: u8 = 1 << 0;
const PORT_61_KEPT: u8 = 0x0f;
/// Turns with each refresh of memory.
const PORT_61_REFRESH: u8 = 1 << 4;
const PORT_61_OUTPUT: u8 = 1 << 5;
/// Between two refreshes.
const REFRESH_NS: u64 = 15_085;

/// The least time between two transitions of the line.
const GAP_NS: u64 = 20_000;
/// Later transitions than this are dropped: 100 ms.
const LATEST: u64 = PIT_HZ / 10;

/// The timer's counters and its line.
#[derive(Clone, Debug)]
pub struct Pit {
    counters: [Counter; 3],
    port_61: u8,
    line: bool,
    /// The tick of the line's next transition.
    edge: Option<u64>,
    /// When the last transition was made.
    shown_ns: u64,
}

impl Default for Pit {
    fn default() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port_61: 0,
            line: false,
            edge: None,
            shown_ns: 0,
        }
    }
}

impl Pit {
    /// A timer as after power-on: nothing counts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn advance(&mut self, now: u64) {
        for counter in &mut self.counters {
            counter.advance(now);
        }
    }

    fn read(&mut self, offset: u64, now_ns: u64) -> u8 {
        let now = ticks(now_ns, PIT_HZ);
        match offset {
            0..=2 => self.counters[(offset % 3) as usize].read(now),
            PORT_61 => self.read_port_61(now_ns),
            _ => u8::MAX,
        }
    }

    fn write(&mut self, offset: u64, value: u8, now: u64) {
        match offset {
            0 => self.write_count(value, now),
            1 | 2 => {
                self.counters[(offset % 3) as usize].write(value, now);
            }
            CONTROL => self.write_control(value, now),
            PORT_61 => {
                self.port_61 = value & PORT_61_KEPT;
                self.counters[2].set_gate(value & PORT_61_GATE != 0, now);
            }
            _ => {}
        }
    }

    fn read_port_61(&self, now_ns: u64) -> u8 {
        let refresh = if (now_ns / REFRESH_NS) & 1 != 0 { PORT_61_REFRESH } else { 0 };
        let output = if self.counters[2].output(ticks(now_ns, PIT_HZ)) { PORT_61_OUTPUT } else { 0 };
        self.port_61 | refresh | output
    }

    fn write_control(&mut self, word: u8, now: u64) {
        let which = word >> 6;
        if which == READ_BACK {
            return self.read_back(word, now);
        }
        let counter = &mut self.counters[usize::from(which % 3)];
        if word & BYTES == 0 {
            return counter.latch_count(now);
        }
        counter.control(word);
        if which == 0 {
            self.edge = None;
            self.line &= self.counters[0].mode() != Mode::TerminalCount;
        }
    }

    fn read_back(&mut self, word: u8, now: u64) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if word >> (index + 1) & 1 == 0 {
                continue;
            }
            if word & READ_BACK_NO_COUNT == 0 {
                counter.latch_count(now);
            }
            if word & READ_BACK_NO_STATUS == 0 {
                counter.latch_status(now);
            }
        }
    }

    /// A byte of counter 0's count, which starts or stops the line.
    fn write_count(&mut self, byte: u8, now: u64) {
        let is_whole = self.counters[0].write(byte, now);
        match self.counters[0].mode() {
            Mode::TerminalCount if !is_whole => {
                self.line = false;
                self.edge = None;
            }
            Mode::TerminalCount | Mode::SoftwareStrobe if is_whole => {
                self.line = false;
                self.edge = self.next_edge(now);
            }
            // While it counts, a new count begins with the edge that ends the old one.
            Mode::Rate | Mode::Square if is_whole && self.edge.is_none() => self.edge = self.next_edge(now),
            _ => {}
        }
    }

    fn next_edge(&self, after: u64) -> Option<u64> {
        if self.line { self.counters[0].next_fall(after) } else { self.counters[0].next_rise(after) }
    }

    fn turn_line(&mut self, at: u64, now: u64) {
        self.line = !self.line;
        let is_too_late = now.saturating_sub(at) > LATEST;
        self.edge = self.next_edge(if is_too_late { now } else { at });
    }
}

impl Device for Pit {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        let now_ns = ports.clock.now_ns();
        let now = ticks(now_ns, PIT_HZ);
        self.advance(now);
        bytewise(offset, access, |offset, ask| match ask {
            Byte::Read => self.read(offset, now_ns),
            Byte::Write(value) => {
                self.write(offset, value, now);
                0
            }
        })
    }

    fn irq(&self) -> bool {
        self.line
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        let now_ns = ports.clock.now_ns();
        let now = ticks(now_ns, PIT_HZ);
        self.advance(now);
        if let Some(at) = self.edge
            && self.alarm().is_some_and(|due| due <= now_ns)
        {
            self.shown_ns = now_ns;
            self.turn_line(at, now);
        }
    }

    fn alarm(&self) -> Option<u64> {
        let earliest = self.shown_ns.saturating_add(GAP_NS);
        Some(moment_ns(self.edge?, PIT_HZ).max(earliest))
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}
