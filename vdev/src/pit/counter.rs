//! One counter of the 8254, as a function of time: nothing happens while it counts.
//!
//! A counter is known by the tick at which its count was loaded. Count and output at any later tick follow from the
//! mode's definition (Intel 8254, order 231164, "Mode Definitions").

/// The control word's modes; 6 and 7 are 2 and 3 again (8254, figure 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    TerminalCount,
    OneShot,
    Rate,
    Square,
    SoftwareStrobe,
    HardwareStrobe,
}

/// Which bytes of the count are read and written (8254, figure 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bytes {
    Low,
    High,
    Both,
}

/// Whether the counting element counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Run {
    /// No count was written, or no trigger came.
    Waiting,
    /// Since this tick, which may lie one ahead: a count is loaded by the clock pulse after it was written.
    Counting { since: u64 },
    /// The gate is low; so many ticks were counted.
    Held { elapsed: u64 },
}

/// A value that a latch command keeps until it is read, lowest byte first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Latched {
    bytes: [u8; 2],
    /// The next byte to read, and where reading ends.
    next: u8,
    end: u8,
}

/// A counter's registers.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    mode: Mode,
    bcd: bool,
    bytes: Bytes,
    run: Run,
    gate: bool,
    /// Ticks of the count that is being counted: 1 to 65536, or to 10000 in BCD.
    length: u64,
    /// A count that waits for the end of the period (modes 2 and 3), with the tick of that end; or for a trigger.
    waiting: Option<(u64, u64)>,
    /// The first of two bytes was written.
    first_written: Option<u8>,
    /// The first of two bytes was read.
    first_read: bool,
    count: Option<Latched>,
    status: Option<u8>,
}

/// Highest bit first: which bytes, mode, BCD. What a control word and a status byte have in common.
const CONTROL_BITS: u8 = 0x3f;
const STATUS_OUTPUT: u8 = 1 << 7;
const STATUS_NULL: u8 = 1 << 6;

