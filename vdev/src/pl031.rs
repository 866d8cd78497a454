//! Arm PL031 real-time clock (Arm DDI 0224): seconds since 1970, one alarm.
//!
//! The counter runs from power-on, as on QEMU's `virt`. It is never stored: it is the lent clock plus an offset
//! that the guest sets by loading the counter, so nothing has to happen each second.

use crate::{Access, Clock, Device, Ports};

/// Data: the counter (DDI 0224, 3.3.1). The other registers follow in the manual's order.
const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;
/// The first of PeriphID0-3 and PCellID0-3 (DDI 0224, 3.3.9 and 3.3.10).
const ID: u64 = 0xfe0;
/// Part 031, designer Arm, revision 1; a PrimeCell.
const IDS: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const NS_PER_S: u64 = 1_000_000_000;

/// The clock's registers.
#[derive(Clone, Debug, Default)]
pub struct Pl031 {
    /// Counter minus real seconds, modulo 2^32.
    offset: u32,
    matches: u32,
    loaded: u32,
    unmasked: bool,
    raised: bool,
    /// When the counter reaches `matches`, in the time of [`Clock::now_ns`].
    due_ns: Option<u64>,
}

impl Pl031 {
    /// A clock that shows real time and has no alarm set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self, offset: u64, clock: &dyn Clock) -> u32 {
        match offset {
            DR => self.counter(clock),
            MR => self.matches,
            LR => self.loaded,
            // The counter cannot be stopped once started (DDI 0224, 3.3.4), and it starts with the machine.
            CR => 1,
            IMSC => u32::from(self.unmasked),
            RIS => u32::from(self.raised),
            MIS => u32::from(self.irq()),
            ID..=0xfff => identity(&IDS, offset),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, clock: &dyn Clock) {
        match offset {
            MR => {
                self.matches = value;
                self.arm(clock);
            }
            LR => {
                self.loaded = value;
                self.offset = value.wrapping_sub(low_word(real_seconds(clock)));
                self.arm(clock);
            }
            IMSC => self.unmasked = value & 1 != 0,
            ICR if value & 1 != 0 => self.raised = false,
            _ => {}
        }
    }

    fn counter(&self, clock: &dyn Clock) -> u32 {
        low_word(real_seconds(clock)).wrapping_add(self.offset)
    }

    /// Works out when the counter will next equal the match register; now counts.
    fn arm(&mut self, clock: &dyn Clock) {
        let ahead = self.matches.wrapping_sub(self.counter(clock));
        let at_s = real_seconds(clock).saturating_add(u64::from(ahead));
        self.due_ns = Some(at_s.saturating_mul(NS_PER_S).saturating_sub(clock.epoch_ns()));
        self.fire_if_due(clock);
    }

    fn fire_if_due(&mut self, clock: &dyn Clock) {
        if self.due_ns.is_some_and(|due| due <= clock.now_ns()) {
            self.due_ns = None;
            self.raised = true;
        }
    }
}

impl Device for Pl031 {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        self.fire_if_due(ports.clock);
        match access {
            Access::Read(_) => u64::from(self.read(offset, ports.clock)),
            Access::Write(_, value) => {
                self.write(offset, low_word(value), ports.clock);
                0
            }
        }
    }

    fn irq(&self) -> bool {
        self.raised && self.unmasked
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.fire_if_due(ports.clock);
    }

    /// A masked alarm wakes nobody: the raw status is worked out when it is read.
    fn alarm(&self) -> Option<u64> {
        self.due_ns.filter(|_| self.unmasked)
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

fn real_seconds(clock: &dyn Clock) -> u64 {
    clock.epoch_ns().saturating_add(clock.now_ns()) / NS_PER_S
}

const fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// One byte of a PrimeCell's eight identification registers, which end a 4 KiB window.
pub(crate) fn identity(ids: &[u8; 8], offset: u64) -> u32 {
    if offset.is_multiple_of(4) { u32::from(ids[(offset >> 2 & 7) as usize]) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width;
    use crate::pl011::testing::Lent;

    const NOON: u64 = 1_700_000_000;

    fn read(rtc: &mut Pl031, lent: &mut Lent, offset: u64) -> u64 {
        lent.with(|ports| rtc.access(offset, Access::Read(Width::Word), ports))
    }

    fn write(rtc: &mut Pl031, lent: &mut Lent, offset: u64, value: u64) {
        lent.with(|ports| rtc.access(offset, Access::Write(Width::Word, value), ports));
    }

    fn lent() -> Lent {
        Lent { epoch_ns: NOON * NS_PER_S + 250_000_000, ..Lent::default() }
    }

    #[test]
    fn it_shows_real_time_from_power_on() {
        let (mut rtc, mut lent) = (Pl031::new(), lent());
        assert_eq!(read(&mut rtc, &mut lent, DR), NOON);
        lent.now_ns = 750_000_000;
        assert_eq!(read(&mut rtc, &mut lent, DR), NOON + 1);
        assert_eq!(read(&mut rtc, &mut lent, CR), 1);
        assert!(rtc.alarm().is_none());
    }

    #[test]
    fn a_load_moves_the_counter_and_the_alarm_with_it() {
        let (mut rtc, mut lent) = (Pl031::new(), lent());
        write(&mut rtc, &mut lent, LR, 100);
        assert_eq!(read(&mut rtc, &mut lent, DR), 100);
        assert_eq!(read(&mut rtc, &mut lent, LR), 100);
        write(&mut rtc, &mut lent, MR, 103);
        write(&mut rtc, &mut lent, IMSC, 1);
        assert_eq!(rtc.alarm(), Some(2_750_000_000));
        lent.now_ns = 2_749_999_999;
        lent.with(|ports| rtc.notify(ports));
        assert!(!rtc.irq());
        lent.now_ns += 1;
        lent.with(|ports| rtc.notify(ports));
        assert!(rtc.irq());
        assert_eq!(read(&mut rtc, &mut lent, DR), 103);
        assert!(rtc.alarm().is_none());
        write(&mut rtc, &mut lent, ICR, 1);
        assert!(!rtc.irq());
    }

    #[test]
    fn a_masked_match_shows_raw_status_only_and_asks_for_no_alarm() {
        let (mut rtc, mut lent) = (Pl031::new(), lent());
        write(&mut rtc, &mut lent, MR, NOON);
        assert_eq!(read(&mut rtc, &mut lent, RIS), 1);
        assert_eq!(read(&mut rtc, &mut lent, MIS), 0);
        assert!(!rtc.irq());
        write(&mut rtc, &mut lent, MR, NOON + 5);
        assert!(rtc.alarm().is_none());
        write(&mut rtc, &mut lent, IMSC, 1);
        assert!(rtc.irq());
        assert_eq!(rtc.alarm(), Some(4_750_000_000));
        rtc.reset();
        assert!(!rtc.irq());
    }

    #[test]
    fn identification_is_that_of_a_pl031() {
        let (mut rtc, mut lent) = (Pl031::new(), lent());
        let ids: [u64; 8] = core::array::from_fn(|i| read(&mut rtc, &mut lent, ID + 4 * i as u64));
        assert_eq!(ids, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn no_access_panics() {
        let (mut rtc, mut lent) = (Pl031::new(), lent());
        lent.epoch_ns = u64::MAX;
        for offset in 0..0x1100 {
            read(&mut rtc, &mut lent, offset);
            write(&mut rtc, &mut lent, offset, u64::MAX);
        }
    }
}
