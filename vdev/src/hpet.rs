//! High precision event timer (IA-PC HPET Specification 1.0a): a clock to read, and nothing else.
//!
//! The main counter is a function of the lent clock while it runs. The three comparators that the specification asks
//! for are there as registers: they can be routed to no interrupt, by themselves or in place of older timers, and
//! never match. So nothing happens here by itself.

use crate::pc::{HPET_ID, HPET_PERIOD_NS};
use crate::{Access, Clock, Device, Ports, Width};

/// Capabilities and identification, with the period in femtoseconds above (2.3.4).
const CAPABILITIES: u64 = 0x000;
const FEMTOSECONDS: u64 = 1_000_000;
/// General configuration (2.3.5); the counter runs.
const CONFIGURATION: u64 = 0x010;
const ENABLE: u64 = 1 << 0;
/// Main counter (2.3.7). General interrupt status, before it, is 0 for ever.
const COUNTER: u64 = 0x0f0;

/// The comparators (2.3.8): where the first is, and bytes from one to the next; within one, configuration and value.
const COMPARATORS: u64 = 0x100;
const COMPARATOR_BYTES: u64 = 0x20;
const COMPARATOR_CONFIGURATION: u64 = 0x00;
const COMPARATOR_VALUE: u64 = 0x08;
/// A comparator's configuration: it has 64 bits. No periods, no messages, an empty set of interrupts.
const HAS_64_BITS: u64 = 1 << 5;
/// It works with 32 bits only.
const IS_32_BITS: u64 = 1 << 8;
/// What of the configuration can be written: level-triggered, interrupt enable, 32 bits.
const COMPARATOR_KEPT: u64 = 1 << 1 | 1 << 2 | IS_32_BITS;

/// The timer's registers.
#[derive(Clone, Debug, Default)]
pub struct Hpet {
    is_running: bool,
    /// The main counter: now if it stands, at moment 0 of the clock if it runs.
    base: u64,
    comparators: [Comparator; COUNT],
}

/// How many comparators [`HPET_ID`] tells of: the field holds the last one's number.
const COUNT: usize = (HPET_ID >> 8 & 0x1f) as usize + 1;

#[derive(Clone, Debug)]
struct Comparator {
    configuration: u64,
    value: u64,
}

impl Default for Comparator {
    fn default() -> Self {
        Self { configuration: HAS_64_BITS, value: u64::MAX }
    }
}

impl Hpet {
    /// A timer as after power-on: the counter stands at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn counter(&self, clock: &dyn Clock) -> u64 {
        if self.is_running { self.base.wrapping_add(ticks(clock)) } else { self.base }
    }

    /// The whole register at `offset`, a multiple of 8.
    fn read(&self, offset: u64, clock: &dyn Clock) -> u64 {
        match offset {
            CAPABILITIES => (HPET_PERIOD_NS * FEMTOSECONDS) << 32 | u64::from(HPET_ID),
            CONFIGURATION => u64::from(self.is_running),
            COUNTER => self.counter(clock),
            COMPARATORS.. => self.read_comparator(offset - COMPARATORS),
            _ => 0,
        }
    }

    fn read_comparator(&self, offset: u64) -> u64 {
        let index = usize::try_from(offset / COMPARATOR_BYTES).ok();
        let Some(comparator) = index.and_then(|index| self.comparators.get(index)) else { return 0 };
        match offset % COMPARATOR_BYTES {
            COMPARATOR_CONFIGURATION => comparator.configuration,
            COMPARATOR_VALUE => comparator.value,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, clock: &dyn Clock) {
        match offset {
            CONFIGURATION => self.run(value & ENABLE != 0, clock),
            // To write it while it runs is to ask for anything (2.3.7).
            COUNTER if !self.is_running => self.base = value,
            COMPARATORS.. => self.write_comparator(offset - COMPARATORS, value),
            _ => {}
        }
    }

    /// The counter goes on from where it stood, or stands where it is.
    fn run(&mut self, on: bool, clock: &dyn Clock) {
        let now = self.counter(clock);
        self.base = if on { now.wrapping_sub(ticks(clock)) } else { now };
        self.is_running = on;
    }

    fn write_comparator(&mut self, offset: u64, value: u64) {
        let index = usize::try_from(offset / COMPARATOR_BYTES).ok();
        let Some(comparator) = index.and_then(|index| self.comparators.get_mut(index)) else { return };
        match offset % COMPARATOR_BYTES {
            COMPARATOR_CONFIGURATION => comparator.configuration = HAS_64_BITS | value & COMPARATOR_KEPT,
            COMPARATOR_VALUE => comparator.value = value,
            _ => {}
        }
        if comparator.configuration & IS_32_BITS != 0 {
            comparator.value &= Width::Word.mask();
        }
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
        let whole = self.read(register, ports.clock);
        match access {
            Access::Read(width) => whole >> shift & width.mask(),
            Access::Write(width, value) => {
                self.write(register, whole & !(width.mask() << shift) | value << shift, ports.clock);
                0
            }
        }
    }

    fn irq(&self) -> bool {
        false
    }

    fn notify(&mut self, _: &mut Ports<'_>) {}

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Ticks of a counter that has always run.
fn ticks(clock: &dyn Clock) -> u64 {
    clock.now_ns() / HPET_PERIOD_NS
}

/// The lowest bit that an access moves of its register: a whole one, or either half (2.3.1). Nothing answers any other.
fn place(offset: u64, width: Width) -> Option<u64> {
    let is_register = matches!(width, Width::Word | Width::Double);
    (is_register && offset.is_multiple_of(width.bytes())).then_some(8 * (offset & 7))
}

#[cfg(test)]
mod tests;
