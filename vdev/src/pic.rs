//! The two 8259A interrupt controllers of a PC (Intel 8259A data sheet, 231468), cascaded through input 2 of the first, with the
//! edge/level control registers that chipsets added (82371AB data sheet, 290562, 4.2.5).
//!
//! MCS-80 mode and the buffered mode are about wires that a PC does not have: accepted, without effect.

use crate::Access;
use crate::isa::{Byte, bytewise};
use crate::pc::{ELCR, PIC_MASTER, PIC_SLAVE};

/// The input of the first that the second is wired to.
const CASCADE: u8 = 2;
/// Inputs that are edge-triggered on every PC: the timer, the keyboard and the cascade; the clock and the coprocessor.
const ALWAYS_EDGE: [u8; 2] = [0b0000_0111, 0b0010_0001];

/// Initialisation command word 1 (8259A, figure 7).
const ICW1: u8 = 1 << 4;
const ICW1_FOURTH: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1_LEVEL: u8 = 1 << 3;
/// Initialisation command word 4 (8259A, figure 7): automatic end of interrupt, special fully nested mode.
const ICW4_AUTOMATIC: u8 = 1 << 1;
const ICW4_NESTED: u8 = 1 << 4;
/// Operation command word 3 (8259A, figure 8).
const OCW3: u8 = 1 << 3;
const OCW3_REGISTER: u8 = 1 << 1;
const OCW3_SERVICE: u8 = 1 << 0;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_MASK_MODE: u8 = 1 << 6;
const OCW3_SPECIAL: u8 = 1 << 5;

/// Which command word the data port takes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Mask,
    Vectors,
    Wiring,
    Mode,
}

/// One controller.
#[derive(Clone, Debug)]
struct Pic {
    /// Inputs that another controller is wired to.
    cascaded: u8,
    /// Levels of the inputs.
    lines: u8,
    /// Edges latched until they are acknowledged. The chip wants the input high until then; a virtual CPU may be away for
    /// longer than the timer's output stays high, and must not lose ticks for it.
    edges: u8,
    mask: u8,
    service: u8,
    /// Bits 7:3 of the vectors.
    vectors: u8,
    /// Level-triggered inputs, by the chipset's register.
    levels: u8,
    /// All inputs are level-triggered, by the first initialisation word.
    is_all_level: bool,
    /// The input of the lowest priority.
    lowest: u8,
    next: Next,
    wants_mode: bool,
    is_single: bool,
    is_automatic: bool,
    /// Special fully nested: a cascaded input in service does not hold back more of the same.
    is_nested: bool,
    rotates_automatically: bool,
    is_special_mask: bool,
    reads_service: bool,
    is_polled: bool,
}

impl Pic {
    const fn new(cascaded: u8) -> Self {
        Self {
            cascaded,
            lines: 0,
            edges: 0,
            mask: u8::MAX,
            service: 0,
            vectors: 0,
            levels: 0,
            is_all_level: false,
            lowest: 7,
            next: Next::Mask,
            wants_mode: false,
            is_single: false,
            is_automatic: false,
            is_nested: false,
            rotates_automatically: false,
            is_special_mask: false,
            reads_service: false,
            is_polled: false,
        }
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    fn requests(&self) -> u8 {
        let levels = if self.is_all_level { u8::MAX } else { self.levels };
        self.lines & levels | self.edges & !levels
    }

    /// The member of `set` with the highest priority: the first from the one behind the lowest.
    fn first_of(&self, set: u8) -> Option<u8> {
        let from = self.lowest.wrapping_add(1) & 7;
        let order = set.rotate_right(from.into());
        (order != 0).then(|| from.wrapping_add((order.trailing_zeros() & 7) as u8) & 7)
    }

    /// Where an input stands, 0 first.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The request that the output announces: of higher priority than all in service, or more of a cascaded one (8259A, special
    /// fully nested mode). With the special mask, masked ones in service do not count (8259A, special mask mode).
    fn winner(&self) -> Option<u8> {
        let request = self.first_of(self.requests() & !self.mask)?;
        let masked = if self.is_special_mask { self.mask } else { 0 };
        let nested = if self.is_nested { self.cascaded } else { 0 };
        let is_let_in = self.first_of(self.service & !masked).is_none_or(|held| {
            self.rank(request) < self.rank(held) || request == held && nested >> held & 1 != 0
        });
        is_let_in.then_some(request)
    }

    /// Acknowledges; input 7 without being in service if nothing is requested any more: the spurious interrupt.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.winner()?;
        let bit = 1 << input;
        self.edges &= !bit;
        if self.is_automatic {
            if self.rotates_automatically {
                self.lowest = input;
            }
        } else {
            self.service |= bit;
        }
        Some(input)
    }

    fn read(&mut self, is_data: bool) -> u8 {
        if core::mem::take(&mut self.is_polled) {
            // The poll word: bit 7 for an interrupt, which is acknowledged by this (8259A, poll command).
            return self.acknowledge().map_or(7, |input| 1 << 7 | input);
        }
        if is_data {
            return self.mask;
        }
        if self.reads_service { self.service } else { self.requests() }
    }

    fn write(&mut self, is_data: bool, value: u8) {
        if is_data {
            self.write_data(value);
        } else {
            self.write_command(value);
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            self.initialise(value);
        } else if value & OCW3 != 0 {
            self.select(value);
        } else {
            self.end(value);
        }
    }

