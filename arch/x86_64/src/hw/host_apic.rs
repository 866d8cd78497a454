//! The local APIC of the CPU that executes this (SDM Vol. 3A, 11; APM Vol. 2, 16): our timer, the interrupts that CPUs send each
//! other, and acknowledgement. No guest ever reaches it.
//!
//! In x2APIC mode wherever the CPU has it: one instruction per access, no page.

use super::mmio::Page;
use super::{cpuid, fence_stores, read_msr, read_tsc, take_interrupt, wait_for_interrupt, write_msr};

/// The vectors of host interrupts. The high four bits are the priority.
pub mod vector {
    /// The console's UART.
    pub const UART: u8 = 0x40;
    /// [`super::HostApic::set_deadline`].
    pub const TIMER: u8 = 0x50;
    /// Another CPU wants this one to look at what its vCPU is to be told.
    pub const NUDGE: u8 = 0x60;
    /// Another CPU wants this one back from its guest.
    pub const KICK: u8 = 0x61;
    /// No interrupt after all; it is not acknowledged.
    pub const SPURIOUS: u8 = 0xff;
}

/// `IA32_APIC_BASE`: enabled, in x2APIC mode.
const APIC_BASE: u32 = 0x1b;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BASE_MASK: u64 = 0x000f_ffff_ffff_f000;
/// The first of the x2APIC's registers; the others follow in the order of the page, 16 bytes each there.
const FIRST_MSR: u32 = 0x800;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers, by their number in x2APIC mode less 0x800.
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TPR: u32 = 0x08;
    pub(super) const EOI: u32 = 0x0b;
    pub(super) const SVR: u32 = 0x0f;
    pub(super) const ICR: u32 = 0x30;
    pub(super) const ICR_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_THERMAL: u32 = 0x33;
    pub(super) const LVT_PERFORMANCE: u32 = 0x34;
    pub(super) const LVT_LINT0: u32 = 0x35;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
}

/// SVR: the APIC is on.
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// LVT: masked; timer mode TSC-deadline.
const MASKED: u32 = 1 << 16;
const BY_DEADLINE: u32 = 2 << 17;
const DELIVERY_MODE: u32 = 7 << 8;
const SMI: u32 = 2 << 8;
/// DCR: divide by 1.
const DIVIDE_BY_1: u32 = 0xb;
/// ICR: delivery modes, level asserted, not yet sent.
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const SEND_PENDING: u32 = 1 << 12;
/// How often a busy ICR is looked at before the interrupt is sent all the same.
const MOST_POLLS: u32 = 100_000;

/// How the timer is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Timer {
    /// By the time stamp counter itself.
    Deadline,
    /// By a counter of its own that counts down once: its ticks for 2^32 of the time stamp counter.
    OneShot { ticks: u64 },
}

/// The local APIC, switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostApic {
    /// The registers' page; none in x2APIC mode.
    page: Option<Page>,
    timer: Timer,
}

impl HostApic {
    /// Switches this CPU's local APIC on: nothing is pending afterwards but what other CPUs send.
    /// `timer_ratio`: ticks of the APIC timer for 2^32 of the time stamp counter, by which it is set on CPUs that cannot
    /// compare the counter itself.
    ///
    /// # Safety
    /// The page that `IA32_APIC_BASE` names is mapped, uncached, unless the CPU has an x2APIC.
    #[must_use]
    pub unsafe fn enable(timer_ratio: u64) -> Self {
        const HAS_X2APIC: u32 = 1 << 21;
        const HAS_DEADLINE: u32 = 1 << 24;
        let features = cpuid(1, 0).ecx;
        let base = read_msr(APIC_BASE);
        let page = if features & HAS_X2APIC != 0 {
            // SAFETY: the x2APIC's registers rule interrupts only. A CPU goes there by way of the older mode.
            unsafe { write_msr(APIC_BASE, base | ENABLED) };
            // SAFETY: as above.
            unsafe { write_msr(APIC_BASE, base | ENABLED | X2APIC) };
            None
        } else {
            // SAFETY: as above.
            unsafe { write_msr(APIC_BASE, base | ENABLED) };
            // SAFETY: the caller mapped it.
            Some(unsafe { Page::new(base & BASE_MASK) })
        };
        let timer = if features & HAS_DEADLINE != 0 {
            Timer::Deadline
        } else {
            Timer::OneShot { ticks: timer_ratio }
        };
        let apic = Self { page, timer };
        apic.set_up();
        apic
    }

