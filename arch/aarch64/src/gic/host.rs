//! The machine's own GICv3 (Arm IHI 0069): brought up so that every interrupt comes to EL2, group 1, one priority.

use crate::hw::mmio::Registers;
use crate::hw::{
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1,
    ICC_SGI1R_EL1, dsb, isb,
};
use bulkhead::arch::Unsupported;

/// Software interrupts between CPUs: leave the guest; look at the guest's interrupts.
pub const KICK: u32 = 0;
/// See [`KICK`].
pub const NUDGE: u32 = 1;

/// Distributor registers (IHI 0069 12.9).
mod gicd {
    pub(super) const CTLR: usize = 0x0000;
    pub(super) const TYPER: usize = 0x0004;
    pub(super) const IGROUPR: usize = 0x0080;
    pub(super) const ISENABLER: usize = 0x0100;
    pub(super) const ICENABLER: usize = 0x0180;
    pub(super) const IPRIORITYR: usize = 0x0400;
    pub(super) const IROUTER: usize = 0x6000;
    /// CTLR: a register write is still on its way. Affinity routing, both groups: right with one security state and, as far as
    /// the bits reach, with two.
    pub(super) const RWP: u32 = 1 << 31;
    pub(super) const ENABLE: u32 = 1 << 4 | 3;
}