    /// What initialisation clears: mask, edges, status read, special mask; priorities start over (8259A, ICW1).
    fn initialise(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            vectors: self.vectors,
            levels: self.levels,
            mask: 0,
            is_all_level: value & ICW1_LEVEL != 0,
            next: Next::Vectors,
            wants_mode: value & ICW1_FOURTH != 0,
            is_single: value & ICW1_SINGLE != 0,
            ..Self::new(self.cascaded)
        };
    }

    fn select(&mut self, value: u8) {
        self.is_polled = value & OCW3_POLL != 0;
        if value & OCW3_REGISTER != 0 {
            self.reads_service = value & OCW3_SERVICE != 0;
        }
        if value & OCW3_MASK_MODE != 0 {
            self.is_special_mask = value & OCW3_SPECIAL != 0;
        }
    }

    /// Operation command word 2: bits 7:5 are rotate, specific, end (8259A, figure 8).
    fn end(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0b001 => {
                self.end_highest();
            }
            0b011 => self.service &= !(1 << input),
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            0b111 => {
                self.service &= !(1 << input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            0b100 => self.rotates_automatically = true,
            0b000 => self.rotates_automatically = false,
            _ => {}
        }
    }

    /// Non-specific end: of the highest priority in service, masked ones aside in special mask mode.
    fn end_highest(&mut self) -> Option<u8> {
        let masked = if self.is_special_mask { self.mask } else { 0 };
        let input = self.first_of(self.service & !masked)?;
        self.service &= !(1 << input);
        Some(input)
    }

    fn write_data(&mut self, value: u8) {
        self.next = match self.next {
            Next::Mask => {
                self.mask = value;
                Next::Mask
            }
            Next::Vectors => {
                self.vectors = value & 0xf8;
                if self.is_single { self.after_wiring() } else { Next::Wiring }
            }
            Next::Wiring => self.after_wiring(),
            Next::Mode => {
                self.is_automatic = value & ICW4_AUTOMATIC != 0;
                self.is_nested = value & ICW4_NESTED != 0;
                Next::Mask
            }
        };
    }

    fn after_wiring(&self) -> Next {
        if self.wants_mode { Next::Mode } else { Next::Mask }
    }
}

/// Both controllers of one VM.
#[derive(Clone, Debug)]
pub struct Pics {
    pair: [Pic; 2],
}

impl Default for Pics {
    fn default() -> Self {
        Self::new()
    }
}

impl Pics {
    /// As after power-on. What the masks are then is nobody's rule; all ones is what firmware leaves.
    #[must_use]
    pub const fn new() -> Self {
        Self { pair: [Pic::new(1 << CASCADE), Pic::new(0)] }
    }

    /// As after power-on; the inputs keep their levels, which are the devices'.
    pub fn reset(&mut self) {
        for pic in &mut self.pair {
            *pic = Pic { lines: pic.lines, ..Pic::new(pic.cascaded) };
        }
        self.cascade();
    }

    /// Sets the level of one of the inputs 0 to 15. Input 2 is the cascade, and nobody else's.
    pub fn set_line(&mut self, line: u8, level: bool) {
        if line >= 16 || line == CASCADE {
            return;
        }
        self.pair[usize::from(line >> 3)].set_line(line & 7, level);
        self.cascade();
    }

    /// The level of the pair's output.
    #[must_use]
    pub fn output(&self) -> bool {
        self.pair[0].winner().is_some()
    }

    /// The CPU acknowledges: the vector of the request with the highest priority, or a spurious 7 or 15.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.pair[0].acknowledge() else { return self.pair[0].vectors | 7 };
        if input != CASCADE {
            return self.pair[0].vectors | input;
        }
        let second = self.pair[1].acknowledge().unwrap_or(7);
        self.cascade();
        self.pair[1].vectors | second
    }

    /// One access to a port; nothing if the port is none of the pair's. Wider accesses go byte by byte, low byte first.
    pub fn port(&mut self, port: u16, access: Access) -> Option<u64> {
        if !Self::has(port) {
            return None;
        }
        let value = bytewise(port.into(), access, |port, byte| match byte {
            Byte::Read => self.read(port),
            Byte::Write(value) => {
                self.write(port, value);
                0
            }
        });
        self.cascade();
        Some(value)
    }

    /// Whether one of the pair answers at `port`.
    #[must_use]
    pub const fn has(port: u16) -> bool {
        matches!(port & !1, PIC_MASTER | PIC_SLAVE | ELCR)
    }

    fn read(&mut self, port: u64) -> u8 {
        let odd = usize::from(port & 1 != 0);
        match u16::try_from(port & !1) {
            Ok(PIC_MASTER) => self.pair[0].read(odd != 0),
            Ok(PIC_SLAVE) => self.pair[1].read(odd != 0),
            Ok(ELCR) => self.pair[odd].levels,
            _ => u8::MAX,
        }
    }

    fn write(&mut self, port: u64, value: u8) {
        let odd = usize::from(port & 1 != 0);
        match u16::try_from(port & !1) {
            Ok(PIC_MASTER) => self.pair[0].write(odd != 0, value),
            Ok(PIC_SLAVE) => self.pair[1].write(odd != 0, value),
            Ok(ELCR) => self.pair[odd].levels = value & !ALWAYS_EDGE[odd],
            _ => {}
        }
    }

    /// The second's output is an input of the first: a level, whatever the first is set to, because it goes low on each
    /// acknowledge and no edge of it can be missed.
    fn cascade(&mut self) {
        let output = u8::from(self.pair[1].winner().is_some()) << CASCADE;
        let first = &mut self.pair[0];
        first.lines = first.lines & !(1 << CASCADE) | output;
        first.edges = first.edges & !(1 << CASCADE) | output;
    }
}

#[cfg(test)]
mod tests;