    fn set_up(&self) {
        self.write(register::TPR, 0);
        self.write(register::SVR, SOFTWARE_ENABLE | u32::from(vector::SPURIOUS));
        // The 8259s are masked, and an error is nothing that we could mend.
        self.write(register::LVT_LINT0, MASKED);
        self.write(register::LVT_ERROR, MASKED);
        let last_entry = self.read(register::VERSION) >> 16 & 0xff;
        for (register, entry) in [(register::LVT_PERFORMANCE, 4), (register::LVT_THERMAL, 5)] {
            // What goes to firmware by SMI is firmware's.
            if entry <= last_entry && self.read(register) & DELIVERY_MODE != SMI {
                self.write(register, MASKED);
            }
        }
        self.write(register::DIVIDE, DIVIDE_BY_1);
        self.stop_counting();
        // What firmware left in service: at most one for each vector.
        for _ in 0..=u8::MAX {
            self.eoi();
            if (0x10..0x18).all(|word| self.read(word) == 0) {
                break;
            }
        }
    }

    /// The APIC's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        let id = self.read(register::ID);
        if self.page.is_some() { id >> 24 } else { id }
    }

    /// The interrupt in service is done with.
    #[inline]
    pub fn eoi(&self) {
        self.write(register::EOI, 0);
    }

    /// Acknowledges `vector`, which was taken from the CPU by other means than [`HostApic::take_interrupt`].
    #[inline]
    pub fn acknowledge(&self, vector: u8) {
        if vector != vector::SPURIOUS {
            self.eoi();
        }
    }

    /// The vector of one interrupt that waits, acknowledged.
    #[inline]
    #[must_use]
    pub fn take_interrupt(&self) -> Option<u8> {
        take_interrupt().inspect(|vector| self.acknowledge(*vector))
    }

    /// Waits for an interrupt and acknowledges it; `None` if something else ended the wait.
    #[must_use]
    pub fn wait_for_interrupt(&self) -> Option<u8> {
        wait_for_interrupt().inspect(|vector| self.acknowledge(*vector))
    }

    /// Sends an interrupt to the CPU whose APIC has the number `to`.
    #[inline]
    pub fn send(&self, to: u32, vector: u8) {
        self.command(to, ASSERT | u32::from(vector));
    }

    /// Sends INIT: the CPU waits for a start-up.
    pub fn send_init(&self, to: u32) {
        self.command(to, ASSERT | INIT);
    }

    /// Sends a start-up: the CPU begins in real mode at the page `page`.
    pub fn send_startup(&self, to: u32, page: u8) {
        self.command(to, ASSERT | STARTUP | u32::from(page));
    }

    fn command(&self, to: u32, command: u32) {
        let Some(page) = &self.page else {
            // The interrupt would overtake stores before it in this mode.
            fence_stores();
            // SAFETY: an interrupt or a start-up of another CPU; what that executes is ours.
            unsafe { write_msr(FIRST_MSR + register::ICR, u64::from(to) << 32 | u64::from(command)) };
            return;
        };
        for _ in 0..MOST_POLLS {
            if self.read(register::ICR) & SEND_PENDING == 0 {
                break;
            }
        }
        page.write32(register::ICR_HIGH as usize * 16, to << 24);
        page.write32(register::ICR as usize * 16, command);
    }

    /// Makes [`vector::TIMER`] come when the time stamp counter has passed `at`, or rather early than late where the timer
    /// counts for itself; never without `at`.
    #[inline]
    pub fn set_deadline(&self, at: Option<u64>) {
        match self.timer {
            Timer::Deadline => {
                // SAFETY: a time. 0 means none, and 1 has always passed.
                unsafe { write_msr(TSC_DEADLINE, at.map_or(0, |at| at.max(1))) };
            }
            Timer::OneShot { ticks } => {
                let count = at.map_or(0, |at| one_shot(at.saturating_sub(read_tsc()), ticks));
                self.write(register::INITIAL_COUNT, count);
            }
        }
    }

    /// The timer's counter, for calibration; it counts down from [`HostApic::start_counting`].
    #[must_use]
    pub fn count(&self) -> u32 {
        self.read(register::CURRENT_COUNT)
    }

    /// Makes the timer what [`HostApic::set_deadline`] needs; none is set.
    pub fn stop_counting(&self) {
        let mode = if self.timer == Timer::Deadline { BY_DEADLINE } else { 0 };
        self.write(register::LVT_TIMER, mode | u32::from(vector::TIMER));
        self.set_deadline(None);
    }

    /// Starts the counter at its largest value, until [`HostApic::stop_counting`].
    pub fn start_counting(&self) {
        self.write(register::LVT_TIMER, MASKED);
        self.write(register::INITIAL_COUNT, u32::MAX);
    }

    fn read(&self, register: u32) -> u32 {
        match &self.page {
            Some(page) => page.read32(register as usize * 16),
            None => (read_msr(FIRST_MSR + register) & 0xffff_ffff) as u32,
        }
    }

    fn write(&self, register: u32, value: u32) {
        match &self.page {
            Some(page) => page.write32(register as usize * 16, value),
            // SAFETY: the x2APIC's registers rule interrupts only, and our vectors have stubs.
            None => unsafe { write_msr(FIRST_MSR + register, value.into()) },
        }
    }
}

