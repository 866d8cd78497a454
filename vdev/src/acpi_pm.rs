//! ACPI fixed hardware (ACPI 6.5, 4.8.3): power management timer, PM1 events and control, soft off.
//!
//! The machine is always in ACPI mode: there is no system management mode to change it. The timer is a function of
//! the lent clock; the carry of its highest bit is worked out when somebody looks, unless its interrupt is enabled.
//! There are no buttons and no sleep states other than S5.

use bitflags::bitflags;

use crate::isa::{Byte, byte, bytewise, moment_ns, ticks};
use crate::pc::{ACPI_PM_TIMER, ACPI_PM1_CONTROL, ACPI_PM1_EVENT, ACPI_S5_SLEEP_TYPE, PM_TIMER_HZ};
use crate::{Access, Clock, Device, Ports, Width, Wish};

/// Status, then enable, each 2 bytes (ACPI 6.5, 4.8.3.1).
const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = (ACPI_PM1_CONTROL - ACPI_PM1_EVENT) as u64;
const TIMER: u64 = (ACPI_PM_TIMER - ACPI_PM1_EVENT) as u64;

/// The timer has 24 bits; it tells of each change of the highest one.
const TIMER_MASK: u64 = 0xff_ffff;
const TIMER_HALF: u32 = 23;

/// Control, low byte: interrupts come as SCI, always; a bus master ends C3.
const CONTROL_SCI: u8 = 1 << 0;
const CONTROL_BUS_MASTER: u8 = 1 << 1;
/// Control, high byte: which sleep state, and go there.
const SLEEP_TYPE: u8 = 7 << 2;
const SLEEP: u8 = 1 << 5;

bitflags! {
    /// Status and enable (ACPI 6.5, tables 4.11 and 4.12).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Events: u16 {
        const TIMER = 1 << 0;
        const GLOBAL = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        const SLEEP_BUTTON = 1 << 9;
        const REAL_TIME_CLOCK = 1 << 10;
    }
}

/// The fixed hardware's registers.
#[derive(Clone, Debug, Default)]
pub struct AcpiPm {
    status: Events,
    enabled: Events,
    /// What of the control register can be written: one bit of the low byte, the sleep type of the high one.
    bus_master: u8,
    sleep_type: u8,
    /// How often the timer's highest bit has changed, up to the last look.
    halves: u64,
}

impl AcpiPm {
    /// Fixed hardware as after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self, offset: u64, clock: &dyn Clock) -> u8 {
        let [status, enabled] = [self.status, self.enabled].map(|events| events.bits().to_le_bytes());
        match offset {
            STATUS => status[0],
            1 => status[1],
            ENABLE => enabled[0],
            3 => enabled[1],
            CONTROL => CONTROL_SCI | self.bus_master,
            5 => self.sleep_type,
            TIMER..=11 => byte(u64::from(timer(clock)), offset - TIMER),
            _ => u8::MAX,
        }
    }

    fn write(&mut self, offset: u64, value: u8, ports: &mut Ports<'_>) {
        let at = |byte: u64| Events::from_bits_truncate(u16::from(value) << (8 * byte));
        match offset {
            STATUS | 1 => self.status.remove(at(offset)),
            ENABLE => self.enabled = self.enabled.difference(Events::from_bits_retain(0x00ff)).union(at(0)),
            3 => self.enabled = self.enabled.difference(Events::from_bits_retain(0xff00)).union(at(1)),
            CONTROL => self.bus_master = value & CONTROL_BUS_MASTER,
            5 => self.write_sleep(value, ports),
            _ => {}
        }
    }

    fn write_sleep(&mut self, value: u8, ports: &mut Ports<'_>) {
        self.sleep_type = value & SLEEP_TYPE;
        if value & SLEEP != 0 && self.sleep_type == ACPI_S5_SLEEP_TYPE << 2 {
            ports.wish = Some(Wish::PowerOff);
        }
    }

    fn settle(&mut self, clock: &dyn Clock) {
        let halves = ticks(clock.now_ns(), PM_TIMER_HZ) >> TIMER_HALF;
        if halves != self.halves {
            self.halves = halves;
            self.status.insert(Events::TIMER);
        }
    }
}

