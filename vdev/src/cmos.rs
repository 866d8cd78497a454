//! Real-time clock and battery-backed memory of a PC (Motorola MC146818, with a century register).
//!
//! Time is never stored while it runs: it is the lent clock plus what the guest has set. Flags of register C are
//! worked out when somebody looks, so nothing has to happen each second unless an interrupt is enabled for it. An
//! update takes no time, and is announced long enough before. Like all of a guest's machine, the clock starts again
//! with it: it shows real time then.

mod calendar;
mod schedule;
#[cfg(test)]
mod tests;

use bitflags::bitflags;

use self::calendar::{Moment, Style, weekday};
use self::schedule::{Divider, next_match};
use crate::isa::{Byte, NS_PER_S, byte, bytewise};
use crate::pc::{CMOS_CENTURY, HOLE};
use crate::{Access, Clock, Device, Ports, Width};

/// The port that selects a register; bit 7 masks non-maskable interrupts on a PC, of which there are none.
const INDEX: u64 = 0;
const DATA: u64 = 1;
const INDEX_BITS: u8 = 0x7f;

/// Registers (MC146818, figure 12).
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;

/// Register A: an update comes within [`UPDATE_NOTICE_NS`].
const A_UPDATE: u8 = 1 << 7;
/// After power-on: the 32,768 Hz crystal, and interrupts at 1,024 Hz.
const A_DEFAULT: u8 = 0x26;
/// Register D: memory and time are valid.
const D_VALID: u8 = 1 << 7;
const UPDATE_NOTICE_NS: u64 = 244_000;

/// What firmware leaves about the machine: equipment (an x87), base memory, memory above 1 MiB in two places, above
/// 16 MiB, and above 4 GiB.
const EQUIPMENT: usize = 0x14;
const BASE_KIB: usize = 0x15;
const EXTENDED_KIB: [usize; 2] = [0x17, 0x30];
const ABOVE_16_MIB: usize = 0x34;
const ABOVE_4_GIB: usize = 0x5b;
const MIB: u64 = 1 << 20;

bitflags! {
    /// Register B (MC146818, "Register B"). The three flags of register C have the places of their enables.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Control: u8 {
        const HAS_24_HOURS = 1 << 1;
        const IS_BINARY = 1 << 2;
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        /// In B: no updates. In C: an enabled flag is set.
        const SET = 1 << 7;
        const IRQ = 1 << 7;
        const _ = 0xff;
    }
}

/// The clock's registers and memory.
#[derive(Clone, Debug)]
pub struct Cmos {
    ram_bytes: u64,
    index: u8,
    divider: Divider,
    control: Control,
    flags: Control,
    /// Everything else. Time and date are here only while the clock stands still.
    memory: [u8; 128],
    /// The guest's seconds minus the divider's.
    offset_s: i64,
    /// The guest's day of the week minus the calendar's.
    weekday_offset: i64,
    /// Up to here `flags` is worked out, in the time of [`Clock::now_ns`].
    settled_ns: u64,
    /// When an enabled event comes next.
    due_ns: Option<u64>,
}

impl Cmos {
    /// A clock that shows real time, in a machine with `ram_bytes` of RAM.
    #[must_use]
    pub fn new(ram_bytes: u64) -> Self {
        Self {
            ram_bytes,
            index: 0,
            divider: Divider::new(A_DEFAULT),
            control: Control::HAS_24_HOURS,
            flags: Control::empty(),
            memory: firmware_memory(ram_bytes),
            offset_s: 0,
            weekday_offset: 0,
            settled_ns: 0,
            due_ns: None,
        }
    }

    fn read(&mut self, clock: &dyn Clock) -> u8 {
        match self.index {
            A => self.divider.register() | if self.is_update_near(clock) { A_UPDATE } else { 0 },
            B => self.control.bits(),
            C => self.read_flags(clock),
            D => D_VALID,
            time if is_time(time) && self.is_running() => self.shown(time, clock),
            _ => self.remembered(self.index),
        }
    }

    fn write(&mut self, value: u8, clock: &dyn Clock) {
        self.settle(clock);
        match self.index {
            A => self.set_up(clock, |this| this.divider.write(value, clock)),
            B => self.set_up(clock, |this| this.write_control(value)),
            C | D => {}
            time if is_time(time) => self.set_time(time, value, clock),
            _ => self.remember(self.index, value),
        }
        self.arm(clock);
    }

