//! High precision event timer (IA-PC HPET Specification 1.0a): a clock to read, and one timer that interrupts.
//!
//! The main counter is a function of the lent clock while it runs. Of the three comparators that the specification asks for the
//! first has a wire, the one of the 8254's counter 0, which legacy replacement gives to it alone. That mode is there for operating
//! systems that switch it on unasked. It is not announced, because it would take the real-time clock's wire too, for the second
//! comparator: that one and the third match, and nobody hears it. A pulse on the wire has a least length, and so has the gap
//! behind it, so a guest that asks for more interrupts than that does not flood its host.

use crate::pc::{HPET_ID, HPET_PERIOD_NS, PIT_PIN};
use crate::{Access, Clock, Device, Ports, Width};

/// Capabilities and identification, with the period in femtoseconds above (2.3.4).
const CAPABILITIES: u64 = 0x000;
const FEMTOSECONDS: u64 = 1_000_000;
/// General configuration (2.3.5): the counter runs, legacy replacement.
const CONFIGURATION: u64 = 0x010;
const ENABLE: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;
/// General interrupt status (2.3.6): a bit for each level-triggered comparator.
const STATUS: u64 = 0x020;
/// Main counter (2.3.7).
const COUNTER: u64 = 0x0f0;

/// The comparators (2.3.8): where the first is, and bytes from one to the next; within one, configuration and value.
const COMPARATORS: u64 = 0x100;
const COMPARATOR_BYTES: u64 = 0x20;
const COMPARATOR_CONFIGURATION: u64 = 0x00;
const COMPARATOR_VALUE: u64 = 0x08;
/// A comparator's configuration: level-triggered, interrupt enable, periodic.
const IS_LEVEL: u64 = 1 << 1;
const INTERRUPTS: u64 = 1 << 2;
const IS_PERIODIC: u64 = 1 << 3;
/// It has periods, and 64 bits.
const HAS_PERIODS: u64 = 1 << 4;
const HAS_64_BITS: u64 = 1 << 5;
/// The next value written is the time of the first match, not only the period; clears itself.
const SETS_VALUE: u64 = 1 << 6;
/// It works with 32 bits only.
const IS_32_BITS: u64 = 1 << 8;
/// The I/O APIC's pin that was chosen, and a bit for each that can be.
const ROUTE: u64 = 0x1f << 9;
const ROUTE_SHIFT: u32 = 9;
const ROUTES_SHIFT: u32 = 32;
/// What of the configuration can be written.
const KEPT: u64 = IS_LEVEL | INTERRUPTS | IS_PERIODIC | SETS_VALUE | IS_32_BITS;

/// The least time between two transitions of the wire.
const GAP_NS: u64 = 20_000;

/// The timer's registers and its wire.
#[derive(Clone, Debug)]
pub struct Hpet {
    is_running: bool,
    is_legacy: bool,
    status: u64,
    /// The main counter: now if it stands, at moment 0 of the clock if it runs.
    base: u64,
    /// What the main counter showed when matches were looked for.
    seen: u64,
    comparators: [Comparator; COUNT],
    /// The wire is high for an edge.
    pulse: bool,
    /// An edge is still to come.
    owes_pulse: bool,
    /// When the wire last changed.
    shown_ns: u64,
}

/// How many comparators [`HPET_ID`] tells of: the field holds the last one's number.
const COUNT: usize = (HPET_ID >> 8 & 0x1f) as usize + 1;

#[derive(Clone, Debug)]
struct Comparator {
    configuration: u64,
    /// When it matches next.
    value: u64,
    period: u64,
}

impl Comparator {
    /// With wires to these pins of the I/O APIC.
    const fn new(routes: u64) -> Self {
        let configuration = HAS_PERIODS | HAS_64_BITS | routes << ROUTES_SHIFT;
        Self { configuration, value: u64::MAX, period: 0 }
    }

    const fn is(&self, flag: u64) -> bool {
        self.configuration & flag != 0
    }

    const fn mask(&self) -> u64 {
        if self.is(IS_32_BITS) { Width::Word.mask() } else { u64::MAX }
    }

    /// Ticks that the main counter needs from `counter` until it matches.
    const fn distance(&self, counter: u64) -> u64 {
        self.value.wrapping_sub(counter) & self.mask()
    }