/// The timer's ticks for `delta` of the time stamp counter, one too many rather than too few: waking up too early would mean to
/// sleep again. 0 would stop it.
fn one_shot(delta: u64, ticks: u64) -> u32 {
    let count = ((u128::from(delta) * u128::from(ticks)) >> 32).saturating_add(1);
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::{Leaf, queue_interrupt, set_cpuid};

    fn x2apic() -> HostApic {
        set_cpuid(1, 0, Leaf { ecx: 1 << 21 | 1 << 24, ..Leaf::default() });
        // SAFETY: the fake CPU has an x2APIC.
        unsafe { HostApic::enable(0) }
    }

    #[test]
    fn a_cpu_that_has_an_x2apic_uses_it() {
        let apic = x2apic();
        assert_eq!(apic.page, None);
        assert_eq!(read_msr(APIC_BASE) & (ENABLED | X2APIC), ENABLED | X2APIC);
        assert_eq!(read_msr(0x80f), 0x1ff);
    }

    #[test]
    fn what_firmware_left_unmasked_is_masked_unless_it_is_its_own() {
        let set = |register: u32, value| {
            // SAFETY: the fake CPU has no interrupts.
            unsafe { write_msr(FIRST_MSR + register, value) };
        };
        set(register::VERSION, 5 << 16);
        set(register::LVT_PERFORMANCE, 0x400);
        set(register::LVT_THERMAL, 0x200);
        let apic = x2apic();
        assert_eq!(apic.read(register::LVT_PERFORMANCE), MASKED);
        assert_eq!(apic.read(register::LVT_THERMAL), SMI);
        set(register::VERSION, 4 << 16);
        set(register::LVT_THERMAL, 0x400);
        assert_eq!(x2apic().read(register::LVT_THERMAL), 0x400, "there is none");
    }

    #[test]
    fn a_deadline_is_a_moment_of_the_counter() {
        let apic = x2apic();
        apic.set_deadline(Some(1234));
        assert_eq!(read_msr(TSC_DEADLINE), 1234);
        apic.set_deadline(Some(0));
        assert_eq!(read_msr(TSC_DEADLINE), 1, "0 would switch it off");
        apic.set_deadline(None);
        assert_eq!(read_msr(TSC_DEADLINE), 0);
    }

    #[test]
    fn a_one_shot_is_never_nothing_and_never_wraps() {
        assert_eq!(one_shot(0, 1 << 32), 1);
        assert_eq!(one_shot(1000, 1 << 31), 501);
        assert_eq!(one_shot(u64::MAX, u64::MAX), u32::MAX);
    }

    #[test]
    fn an_interrupt_names_its_vector_and_its_destination() {
        let apic = x2apic();
        apic.send(3, vector::KICK);
        assert_eq!(read_msr(0x830), 3 << 32 | 0x4061);
        apic.send_startup(2, 0x9e);
        assert_eq!(read_msr(0x830), 2 << 32 | 0x469e);
    }

    #[test]
    fn an_interrupt_is_taken_once() {
        let apic = x2apic();
        queue_interrupt(vector::TIMER);
        assert_eq!(apic.take_interrupt(), Some(vector::TIMER));
        assert_eq!(apic.take_interrupt(), None);
    }
}
