//! This CPU's virtual interface, as the model of a guest's GIC drives it.

use super::host;
use crate::hw::{CNTP_CTL_EL0, CNTV_CTL_EL0, ICH_ELRSR_EL2, ICH_HCR_EL2, ICH_LR_EL2, isb};
use bulkhead_vdev::gicv3::{ListRegister, Maintenance, VirtualInterface};
use bulkhead_vdev::virt;
use core::cell::Cell;

/// ICH_HCR_EL2 (IHI 0069 12.4.4): on; EOIcount; TDIR.
const ENABLE: u64 = 1;
const UNDERFLOW: u64 = 1 << 1;
const EOI_NO_LIST: u64 = 1 << 2;
const NO_PENDING: u64 = 1 << 3;
const TRAP_DEACTIVATION: u64 = 1 << 14;
const EOI_COUNT_SHIFT: u32 = 27;
const EOI_COUNT: u64 = 0x1f << EOI_COUNT_SHIFT;
/// CNTx_CTL_EL0: enabled, not masked, condition met.
const TIMER_ASSERTS: u64 = 0b101;
const TIMER_BITS: u64 = 0b111;

/// The interface. The state is the CPU's; this only knows whether a list register was written since the CPU was told to
/// count which are empty. As one system register, ICH_ELRSR_EL2, shows a write of another only after a context synchronisation,
/// whoever makes a new one of these knows that there was one since the last write: an exit, an entry, or an `isb` of his own.
pub struct Lists {
    count: usize,
    vhe: bool,
    written: Cell<bool>,
}

impl Lists {
    /// An interface with `count` list registers, on a CPU whose EL2 runs with VHE or not.
    #[inline]
    #[must_use]
    pub fn new(count: usize, vhe: bool) -> Self {
        Self { count, vhe, written: Cell::new(false) }
    }

    /// Switches the interface on. `traps_deactivation`: the guest's `ICC_DIR_EL1` comes to EL2.
    pub fn enable(&self, traps_deactivation: bool) {
        let trap = if traps_deactivation { TRAP_DEACTIVATION } else { 0 };
        ICH_HCR_EL2::write(ENABLE | trap);
        for index in 0..self.count {
            ICH_LR_EL2::write(index, 0);
        }
        isb();
    }
}

impl VirtualInterface for Lists {
    #[inline]
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn read(&self, index: usize) -> ListRegister {
        ListRegister(ICH_LR_EL2::read(index))
    }

    #[inline]
    fn write(&mut self, index: usize, value: ListRegister) {
        ICH_LR_EL2::write(index, value.0);
        self.written.set(true);
    }

    #[inline]
    fn empty(&self) -> u32 {
        if self.written.replace(false) {
            isb();
        }
        u32::try_from(ICH_ELRSR_EL2::read() & 0xffff).unwrap_or(0)
    }

    #[inline]
    fn take_eoi_count(&mut self) -> u32 {
        let control = ICH_HCR_EL2::read();
        if control & EOI_COUNT == 0 {
            return 0;
        }
        ICH_HCR_EL2::write(control & !EOI_COUNT);
        u32::try_from((control & EOI_COUNT) >> EOI_COUNT_SHIFT).unwrap_or(0)
    }

    #[inline]
    fn set_maintenance(&mut self, wanted: Maintenance) {
        let control = ICH_HCR_EL2::read();
        let mut new = control & !(UNDERFLOW | EOI_NO_LIST | NO_PENDING);
        if wanted.contains(Maintenance::UNDERFLOW) {
            new |= UNDERFLOW;
        }
        if wanted.contains(Maintenance::EOI_NO_LR) {
            new |= EOI_NO_LIST;
        }
        if wanted.contains(Maintenance::NO_PENDING) {
            new |= NO_PENDING;
        }
        if new != control {
            ICH_HCR_EL2::write(new);
        }
    }

    fn line(&self, intid: u32) -> bool {
        let control = match intid {
            virt::VIRTUAL_TIMER_INTID => CNTV_CTL_EL0::read(self.vhe),
            virt::PHYSICAL_TIMER_INTID => CNTP_CTL_EL0::read(self.vhe),
            _ => 0,
        };
        control & TIMER_BITS == TIMER_ASSERTS
    }

    fn deactivate(&mut self, physical: u32) {
        host::deactivate(physical);
    }
}