    fn read_flags(&mut self, clock: &dyn Clock) -> u8 {
        self.settle(clock);
        let flags = self.flags.bits() | if self.irq() { Control::IRQ.bits() } else { 0 };
        self.flags = Control::empty();
        self.arm(clock);
        flags
    }

    // Time

    fn is_running(&self) -> bool {
        !self.control.contains(Control::SET) && self.divider.is_counting()
    }

    fn is_update_near(&self, clock: &dyn Clock) -> bool {
        let now = clock.now_ns();
        self.is_running() && self.divider.next_second(now, clock).saturating_sub(now) <= UPDATE_NOTICE_NS
    }

    fn style(&self) -> Style {
        Style {
            is_binary: self.control.contains(Control::IS_BINARY),
            has_24_hours: self.control.contains(Control::HAS_24_HOURS),
        }
    }

    /// The guest's seconds since 1970 at the moment `at_ns`.
    fn seconds(&self, at_ns: u64, clock: &dyn Clock) -> i64 {
        self.divider.seconds(at_ns, clock).saturating_add(self.offset_s)
    }

    /// A register of time or date as it is now.
    fn shown(&self, register: u8, clock: &dyn Clock) -> u8 {
        let seconds = self.seconds(clock.now_ns(), clock);
        let (moment, style) = (Moment::from_seconds(seconds), self.style());
        match register {
            SECONDS => style.number(moment.second),
            MINUTES => style.number(moment.minute),
            HOURS => style.hour(moment.hour),
            WEEKDAY => style.number((weekday(seconds) + self.weekday_offset).rem_euclid(7) + 1),
            DAY => style.number(moment.day),
            MONTH => style.number(moment.month),
            YEAR => style.number(moment.year),
            _ => style.number(moment.year.div_euclid(100)),
        }
    }

    /// Changes registers A or B. The clock stands still before with what it showed, and goes on after from what the
    /// registers hold.
    fn set_up(&mut self, clock: &dyn Clock, change: impl FnOnce(&mut Self)) {
        let was_running = self.is_running();
        if was_running {
            self.stand_still(clock);
        }
        let style = self.style();
        change(self);
        if !self.is_running() {
            return;
        }
        // A clock that only changes its digits shows the same time in the new ones.
        let style = if was_running { style } else { self.style() };
        self.go_on(style, clock);
    }

    fn set_time(&mut self, register: u8, value: u8, clock: &dyn Clock) {
        if !self.is_running() {
            return self.remember(register, value);
        }
        self.stand_still(clock);
        self.remember(register, value);
        self.go_on(self.style(), clock);
    }

    fn stand_still(&mut self, clock: &dyn Clock) {
        for register in TIME {
            let value = self.shown(register, clock);
            self.remember(register, value);
        }
    }

    /// Takes what cannot be as the nearest that can.
    fn go_on(&mut self, style: Style, clock: &dyn Clock) {
        let field = |register, least, most| style.value(self.remembered(register)).clamp(least, most);
        let moment = Moment {
            year: field(CMOS_CENTURY, 0, 99) * 100 + field(YEAR, 0, 99),
            month: field(MONTH, 1, 12),
            day: field(DAY, 1, 31),
            hour: style.hour_value(self.remembered(HOURS)).clamp(0, 23),
            minute: field(MINUTES, 0, 59),
            second: field(SECONDS, 0, 59),
        };
        let seconds = moment.seconds();
        self.weekday_offset = style.value(self.remembered(WEEKDAY)) - 1 - weekday(seconds);
        self.offset_s = seconds.saturating_sub(self.divider.seconds(clock.now_ns(), clock));
    }

    fn write_control(&mut self, value: u8) {
        self.control = Control::from_bits_retain(value);
        // To stop updates is to stop their interrupt (MC146818, "SET").
        if self.control.contains(Control::SET) {
            self.control.remove(Control::UPDATE);
        }
    }

    // Events

    /// Sets the flags of what happened since the last call.
    fn settle(&mut self, clock: &dyn Clock) {
        let now = clock.now_ns();
        for event in EVENTS {
            if !self.flags.contains(event) && self.next(event, clock).is_some_and(|at| at <= now) {
                self.flags.insert(event);
            }
        }
        self.settled_ns = now;
    }

