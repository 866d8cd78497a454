//! The generic timer: time, and the virtual and physical timers of this CPU (Arm ARM D12).

use crate::registers::{cntfrq_el0, cntp_ctl_el0, cntp_cval_el0, cntv_ctl_el0, cntv_cval_el0, cntvct_el0};
use crate::{registers, smp};

/// The virtual timer's interrupt.
pub const VIRTUAL_INTID: u32 = 27;
/// The physical timer's interrupt.
pub const PHYSICAL_INTID: u32 = 30;

const ENABLE: u64 = 1;
const IMASK: u64 = 2;
/// CNTx_CTL.ISTATUS: the condition holds.
pub const ISTATUS: u64 = 4;

/// One of the two timers that EL1 has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// CNTV.
    Virtual,
    /// CNTP.
    Physical,
}

impl Timer {
    /// Its private interrupt.
    #[must_use]
    pub const fn intid(self) -> u32 {
        match self {
            Self::Virtual => VIRTUAL_INTID,
            Self::Physical => PHYSICAL_INTID,
        }
    }

    /// Fires when the counter reaches `deadline`.
    pub fn arm(self, deadline: u64) {
        match self {
            Self::Virtual => cntv_cval_el0::write(deadline),
            Self::Physical => cntp_cval_el0::write(deadline),
        }
        self.set_control(ENABLE);
    }

    /// Keeps counting, without an interrupt.
    pub fn mask(self) {
        self.set_control(ENABLE | IMASK);
    }

    /// Lets a masked timer interrupt again.
    pub fn unmask(self) {
        self.set_control(ENABLE);
    }

    /// Switches the timer off.
    pub fn stop(self) {
        self.set_control(0);
    }

    /// CNTx_CTL.
    #[must_use]
    pub fn control(self) -> u64 {
        match self {
            Self::Virtual => cntv_ctl_el0::read(),
            Self::Physical => cntp_ctl_el0::read(),
        }
    }

    /// CNTx_CVAL.
    #[must_use]
    pub fn deadline(self) -> u64 {
        match self {
            Self::Virtual => cntv_cval_el0::read(),
            Self::Physical => cntp_cval_el0::read(),
        }
    }

    /// The count that this timer compares with.
    #[must_use]
    pub fn count(self) -> u64 {
        match self {
            Self::Virtual => now(),
            Self::Physical => registers::cntpct_el0::read(),
        }
    }

    fn set_control(self, value: u64) {
        match self {
            Self::Virtual => cntv_ctl_el0::write(value),
            Self::Physical => cntp_ctl_el0::write(value),
        }
    }
}

/// The virtual count.
#[must_use]
pub fn now() -> u64 {
    cntvct_el0::read()
}

/// Counts in `microseconds`.
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    cntfrq_el0::read().wrapping_mul(microseconds) / 1_000_000
}

/// Waits until `done` holds, `microseconds` at most; whether it did.
pub fn spin_until(microseconds: u64, done: impl Fn() -> bool) -> bool {
    let end = now() + ticks(microseconds);
    loop {
        if done() {
            return true;
        }
        if now() >= end {
            return false;
        }
        smp::pause();
    }
}

/// Lets `microseconds` pass.
pub fn delay(microseconds: u64) {
    spin_until(microseconds, || false);
}
