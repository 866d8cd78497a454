//! The local vector table (SDM Vol. 3A, 11.5.1): pins, timer and errors of the vCPU's own.

use super::base::Mode;
use super::page::low_byte;
use super::register::{
    INITIAL_COUNT, LVT_CMCI, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_PERFORMANCE, LVT_THERMAL, LVT_TIMER,
};
use super::{Delivery, FIRST_VECTOR, Features, LocalApic, Trigger, note};

/// Bits of an entry (SDM Vol. 3A, figure 11-8).
pub(super) const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;
const STATUS: u32 = 1 << 12;
const POLARITY: u32 = 1 << 13;
const DELIVERY: u32 = 7 << 8;
const VECTOR: u32 = 0xff;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

/// Bits of the error status register (SDM Vol. 3A, figure 11-9).
pub(super) const SEND_ILLEGAL: u32 = 1 << 5;
pub(super) const RECEIVE_ILLEGAL: u32 = 1 << 6;
pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;

impl LocalApic {
    /// The bits that a guest may set in an entry; nothing if there is no such entry.
    pub(super) fn entry_bits(&self, register: u8) -> Option<u32> {
        match register {
            LVT_CMCI if !self.features.contains(Features::CMCI) => None,
            LVT_CMCI | LVT_THERMAL | LVT_PERFORMANCE => Some(MASKED | DELIVERY | VECTOR),
            LVT_TIMER if self.features.contains(Features::TSC_DEADLINE) => {
                Some(DEADLINE | PERIODIC | MASKED | VECTOR)
            }
            LVT_TIMER => Some(PERIODIC | MASKED | VECTOR),
            LVT_LINT0 | LVT_LINT1 => Some(MASKED | LEVEL | POLARITY | DELIVERY | VECTOR),
            LVT_ERROR => Some(MASKED | VECTOR),
            _ => None,
        }
    }

    /// Bits that are the hardware's: a write neither sets them nor is wrong for having them set.
    pub(super) const READ_ONLY: u32 = STATUS | REMOTE_IRR;

    /// Writes an entry. Software-disabled, the mask cannot be cleared (SDM Vol. 3A, 11.4.7.2).
    pub(super) fn set_entry(&mut self, register: u8, value: u32, now: u64) {
        let Some(bits) = self.entry_bits(register) else { return };
        let forced = if self.is_enabled_by_software() { 0 } else { MASKED };
        let entry = value & bits | forced;
        match register {
            LVT_TIMER => {
                self.expire(now);
                self.page.set(register, entry);
                self.timer.configure(entry);
                self.page.set(INITIAL_COUNT, self.timer.initial());
            }
            LVT_LINT0 => {
                self.remote_irr &= entry & LEVEL != 0;
                self.page.set(register, entry | if self.remote_irr { REMOTE_IRR } else { 0 });
                self.publish();
            }
            LVT_LINT1 => {
                self.page.set(register, entry);
                self.publish();
            }
            _ => self.page.set(register, entry),
        }
    }

    /// Masks every entry.
    pub(super) fn mask_all(&mut self) {
        for register in LVT_TIMER..=LVT_ERROR {
            self.page.set(register, self.page.get(register) | MASKED);
        }
        if self.features.contains(Features::CMCI) {
            self.page.set(LVT_CMCI, self.page.get(LVT_CMCI) | MASKED);
        }
        self.timer.configure(self.page.get(LVT_TIMER));
    }