impl Counter {
    /// As firmware leaves it: a square wave was chosen, and nothing is counted.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            mode: Mode::Square,
            bcd: false,
            bytes: Bytes::Both,
            run: Run::Waiting,
            gate,
            length: 0x1_0000,
            waiting: None,
            first_written: None,
            first_read: false,
            count: None,
            status: None,
        }
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn is_counting(&self) -> bool {
        matches!(self.run, Run::Counting { .. })
    }

    // Time

    /// Loads a count whose time has come; everything that asks for a tick not before `now` may be called then.
    pub(super) fn advance(&mut self, now: u64) {
        if let (Mode::Rate | Mode::Square, Some((length, at))) = (self.mode, self.waiting)
            && self.is_counting()
            && now >= at
        {
            self.waiting = None;
            self.length = length;
            self.run = Run::Counting { since: at };
        }
    }

    /// Ticks since the count was loaded; none before.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.run {
            Run::Waiting => None,
            Run::Counting { since } => Some(now.saturating_sub(since)),
            Run::Held { elapsed } => Some(elapsed),
        }
    }

    /// The level of OUT.
    pub(super) fn output(&self, now: u64) -> bool {
        let length = self.length;
        let Some(elapsed) = self.elapsed(now) else { return self.mode != Mode::TerminalCount };
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= length,
            Mode::Rate | Mode::Square if !self.gate => true,
            Mode::Rate => elapsed % length != length - 1,
            Mode::Square => elapsed % length < length.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != length,
        }
    }

    /// The counting element: 0 stands for the largest count.
    fn value(&self, now: u64) -> u16 {
        let (length, modulus) = (self.length, self.modulus());
        let Some(elapsed) = self.elapsed(now) else { return self.in_digits(length % modulus) };
        let value = match self.mode {
            Mode::Rate => length - elapsed % length,
            Mode::Square => square_value(length, elapsed % length),
            // It goes on through 0 (8254, "Mode 0").
            _ => (length + modulus - elapsed % modulus) % modulus,
        };
        self.in_digits(value % modulus)
    }

    /// The first tick after `after` at which OUT rises at the end of a count.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        let Run::Counting { since } = self.run else { return None };
        let at = match self.mode {
            Mode::TerminalCount | Mode::OneShot => since.saturating_add(self.length),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => since.saturating_add(self.length + 1),
            Mode::Rate | Mode::Square => self.period_end(since, after),
        };
        (at > after).then_some(at)
    }

    /// The middle of the period, in which a line may fall that rises at its end: the first one after `after`.
    pub(super) fn next_fall(&self, after: u64) -> Option<u64> {
        let Run::Counting { since } = self.run else { return None };
        let rest = self.length / 2;
        let at = match self.mode {
            Mode::Rate | Mode::Square => {
                self.period_end(since, after.saturating_add(rest)).saturating_sub(rest)
            }
            _ => return None,
        };
        (at > after).then_some(at)
    }

    fn period_end(&self, since: u64, after: u64) -> u64 {
        let periods = after.saturating_sub(since) / self.length + 1;
        since.saturating_add(periods.saturating_mul(self.length))
    }

    // The gate

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe if gate => self.go_on(now),
            Mode::TerminalCount | Mode::SoftwareStrobe => self.hold(now),
            Mode::OneShot | Mode::HardwareStrobe if gate => self.trigger(now),
            Mode::OneShot | Mode::HardwareStrobe => {}
            Mode::Rate | Mode::Square if gate => self.start_again(now),
            Mode::Rate | Mode::Square => self.hold(now),
        }
    }

    fn hold(&mut self, now: u64) {
        if let Run::Counting { since } = self.run {
            self.run = Run::Held { elapsed: now.saturating_sub(since) };
        }
    }

    fn go_on(&mut self, now: u64) {
        if let Run::Held { elapsed } = self.run {
            self.run = Run::Counting { since: now.saturating_sub(elapsed) };
        }
    }

    fn trigger(&mut self, now: u64) {
        if let Some((length, _)) = self.waiting.take() {
            self.length = length;
        } else if self.run == Run::Waiting {
            return;
        }
        self.run = Run::Counting { since: now.saturating_add(1) };
    }

    fn start_again(&mut self, now: u64) {
        if let Some((length, _)) = self.waiting.take() {
            self.length = length;
        }
        if self.run != Run::Waiting {
            self.run = Run::Counting { since: now.saturating_add(1) };
        }
    }

    // Writing

    /// A control word for this counter that is not a latch command.
    pub(super) fn control(&mut self, word: u8) {
        self.bytes = match word >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::Both,
        };
        self.mode = match word >> 1 & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::Rate,
            3 | 7 => Mode::Square,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        };
        self.bcd = word & 1 != 0;
        self.run = Run::Waiting;
        self.length = self.modulus();
        self.waiting = None;
        self.first_written = None;
        self.first_read = false;
        self.count = None;
        self.status = None;
    }

    /// One byte of a count; `true` once the count is whole.
    pub(super) fn write(&mut self, byte: u8, now: u64) -> bool {
        let count = match (self.bytes, self.first_written.take()) {
            (Bytes::Low, _) => [byte, 0],
            (Bytes::High, _) => [0, byte],
            (Bytes::Both, Some(low)) => [low, byte],
            (Bytes::Both, None) => {
                self.first_written = Some(byte);
                // The first byte stops this mode at once, and OUT is low (8254, "Mode 0").
                if self.mode == Mode::TerminalCount {
                    self.run = Run::Waiting;
                }
                return false;
            }
        };
        self.load(self.length_of(u16::from_le_bytes(count)), now);
        true
    }

    fn load(&mut self, length: u64, now: u64) {
        match (self.mode, self.run) {
            (Mode::OneShot | Mode::HardwareStrobe, _) => self.waiting = Some((length, u64::MAX)),
            (Mode::Rate | Mode::Square, Run::Counting { since }) => {
                self.waiting = Some((length, self.period_end(since, now)));
            }
            (Mode::Rate | Mode::Square, Run::Held { .. }) => self.waiting = Some((length, u64::MAX)),
            _ => {
                self.length = length;
                self.waiting = None;
                self.run = if self.gate {
                    Run::Counting { since: now.saturating_add(1) }
                } else {
                    Run::Held { elapsed: 0 }
                };
            }
        }
    }

    /// What a count of 16 bits stands for, in ticks. A period has at least 2 (8254, "Mode 2", "Mode 3").
    fn length_of(&self, count: u16) -> u64 {
        let number = if self.bcd { from_bcd(count) % self.modulus() } else { u64::from(count) };
        match (number, self.mode) {
            (0, _) => self.modulus(),
            (1, Mode::Rate | Mode::Square) => 2,
            _ => number,
        }
    }

    const fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    // Reading

    /// The next byte: status that was latched, then a count that was latched, then the count as it is.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        if let Some(latched) = self.count {
            self.count = latched.rest();
            return latched.byte();
        }
        let [low, high] = self.value(now).to_le_bytes();
        match self.bytes {
            Bytes::Low => low,
            Bytes::High => high,
            Bytes::Both => {
                self.first_read = !self.first_read;
                if self.first_read { low } else { high }
            }
        }
    }

    /// Keeps the count until it is read; a second command before that is ignored (8254, "Counter Latch Command").
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.count.is_some() {
            return;
        }
        let (next, end) = match self.bytes {
            Bytes::Low => (0, 1),
            Bytes::High => (1, 2),
            Bytes::Both => (u8::from(self.first_read), 2),
        };
        self.first_read = false;
        self.count = Some(Latched { bytes: self.value(now).to_le_bytes(), next, end });
    }

    /// Keeps the status until it is read (8254, "Read-Back Command").
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.status.is_some() {
            return;
        }
        let bytes = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::Both => 3,
        };
        let control = (bytes << 4 | self.mode_number() << 1 | u8::from(self.bcd)) & CONTROL_BITS;
        let output = if self.output(now) { STATUS_OUTPUT } else { 0 };
        let null = if self.is_null(now) { STATUS_NULL } else { 0 };
        self.status = Some(output | null | control);
    }

    const fn mode_number(&self) -> u8 {
        match self.mode {
            Mode::TerminalCount => 0,
            Mode::OneShot => 1,
            Mode::Rate => 2,
            Mode::Square => 3,
            Mode::SoftwareStrobe => 4,
            Mode::HardwareStrobe => 5,
        }
    }

    /// Whether what was written last is not yet in the counting element.
    fn is_null(&self, now: u64) -> bool {
        let is_loading = match self.run {
            Run::Waiting => true,
            Run::Counting { since } => now < since,
            Run::Held { .. } => false,
        };
        is_loading || self.waiting.is_some()
    }

    fn in_digits(&self, value: u64) -> u16 {
        if self.bcd { to_bcd(value) } else { (value & 0xffff) as u16 }
    }
}

impl Latched {
    fn byte(self) -> u8 {
        let [low, high] = self.bytes;
        if self.next == 0 { low } else { high }
    }

    fn rest(self) -> Option<Self> {
        let next = self.next + 1;
        (next < self.end).then_some(Self { next, ..self })
    }
}

/// The count goes down by two; an odd one starts one lower, with a tick more in the high half (8254, "Mode 3").
const fn square_value(length: u64, phase: u64) -> u64 {
    let high = length.div_ceil(2);
    let step = if phase < high { phase } else { phase - high };
    (length & !1).saturating_sub(2 * step)
}

/// Digits above 9 count as what they are.
fn from_bcd(count: u16) -> u64 {
    let digit = |place: u32| u64::from(count >> (4 * place) & 0xf);
    digit(3) * 1000 + digit(2) * 100 + digit(1) * 10 + digit(0)
}

fn to_bcd(value: u64) -> u16 {
    let digit = |unit: u64| (value / unit % 10) as u16;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