impl Device for AcpiPm {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        // What operating systems read for the time of day.
        if (offset, access) == (TIMER, Access::Read(Width::Word)) {
            return u64::from(timer(ports.clock));
        }
        self.settle(ports.clock);
        bytewise(offset, access, |offset, ask| match ask {
            Byte::Read => self.read(offset, ports.clock),
            Byte::Write(value) => {
                self.write(offset, value, ports);
                0
            }
        })
    }

    fn irq(&self) -> bool {
        self.status.intersects(self.enabled)
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.settle(ports.clock);
    }

    fn alarm(&self) -> Option<u64> {
        let wanted = self.enabled.difference(self.status).contains(Events::TIMER);
        wanted.then(|| moment_ns(self.halves.saturating_add(1) << TIMER_HALF, PM_TIMER_HZ))
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

fn timer(clock: &dyn Clock) -> u32 {
    (ticks(clock.now_ns(), PM_TIMER_HZ) & TIMER_MASK) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::NS_PER_S;
    use crate::pl011::testing::Lent;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Bench {
        acpi: AcpiPm,
        lent: Lent,
    }

    impl Bench {
        fn read(&mut self, offset: u64, width: Width) -> u64 {
            self.lent.with(|ports| self.acpi.access(offset, Access::Read(width), ports))
        }

        fn write(&mut self, offset: u64, width: Width, value: u64) {
            self.lent.with(|ports| self.acpi.access(offset, Access::Write(width, value), ports));
        }

        fn notify(&mut self) -> bool {
            self.lent.with(|ports| self.acpi.notify(ports));
            self.acpi.irq()
        }
    }

    #[test]
    fn the_timer_counts_24_bits_of_real_time() {
        let mut bench = Bench::default();
        for (now_ns, count) in [(0, 0), (NS_PER_S, 3_579_545), (5 * NS_PER_S, 17_897_725 - 0x100_0000)] {
            bench.lent.now_ns = now_ns;
            assert_eq!(bench.read(TIMER, Width::Word), count);
        }
        let bytes = [0, 1, 2, 3].map(|byte| bench.read(TIMER + byte, Width::Byte) << (8 * byte));
        assert_eq!(bytes.into_iter().sum::<u64>(), bench.read(TIMER, Width::Word));
        bench.write(TIMER, Width::Word, 0);
        assert_ne!(bench.read(TIMER, Width::Word), 0);
    }

    #[test]
    fn the_machine_is_always_in_acpi_mode() {
        let mut bench = Bench::default();
        assert_eq!(bench.read(CONTROL, Width::Half), 1);
        bench.write(CONTROL, Width::Half, 0xdffe);
        assert_eq!(bench.read(CONTROL, Width::Half), 0x1c03);
        assert_eq!(bench.lent.wish, None);
    }

    #[test]
    fn only_soft_off_is_a_sleep_state_and_it_is_a_wish() {
        let mut bench = Bench::default();
        for sleep_type in 0..8 {
            bench.write(CONTROL, Width::Half, sleep_type << 10 | 1 << 13 | 1);
            let wish = (sleep_type == 0).then_some(Wish::PowerOff);
            assert_eq!(bench.lent.wish, wish, "sleep type {sleep_type}");
        }
        bench.write(CONTROL + 1, Width::Byte, 0x20);
        assert_eq!(bench.lent.wish, Some(Wish::PowerOff));
        bench.write(CONTROL, Width::Half, 1);
        assert_eq!(bench.lent.wish, None);
        assert_eq!(bench.read(CONTROL, Width::Half), 1);
    }

    #[test]
    fn each_change_of_the_timers_highest_bit_raises_the_line_until_it_is_cleared() {
        let mut bench = Bench::default();
        bench.write(ENABLE, Width::Half, 1);
        for half in 1..5 {
            let due = bench.acpi.alarm().unwrap();
            assert_eq!(due, moment_ns(half << 23, PM_TIMER_HZ));
            bench.lent.now_ns = due - 1;
            assert!(!bench.notify());
            bench.lent.now_ns = due;
            assert!(bench.notify());
            assert_eq!(bench.acpi.alarm(), None);
            assert_eq!(bench.read(STATUS, Width::Half), 1);
            bench.write(STATUS, Width::Half, 1);
            assert!(!bench.acpi.irq());
        }
    }

    #[test]
    fn without_its_interrupt_the_carry_is_status_only() {
        let mut bench = Bench::default();
        assert_eq!(bench.acpi.alarm(), None);
        bench.lent.now_ns = 3 * NS_PER_S;
        assert_eq!(bench.read(STATUS, Width::Word), 1);
        assert!(!bench.acpi.irq());
        bench.write(ENABLE, Width::Half, 1);
        assert!(bench.acpi.irq());
        bench.acpi.reset();
        assert!(!bench.acpi.irq());
    }

    #[test]
    fn enables_keep_the_fixed_events_byte_by_byte() {
        let mut bench = Bench::default();
        bench.write(ENABLE, Width::Byte, 0xff);
        assert_eq!(bench.read(ENABLE, Width::Half), 0x0021);
        bench.write(ENABLE + 1, Width::Byte, 0xff);
        assert_eq!(bench.read(STATUS, Width::Word), 0x0721_0000);
        bench.write(ENABLE, Width::Byte, 0);
        assert_eq!(bench.read(ENABLE, Width::Half), 0x0700);
        bench.write(STATUS, Width::Word, 0xffff_ffff);
        assert_eq!(bench.read(STATUS, Width::Word), 0x0721_0000);
    }

    proptest! {
        #[test]
        fn the_timer_never_goes_back(moments in prop::collection::vec(0u64..2 * NS_PER_S, 1..50)) {
            let (mut bench, mut last) = (Bench::default(), 0);
            for later in moments {
                bench.lent.now_ns += later;
                let now = bench.read(TIMER, Width::Word);
                prop_assert!(now.wrapping_sub(last) & TIMER_MASK <= TIMER_MASK / 2);
                prop_assert!((now.wrapping_sub(last) & TIMER_MASK).abs_diff(ticks(later, PM_TIMER_HZ)) <= 1);
                last = now;
            }
        }

        #[test]
        fn no_access_panics(steps in prop::collection::vec((0u64..20, 0usize..8, any::<u64>()), 100)) {
            let mut bench = Bench::default();
            let widths = [Width::Byte, Width::Half, Width::Word, Width::Double];
            for (offset, kind, value) in steps {
                bench.lent.now_ns = value;
                let width = widths[kind % 4];
                if kind < 4 { bench.read(offset, width); } else { bench.write(offset, width, value & width.mask()); }
                bench.notify();
                prop_assert!(bench.acpi.alarm().is_none_or(|due| due > value));
            }
        }
    }
}