    /// The main counter went on from `seen` by `elapsed`: whether it matched. Periods that are over are one match.
    fn advance(&mut self, seen: u64, elapsed: u64) -> bool {
        let before = self.distance(seen.wrapping_add(1));
        if before >= elapsed {
            return false;
        }
        if self.is(IS_PERIODIC) && self.period != 0 {
            let periods = (elapsed - before - 1) / self.period + 1;
            self.value = self.value.wrapping_add(periods.wrapping_mul(self.period)) & self.mask();
        }
        true
    }

    fn read(&self, offset: u64) -> u64 {
        match offset {
            COMPARATOR_CONFIGURATION => self.configuration,
            COMPARATOR_VALUE => self.value,
            _ => 0,
        }
    }

    /// Writes `value` where `mask` has bits.
    fn write(&mut self, offset: u64, mask: u64, value: u64) {
        let merged = |old: u64| old & !mask | value;
        match offset {
            COMPARATOR_CONFIGURATION => self.configure(merged(self.configuration)),
            // The period is the last value written (2.3.9.2).
            COMPARATOR_VALUE if self.is(IS_PERIODIC) => {
                self.period = merged(self.period);
                if self.is(SETS_VALUE) {
                    self.value = merged(self.value);
                    self.configuration &= !SETS_VALUE;
                }
            }
            COMPARATOR_VALUE => self.value = merged(self.value),
            _ => {}
        }
        self.value &= self.mask();
        self.period &= self.mask();
    }

    /// A pin that cannot be chosen reads back as one that can, or 0 (2.3.8, bits 13:9).
    fn configure(&mut self, value: u64) {
        let pin = (value & ROUTE) >> ROUTE_SHIFT;
        let route = if self.configuration >> ROUTES_SHIFT >> pin & 1 != 0 { value & ROUTE } else { 0 };
        self.configuration = self.configuration & !(KEPT | ROUTE) | value & KEPT | route;
        if !self.is(IS_PERIODIC) {
            self.configuration &= !SETS_VALUE;
        }
    }
}

impl Default for Hpet {
    fn default() -> Self {
        Self {
            is_running: false,
            is_legacy: false,
            status: 0,
            base: 0,
            seen: 0,
            comparators: core::array::from_fn(|index| {
                Comparator::new(if index == 0 { 1 << PIT_PIN } else { 0 })
            }),
            pulse: false,
            owes_pulse: false,
            shown_ns: 0,
        }
    }
}

impl Hpet {
    /// A timer as after power-on: the counter stands at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the first comparator has its wire in place of the 8254.
    #[must_use]
    pub const fn replaces_pit(&self) -> bool {
        self.is_legacy
    }

    fn counter(&self, clock: &dyn Clock) -> u64 {
        if self.is_running { self.base.wrapping_add(ticks(clock)) } else { self.base }
    }

    /// The whole register at `offset`, a multiple of 8.
    fn read(&self, offset: u64, clock: &dyn Clock) -> u64 {
        match offset {
            CAPABILITIES => (HPET_PERIOD_NS * FEMTOSECONDS) << 32 | u64::from(HPET_ID),
            CONFIGURATION => u64::from(self.is_running) | u64::from(self.is_legacy) << 1,
            STATUS => self.status,
            COUNTER => self.counter(clock),
            COMPARATORS.. => {
                let comparator = place_of(offset).and_then(|index| self.comparators.get(index));
                comparator.map_or(0, |comparator| comparator.read(offset % COMPARATOR_BYTES))
            }
            _ => 0,
        }
    }

    /// Writes `value` to the register at `offset` where `mask` has bits.
    fn write(&mut self, offset: u64, mask: u64, value: u64, clock: &dyn Clock) {
        match offset {
            CONFIGURATION if mask & ENABLE != 0 => {
                self.is_legacy = value & LEGACY != 0;
                self.run(value & ENABLE != 0, clock);
            }
            STATUS => self.status &= !value,
            // To write it while it runs is to ask for anything (2.3.7).
            COUNTER if !self.is_running => {
                self.base = self.base & !mask | value;
                self.seen = self.base;
            }
            COMPARATORS.. => {
                if let Some(comparator) = place_of(offset).and_then(|index| self.comparators.get_mut(index)) {
                    comparator.write(offset % COMPARATOR_BYTES, mask, value);
                }
                self.owes_pulse &= self.is_wired() && !self.first().is(IS_LEVEL);
            }
            _ => {}
        }
    }

