//! The timers on line 0 of a PC: the 8254's counter 0, and the first comparator of the event timer, which can have the line for
//! itself (IA-PC HPET 1.0a, 2.3.5, LEG_RT_CNF).

use crate::hpet::Hpet;
use crate::pc::HPET_OFFSET;
use crate::pit::Pit;
use crate::{Access, Device, Ports};

/// Both timers. The event timer's registers begin at [`HPET_OFFSET`].
#[derive(Clone, Debug, Default)]
pub struct PcTimers {
    pit: Pit,
    hpet: Hpet,
}

impl PcTimers {
    /// Timers as after power-on: nothing counts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The 8254, while it reaches the line.
    fn heard_pit(&self) -> Option<&Pit> {
        (!self.hpet.replaces_pit()).then_some(&self.pit)
    }
}

impl Device for PcTimers {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        match offset.checked_sub(HPET_OFFSET) {
            Some(offset) => self.hpet.access(offset, access, ports),
            None => self.pit.access(offset, access, ports),
        }
    }

    fn irq(&self) -> bool {
        self.hpet.irq() || self.heard_pit().is_some_and(Device::irq)
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.pit.notify(ports);
        self.hpet.notify(ports);
    }

    fn alarm(&self) -> Option<u64> {
        [self.hpet.alarm(), self.heard_pit().and_then(Device::alarm)].into_iter().flatten().min()
    }

    fn reset(&mut self) {
        self.pit.reset();
        self.hpet.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width;
    use crate::pl011::testing::Lent;

    fn write(timers: &mut PcTimers, lent: &mut Lent, offset: u64, width: Width, value: u64) {
        lent.with(|ports| timers.access(offset, Access::Write(width, value), ports));
    }

    /// How often the line rises from now on in so many milliseconds.
    fn rises(timers: &mut PcTimers, lent: &mut Lent, milliseconds: u64) -> u32 {
        let end = lent.now_ns + milliseconds * 1_000_000;
        let (mut count, mut before) = (0, timers.irq());
        while let Some(due) = timers.alarm().filter(|&due| due <= end) {
            lent.now_ns = due;
            lent.with(|ports| timers.notify(ports));
            count += u32::from(timers.irq() && !before);
            before = timers.irq();
        }
        lent.now_ns = end;
        count
    }

    #[test]
    fn legacy_replacement_gives_the_8254s_line_to_the_event_timer_and_back() {
        let (mut timers, mut lent) = (PcTimers::new(), Lent::default());
        for (offset, value) in [(3, 0x34), (0, 0xa9), (0, 0x04)] {
            write(&mut timers, &mut lent, offset, Width::Byte, value);
        }
        assert_eq!(rises(&mut timers, &mut lent, 10), 10, "the 8254, each millisecond");
        for (offset, value) in [(0x100, 0x4c), (0x108, 2_000_000), (0x108, 400_000), (0x010, 3)] {
            write(&mut timers, &mut lent, HPET_OFFSET + offset, Width::Double, value);
        }
        assert_eq!(rises(&mut timers, &mut lent, 18), 0, "the event timer begins later");
        assert_eq!(rises(&mut timers, &mut lent, 10), 3, "20, 24 and 28 ms");
        write(&mut timers, &mut lent, HPET_OFFSET + 0x010, Width::Word, 0);
        assert!(rises(&mut timers, &mut lent, 10) >= 10, "the 8254 again");
    }
}