    /// When `event` comes for the first time after the last [`Cmos::settle`].
    fn next(&self, event: Control, clock: &dyn Clock) -> Option<u64> {
        let after = self.settled_ns;
        match event {
            Control::PERIODIC => self.divider.next_periodic(after, clock),
            _ if !self.is_running() => None,
            Control::UPDATE => Some(self.divider.next_second(after, clock)),
            _ => self.next_alarm(after, clock),
        }
    }

    fn next_alarm(&self, after: u64, clock: &dyn Clock) -> Option<u64> {
        let style = self.style();
        let is_hour = |hour| is_alarm(self.remembered(HOURS_ALARM), style.hour(hour));
        let is_minute = |minute| is_alarm(self.remembered(MINUTES_ALARM), style.number(minute));
        let is_second = |second| is_alarm(self.remembered(SECONDS_ALARM), style.number(second));
        let ahead_s = next_match(self.seconds(after, clock), is_hour, is_minute, is_second)?;
        let first = self.divider.next_second(after, clock);
        Some(first.saturating_add((ahead_s - 1).saturating_mul(NS_PER_S)))
    }

    /// Works out when to be notified: once the line is high, nothing more can be told.
    fn arm(&mut self, clock: &dyn Clock) {
        self.due_ns = None;
        if !self.irq() {
            let enabled = EVENTS.into_iter().filter(|&event| self.control.contains(event));
            self.due_ns = enabled.filter_map(|event| self.next(event, clock)).min();
        }
    }

    fn remembered(&self, register: u8) -> u8 {
        self.memory[usize::from(register & INDEX_BITS)]
    }

    fn remember(&mut self, register: u8, value: u8) {
        self.memory[usize::from(register & INDEX_BITS)] = value;
    }
}

impl Device for Cmos {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        bytewise(offset, access, |offset, ask| match (offset, ask) {
            (DATA, Byte::Read) => self.read(ports.clock),
            (_, Byte::Read) => u8::MAX,
            (INDEX, Byte::Write(value)) => {
                self.index = value & INDEX_BITS;
                0
            }
            (DATA, Byte::Write(value)) => {
                self.write(value, ports.clock);
                0
            }
            _ => 0,
        })
    }

    fn poke(&mut self, offset: u64, width: Width, value: u64) -> bool {
        let selects = offset == INDEX && width == Width::Byte;
        if selects {
            self.index = byte(value, 0) & INDEX_BITS;
        }
        selects
    }

    fn irq(&self) -> bool {
        self.flags.intersects(self.control)
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        self.settle(ports.clock);
        self.arm(ports.clock);
    }

    fn alarm(&self) -> Option<u64> {
        self.due_ns
    }

    fn reset(&mut self) {
        *self = Self::new(self.ram_bytes);
    }
}

const EVENTS: [Control; 3] = [Control::UPDATE, Control::ALARM, Control::PERIODIC];
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CMOS_CENTURY];

fn is_time(register: u8) -> bool {
    TIME.contains(&register)
}

/// The two highest bits of an alarm register stand for any value (MC146818, "Alarm").
const fn is_alarm(alarm: u8, value: u8) -> bool {
    alarm >= 0xc0 || alarm == value
}

fn firmware_memory(ram_bytes: u64) -> [u8; 128] {
    let mut memory = [0; 128];
    let mut put = |at: usize, bytes: usize, value: u64| {
        let most = (1 << (8 * bytes)) - 1;
        for (index, place) in memory.iter_mut().skip(at).take(bytes).enumerate() {
            *place = byte(value.min(most), index as u64);
        }
    };
    let low = ram_bytes.min(HOLE.0);
    put(EQUIPMENT, 1, 0x02);
    put(BASE_KIB, 2, 640);
    for at in EXTENDED_KIB {
        put(at, 2, low.saturating_sub(MIB) / 1024);
    }
    put(ABOVE_16_MIB, 2, low.saturating_sub(16 * MIB) / 0x1_0000);
    put(ABOVE_4_GIB, 3, (ram_bytes - low) / 0x1_0000);
    memory
}