/// Redistributor registers (IHI 0069 12.11); those of private interrupts are in the second frame.
mod gicr {
    pub(super) const TYPER: usize = 0x0008;
    pub(super) const WAKER: usize = 0x0014;
    pub(super) const PRIVATE: usize = 0x1_0000;
    pub(super) const IGROUPR0: usize = PRIVATE + 0x080;
    pub(super) const ISENABLER0: usize = PRIVATE + 0x100;
    pub(super) const ICENABLER0: usize = PRIVATE + 0x180;
    pub(super) const ISACTIVER0: usize = PRIVATE + 0x300;
    pub(super) const ICACTIVER0: usize = PRIVATE + 0x380;
    pub(super) const IPRIORITYR: usize = PRIVATE + 0x400;
    pub(super) const LAST: u64 = 1 << 4;
    pub(super) const VLPIS: u64 = 1 << 1;
    pub(super) const PROCESSOR_SLEEP: u32 = 1 << 1;
    pub(super) const CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// Four priorities in one register: the middle of the range.
const PRIORITIES: u32 = 0xa0a0_a0a0;
/// Polls of a register that hardware changes soon.
const PATIENCE: u32 = 1_000_000;

/// Brings up the distributor: nothing is enabled.
///
/// # Errors
/// [`Unsupported`] if it does not answer.
pub fn enable_distributor(distributor: &Registers) -> Result<(), Unsupported> {
    let lines = (distributor.read32(gicd::TYPER) & 0x1f) as usize + 1;
    distributor.write32(gicd::CTLR, 0);
    settle(distributor)?;
    for bank in 1..lines {
        distributor.write32(gicd::ICENABLER + 4 * bank, u32::MAX);
        distributor.write32(gicd::IGROUPR + 4 * bank, u32::MAX);
    }
    for quad in 8..8 * lines {
        distributor.write32(gicd::IPRIORITYR + 4 * quad, PRIORITIES);
    }
    settle(distributor)?;
    distributor.write32(gicd::CTLR, gicd::ENABLE);
    settle(distributor)
}

fn settle(distributor: &Registers) -> Result<(), Unsupported> {
    (0..PATIENCE)
        .any(|_| distributor.read32(gicd::CTLR) & gicd::RWP == 0)
        .then_some(())
        .ok_or(Unsupported("the GIC's distributor does not finish a register write"))
}

/// Enables the shared interrupt `intid` and routes it to the CPU with `affinity`.
pub fn enable_shared(distributor: &Registers, intid: u32, affinity: u64) {
    let number = intid as usize;
    distributor.write64(gicd::IROUTER + 8 * number, affinity);
    distributor.write32(gicd::ISENABLER + number / 32 * 4, 1 << (number % 32));
}

/// Finds the redistributor of the CPU with `affinity` in one of `regions`.
#[must_use]
pub fn redistributor(regions: &[Registers], stride: Option<usize>, affinity: u64) -> Option<Registers> {
    // TYPER has the affinity's fields packed (IHI 0069 12.11.38).
    let packed = affinity >> 32 << 24 & 0xff00_0000 | affinity & 0xff_ffff;
    for region in regions {
        let mut offset = 0;
        while offset < region.bytes() {
            let frame = region.from_offset(offset);
            let kind = frame.read64(gicr::TYPER);
            if kind >> 32 == packed {
                return Some(frame);
            }
            if kind & gicr::LAST != 0 {
                break;
            }
            let frames = if kind & gicr::VLPIS != 0 { 4 } else { 2 };
            offset += stride.unwrap_or(frames * 0x1_0000);
        }
    }
    None
}

/// Wakes this CPU's redistributor and enables `private` interrupts, by bit, beside the two software interrupts.
///
/// # Errors
/// [`Unsupported`] if it does not wake.
pub fn enable_private(redistributor: &Registers, private: u32) -> Result<(), Unsupported> {
    let waker = redistributor.read32(gicr::WAKER);
    redistributor.write32(gicr::WAKER, waker & !gicr::PROCESSOR_SLEEP);
    if !(0..PATIENCE).any(|_| redistributor.read32(gicr::WAKER) & gicr::CHILDREN_ASLEEP == 0) {
        return Err(Unsupported("the GIC's redistributor does not wake"));
    }
    redistributor.write32(gicr::ICENABLER0, u32::MAX);
    redistributor.write32(gicr::ICACTIVER0, u32::MAX);
    redistributor.write32(gicr::IGROUPR0, u32::MAX);
    for quad in 0..8 {
        redistributor.write32(gicr::IPRIORITYR + 4 * quad, PRIORITIES);
    }
    redistributor.write32(gicr::ISENABLER0, private | 1 << KICK | 1 << NUDGE);
    Ok(())
}

/// Switches this CPU's interface on: what is acknowledged is ended in two steps, priority drop and deactivation.
pub fn enable_interface() {
    const EOI_MODE: u64 = 1 << 1;
    ICC_PMR_EL1::write(0xff);
    ICC_BPR1_EL1::write(0);
    ICC_CTLR_EL1::write(EOI_MODE);
    ICC_IGRPEN1_EL1::write(1);
    isb();
}

/// The most urgent pending interrupt, now active; `None` if there is none.
#[inline]
#[must_use]
pub fn acknowledge() -> Option<u32> {
    const FIRST_SPECIAL: u32 = 1020;
    let intid = u32::try_from(ICC_IAR1_EL1::read() & 0xff_ffff).unwrap_or(u32::MAX);
    (intid < FIRST_SPECIAL).then_some(intid)
}

/// Others of the same priority may come; this one stays active.
#[inline]
pub fn drop_priority(intid: u32) {
    ICC_EOIR1_EL1::write(intid.into());
}

/// The interrupt may come again.
#[inline]
pub fn deactivate(intid: u32) {
    ICC_DIR_EL1::write(intid.into());
}

/// Makes the private interrupt `intid` active: a guest that has it in hand comes back to this CPU.
pub fn activate_private(redistributor: &Registers, intids: u32) {
    redistributor.write32(gicr::ISACTIVER0, intids);
    dsb();
}

/// Ends whatever private interrupt is in hand on this CPU.
pub fn deactivate_private(redistributor: &Registers) {
    redistributor.write32(gicr::ICACTIVER0, u32::MAX);
    dsb();
}

/// A CPU as the target of software interrupts: `ICC_SGI1R_EL1` without the interrupt's number (IHI 0069 12.2.22).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target(u64);

impl Target {
    /// The CPU with `affinity`.
    #[must_use]
    pub fn new(affinity: u64) -> Self {
        let range = affinity >> 4 & 0xf;
        let [_, aff1, aff2, _, aff3, ..] = affinity.to_le_bytes();
        Self(
            1 << (affinity & 0xf)
                | u64::from(aff1) << 16
                | u64::from(aff2) << 32
                | range << 44
                | u64::from(aff3) << 48,
        )
    }
}

/// Sends software interrupt `sgi` to `target`.
#[inline]
pub fn send(sgi: u32, target: Target) {
    dsb();
    ICC_SGI1R_EL1::write(target.0 | u64::from(sgi) << 24);
    isb();
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_target_has_its_affinity_where_the_register_wants_it() {
        assert_eq!(Target::new(0), Target(1));
        assert_eq!(
            Target::new(0x0000_0003_0002_0115),
            Target(1 << 5 | 1 << 16 | 2 << 32 | 1 << 44 | 3 << 48)
        );
    }
}