    /// When the timer has to be looked at, in host ticks.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let alarm = self.timer.alarm();
        (alarm != u64::MAX).then_some(alarm)
    }

    /// Lets the timer see that it is `now`; tells whether it requested its interrupt.
    #[inline]
    pub fn expire(&mut self, now: u64) -> bool {
        let is_due = self.timer.elapse(now);
        if is_due {
            self.request_local(low_byte(self.page.get(LVT_TIMER)), Trigger::Edge);
        }
        is_due
    }

    /// `IA32_TSC_DEADLINE` (SDM Vol. 3A, 11.5.4.1), in the guest's time-stamp counter.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.expire(now);
        self.timer.deadline()
    }

    /// Writes `IA32_TSC_DEADLINE`: 0 disarms. Ignored outside TSC-deadline mode.
    #[inline]
    pub fn set_tsc_deadline(&mut self, deadline: u64, now: u64) {
        self.expire(now);
        self.timer.set_deadline(deadline, now);
    }

    /// The guest's time-stamp counter is ahead of the host's ticks by `offset`, modulo 2^64; a deadline moves with it.
    pub fn set_tsc_offset(&mut self, offset: u64, now: u64) {
        self.expire(now);
        self.timer.set_offset(offset, now);
    }

    /// An interrupt of the own table, whose vector may be an illegal one.
    #[inline]
    fn request_local(&mut self, vector: u8, trigger: Trigger) {
        if vector < FIRST_VECTOR {
            self.fail(RECEIVE_ILLEGAL);
        } else {
            self.request(vector, trigger);
        }
    }

    /// Notes an error; its interrupt comes once until the guest writes the status register (SDM Vol. 3A, 11.5.3).
    #[cold]
    pub(super) fn fail(&mut self, error: u32) {
        if self.errors & error != 0 {
            return;
        }
        self.errors |= error;
        let entry = self.page.get(LVT_ERROR);
        if entry & MASKED != 0 {
            return;
        }
        let vector = low_byte(entry);
        if vector < FIRST_VECTOR {
            self.errors |= RECEIVE_ILLEGAL;
        } else {
            self.request(vector, Trigger::Edge);
        }
    }

    /// What others left in the mailbox beside vectors.
    #[cold]
    pub(super) fn take_signals(&mut self, notes: u32) {
        let has = |note: u32| notes >> note & 1 != 0;
        self.nmi |= has(note::NMI);
        self.external |= has(note::EXTERNAL);
        if has(note::LINT0) {
            self.pulse(LVT_LINT0);
        }
        if has(note::LINT1) {
            self.pulse(LVT_LINT1);
        }
        if has(note::ILLEGAL_VECTOR) {
            self.fail(RECEIVE_ILLEGAL);
        }
    }

    /// Whether a change at a pin concerns this vCPU. With the APIC disabled the pins are the CPU's INTR and NMI.
    pub(super) fn is_open(&self, register: u8) -> bool {
        self.mode == Mode::Disabled || self.page.get(register) & MASKED == 0
    }

    pub(super) fn passes_external_interrupts(&self) -> bool {
        self.mode == Mode::Disabled
            || self.is_open(LVT_LINT0) && Delivery::of(self.page.get(LVT_LINT0)) == Delivery::External
    }

    /// The pin became active. External interrupts are a level, looked at when they are asked for.
    fn pulse(&mut self, register: u8) {
        let entry = self.page.get(register);
        if self.mode == Mode::Disabled {
            self.nmi |= register == LVT_LINT1;
            return;
        }
        if entry & MASKED != 0 {
            return;
        }
        match Delivery::of(entry) {
            Delivery::Fixed if register == LVT_LINT0 && entry & LEVEL != 0 => self.look_at_wire(),
            Delivery::Fixed => self.request_local(low_byte(entry), Trigger::Edge),
            Delivery::Nmi => self.nmi = true,
            _ => {}
        }
    }

    /// LINT0 as a level with a vector of its own: requested when the wire is active and the last one has ended.
    pub(super) fn look_at_wire(&mut self) {
        let entry = self.page.get(LVT_LINT0);
        let is_level = entry & (MASKED | LEVEL) == LEVEL && Delivery::of(entry) == Delivery::Fixed;
        let vector = low_byte(entry);
        if self.mode == Mode::Disabled || !is_level || self.remote_irr || !self.apics.intr() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.fail(RECEIVE_ILLEGAL);
            return;
        }
        self.remote_irr = true;
        self.page.set(LVT_LINT0, entry | REMOTE_IRR);
        self.request(vector, Trigger::Level);
    }

    /// The end of a level-triggered interrupt: whether it was LINT0's, which no I/O APIC has to hear of.
    pub(super) fn ends_local_level(&mut self, vector: u8) -> bool {
        let entry = self.page.get(LVT_LINT0);
        if !self.remote_irr || low_byte(entry) != vector {
            return false;
        }
        self.remote_irr = false;
        self.page.set(LVT_LINT0, entry & !REMOTE_IRR);
        self.look_at_wire();
        true
    }
}
