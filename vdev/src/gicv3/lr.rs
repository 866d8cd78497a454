//! The seam to the hardware's virtual CPU interface: list registers and the few registers beside them.
//!
//! Pure encodings and one trait. A CPU implements the trait over its registers, a test over an array.

use bitflags::bitflags;

/// One list register, encoded as `ICH_LR<n>_EL2` (IHI 0069, 12.4.6).
///
/// ```text
/// 63 62 | 61 | 60    | 59 56 | 55    48 | 47 45 | 44            32 | 31   0
/// state | HW | group |   0   | priority |   0   | HW: physical     | INTID
///                                               | else: 41 = EOI   |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListRegister(pub u64);

impl ListRegister {
    /// Holds no interrupt.
    pub const INVALID: Self = Self(0);

    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HARDWARE: u64 = 1 << 61;
    const GROUP_1: u64 = 1 << 60;
    const EOI: u64 = 1 << 41;
    const PHYSICAL_SHIFT: u32 = 32;
    const PRIORITY_SHIFT: u32 = 48;

    /// `intid` with `priority`, in group 0 and no state yet.
    #[must_use]
    pub const fn new(intid: u32, priority: u8) -> Self {
        Self(intid as u64 | (priority as u64) << Self::PRIORITY_SHIFT)
    }

    /// The same, pending (besides active, if it was that).
    #[must_use]
    pub const fn pending(self) -> Self {
        Self(self.0 | Self::PENDING)
    }

    /// The same, active (besides pending, if it was that).
    #[must_use]
    pub const fn active(self) -> Self {
        Self(self.0 | Self::ACTIVE)
    }

    /// The same, in group 1 if `group` is 1.
    #[must_use]
    pub const fn in_group(self, group: u32) -> Self {
        Self(self.0 | if group != 0 { Self::GROUP_1 } else { 0 })
    }

    /// The same, linked to an interrupt of the physical controller, which is deactivated together with this one.
    #[must_use]
    pub const fn linked_to(self, physical: u32) -> Self {
        Self(self.0 | Self::HARDWARE | (physical as u64 & 0x1fff) << Self::PHYSICAL_SHIFT)
    }

    /// The same, asking for a maintenance interrupt when it has become invalid. Only without a hardware link.
    #[must_use]
    pub const fn with_eoi(self) -> Self {
        Self(self.0 | Self::EOI)
    }

    /// Whether it is pending, or active and pending.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// Whether it is active, or active and pending.
    #[must_use]
    pub const fn is_active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    /// Whether it holds an interrupt at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.is_pending() || self.is_active()
    }

    /// The virtual interrupt number.
    #[must_use]
    pub const fn intid(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The priority; lower is more urgent.
    #[must_use]
    pub const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT & 0xff) as u8
    }

    /// Group 0 or 1.
    #[must_use]
    pub const fn group(self) -> u32 {
        (self.0 & Self::GROUP_1 != 0) as u32
    }

    /// The physical interrupt that is linked, if any.
    #[must_use]
    pub const fn physical(self) -> Option<u32> {
        if self.0 & Self::HARDWARE == 0 {
            None
        } else {
            Some((self.0 >> Self::PHYSICAL_SHIFT & 0x1fff) as u32)
        }
    }

    /// Whether its end raises a maintenance interrupt.
    #[must_use]
    pub const fn has_eoi(self) -> bool {
        self.0 & (Self::HARDWARE | Self::EOI) == Self::EOI
    }
}

bitflags! {
    /// The maintenance interrupts that a refresh wants, as bits of `ICH_HCR_EL2` (IHI 0069, chapter 12).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Maintenance: u32 {
        /// UIE: none or only one list register holds an interrupt.
        const UNDERFLOW = 1 << 1;
        /// LRENPIE: an interrupt was ended that no list register holds.
        const EOI_NO_LR = 1 << 2;
        /// NPIE: no list register holds a pending interrupt.
        const NO_PENDING = 1 << 3;
    }
}

/// A private interrupt of the guest that is the CPU's own: a timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardwareLine {
    /// The guest's number for it, 16 to 31.
    pub intid: u32,
    /// The physical controller's number for it.
    pub physical: u32,
}

/// The virtual CPU interface of the physical CPU that one vCPU is loaded on.
pub trait VirtualInterface {
    /// How many list registers there are, 1 to 16.
    fn count(&self) -> usize;

    /// `ICH_LR<index>_EL2`.
    fn read(&self, index: usize) -> ListRegister;

    /// Sets `ICH_LR<index>_EL2`.
    fn write(&mut self, index: usize, value: ListRegister);

    /// `ICH_ELRSR_EL2`, and it already reflects every [`write`](Self::write) made before.
    fn empty(&self) -> u32;

    /// `ICH_HCR_EL2.EOIcount`, which is 0 afterwards.
    fn take_eoi_count(&mut self) -> u32;

    /// Sets the enables of the maintenance interrupts in `ICH_HCR_EL2`.
    fn set_maintenance(&mut self, wanted: Maintenance);

    /// Whether the vCPU's own hardware timer behind the guest's `intid` asserts its line now.
    fn line(&self, intid: u32) -> bool;

    /// Ends the active state of the private interrupt `physical` in the physical controller.
    fn deactivate(&mut self, physical: u32);
}
