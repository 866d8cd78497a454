//! Software-generated interrupts: `ICC_SGI1R_EL1` and `ICC_SGI0R_EL1` (IHI 0069, chapter 12).

use super::bank::Bits;
use super::{Gicv3, Notes, VCPU, VirtualInterface};
use crate::VcpuSet;

/// One bit for each target among the affinities 0 to 15.
const TARGETS: u64 = 0xffff;
/// Affinities 3, 2 and 1 and the range selector: only vCPUs with zeros there exist.
const ELSEWHERE: u64 = 0x00ff_f0ff_00ff_0000;
/// Interrupt routing mode: to all but the sender.
const ALL_OTHERS: u64 = 1 << 40;

impl Gicv3 {
    /// The vCPU `from` wrote `value` to `ICC_SGI1R_EL1` (or `ICC_ASGI1R_EL1`, which is the same with one security
    /// state): an SGI for those whose interrupt is in group 1.
    #[inline]
    pub fn send_sgi(&mut self, from: usize, value: u64, cpu: &mut impl VirtualInterface) -> VcpuSet {
        self.send(from, value, u32::MAX, cpu)
    }

    /// The same for `ICC_SGI0R_EL1` and group 0.
    pub fn send_group_0_sgi(&mut self, from: usize, value: u64, cpu: &mut impl VirtualInterface) -> VcpuSet {
        self.send(from, value, 0, cpu)
    }

    /// `group` is all ones for group 1, else 0.
    #[inline]
    fn send(&mut self, from: usize, value: u64, group: u32, cpu: &mut impl VirtualInterface) -> VcpuSet {
        let from = from & VCPU;
        let intid = (value >> 24 & 0xf) as u32;
        let bit = 1 << intid;
        let targets = self.sgi_targets(from, value);
        if targets >> from & 1 != 0 && (self.vcpus[from].private.group ^ group) & bit == 0 {
            self.raise_own(from, intid, cpu);
        }
        let mut kick = 0;
        for target in Bits(targets & !(1 << from)) {
            let state = &mut self.vcpus[target as usize & VCPU];
            if (state.private.group ^ group) & bit == 0 {
                state.private.latched |= bit;
                if state.private.open & bit != 0 {
                    state.notes |= Notes::DIRTY;
                    kick |= 1 << target;
                }
            }
        }
        VcpuSet(kick)
    }

    #[inline]
    fn sgi_targets(&self, from: usize, value: u64) -> u32 {
        if value & ALL_OTHERS != 0 {
            return self.present & !(1 << from);
        }
        if value & ELSEWHERE != 0 { 0 } else { (value & TARGETS) as u32 & self.present }
    }
}