    /// The counter goes on from where it stood, or stands where it is.
    fn run(&mut self, on: bool, clock: &dyn Clock) {
        let now = self.counter(clock);
        self.base = if on { now.wrapping_sub(ticks(clock)) } else { now };
        self.seen = now;
        self.is_running = on;
    }

    const fn first(&self) -> &Comparator {
        &self.comparators[0]
    }

    /// Whether the first comparator reaches its wire.
    const fn is_wired(&self) -> bool {
        let pin = (self.first().configuration & ROUTE) >> ROUTE_SHIFT;
        self.first().is(INTERRUPTS) && (self.is_legacy || pin == PIT_PIN as u64)
    }

    /// Looks for matches up to now.
    fn advance(&mut self, clock: &dyn Clock) {
        let now = self.counter(clock);
        let elapsed = now.wrapping_sub(self.seen);
        let mut matches = 0;
        for (index, comparator) in self.comparators.iter_mut().enumerate() {
            if comparator.advance(self.seen, elapsed) {
                matches |= 1 << index;
                self.status |= u64::from(comparator.is(IS_LEVEL)) << index;
            }
        }
        self.seen = now;
        self.owes_pulse |= matches & 1 != 0 && self.is_wired() && !self.first().is(IS_LEVEL);
    }

    /// Makes at most one transition of an edge, so that none is lost.
    fn turn_wire(&mut self, now_ns: u64) {
        if now_ns < self.shown_ns.saturating_add(GAP_NS) || !(self.pulse || self.owes_pulse) {
            return;
        }
        self.owes_pulse &= self.pulse;
        self.pulse = !self.pulse;
        self.shown_ns = now_ns;
    }
}

impl Device for Hpet {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        // What operating systems read for the time of day.
        if let (COUNTER, Access::Read(width @ (Width::Word | Width::Double))) = (offset, access) {
            return self.counter(ports.clock) & width.mask();
        }
        let width = access.width();
        let Some(shift) = place(offset, width) else { return width.mask() };
        let register = offset & !7;
        self.advance(ports.clock);
        match access {
            Access::Read(width) => self.read(register, ports.clock) >> shift & width.mask(),
            Access::Write(width, value) => {
                self.write(register, width.mask() << shift, value << shift, ports.clock);
                0
            }
        }
    }

    fn irq(&self) -> bool {
        let level = self.first().is(IS_LEVEL) && self.status & 1 != 0 && self.is_wired();
        self.pulse || level
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.advance(ports.clock);
        self.turn_wire(ports.clock.now_ns());
    }

    fn alarm(&self) -> Option<u64> {
        let earliest = self.shown_ns.saturating_add(GAP_NS);
        if self.pulse || self.owes_pulse {
            return Some(earliest);
        }
        let first = self.first();
        if !self.is_running || !self.is_wired() || first.is(IS_LEVEL) && self.status & 1 != 0 {
            return None;
        }
        let next = self.seen.wrapping_add(1);
        let tick = next.wrapping_sub(self.base).saturating_add(first.distance(next));
        Some(tick.saturating_mul(HPET_PERIOD_NS).max(earliest))
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Ticks of a counter that has always run.
fn ticks(clock: &dyn Clock) -> u64 {
    clock.now_ns() / HPET_PERIOD_NS
}

/// Whose register `offset` is.
fn place_of(offset: u64) -> Option<usize> {
    usize::try_from(offset.checked_sub(COMPARATORS)? / COMPARATOR_BYTES).ok()
}

/// The lowest bit that an access moves of its register: a whole one, or either half (2.3.1). Nothing answers any other.
fn place(offset: u64, width: Width) -> Option<u64> {
    let is_register = matches!(width, Width::Word | Width::Double);
    (is_register && offset.is_multiple_of(width.bytes())).then_some(8 * (offset & 7))
}

#[cfg(test)]
mod tests;
