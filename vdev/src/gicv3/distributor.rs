//! The distributor's frame (IHI 0069, chapter 12): what concerns shared interrupts, and the whole.

use super::registers::{Frame, IIDR, half_of, identity, is_aligned};
use super::{Gicv3, ROUTE_ANY, SHARED, VCPU, VirtualInterface, WORDS, spi};
use crate::{Access, MAX_VCPUS, VcpuSet, Width};

/// Register offsets (IHI 0069, chapter 12).
const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IIDR: u64 = 0x0008;
const GICD_IROUTER: u64 = 0x6000;
const GICD_IROUTER_END: u64 = GICD_IROUTER + 8 * 1020;
const IDS: u64 = 0xffd0;

/// `GICD_CTLR` with one security state (IHI 0069, chapter 12): both group enables, and what never changes.
const CTLR_GROUPS: u32 = 0b11;
const CTLR_FIXED: u32 = CTLR_ARE | CTLR_DS;
const CTLR_ARE: u32 = 1 << 4;
const CTLR_DS: u32 = 1 << 6;

/// `GICD_TYPER` (IHI 0069, chapter 12): the words of interrupts beyond the first, 10 bits of interrupt number, affinity 3
/// understood, 1-of-N routing, no messages, no LPIs, SGI targets 0 to 15.
const TYPER: u64 = SHARED as u64 | 9 << 19 | 1 << 24;

impl Gicv3 {
    /// An access by `vcpu` to the distributor. The returned vCPUs run elsewhere and have to refresh; whether the
    /// accessing one has to, [`wants_refresh`](Self::wants_refresh) tells.
    #[inline]
    pub fn distributor(
        &mut self,
        vcpu: usize,
        offset: u64,
        access: Access,
        cpu: &mut impl VirtualInterface,
    ) -> (u64, VcpuSet) {
        // A constant costs nothing but its decoding.
        if let (GICD_TYPER, Access::Read(Width::Word)) = (offset, access) {
            return (TYPER, VcpuSet::EMPTY);
        }
        let value = self.distributor_register(vcpu & VCPU, offset, access, cpu);
        (value, self.take_kicks(vcpu))
    }

    fn distributor_register(
        &mut self,
        vcpu: usize,
        offset: u64,
        access: Access,
        cpu: &mut impl VirtualInterface,
    ) -> u64 {
        if !is_aligned(offset, access) {
            return 0;
        }
        match (offset, access) {
            (GICD_CTLR, Access::Read(Width::Word)) => self.control().into(),
            (GICD_CTLR, Access::Write(Width::Word, value)) => {
                self.set_control((value & 0xffff_ffff) as u32);
                0
            }
            (GICD_IIDR, Access::Read(Width::Word)) => IIDR,
            (0x080..0xd00, _) => {
                self.block(vcpu, &Frame { owner: vcpu, words: 1..=WORDS - 1 }, offset, access, cpu)
            }
            (GICD_IROUTER..GICD_IROUTER_END, _) => self.router(offset, access),
            (IDS.., Access::Read(Width::Word)) => identity(offset, 0x92),
            _ => 0,
        }
    }

    fn control(&self) -> u32 {
        let [group_0, group_1] = self.groups;
        CTLR_FIXED | group_0 & 1 | group_1 & 2
    }

    fn set_control(&mut self, value: u32) {
        if (value ^ self.control()) & CTLR_GROUPS == 0 {
            return;
        }
        self.groups = [0, 1].map(|group| 0u32.wrapping_sub(value >> group & 1));
        let [group_0, group_1] = self.groups;
        for bank in &mut self.shared {
            bank.update_open(group_0, group_1);
        }
        for vcpu in 0..MAX_VCPUS {
            self.vcpus[vcpu].private.update_open(group_0, group_1);
            self.vcpus[vcpu].hints = (1 << WORDS) - 2;
            if self.present >> vcpu & 1 != 0 {
                self.mark(vcpu, 0);
            }
        }
    }

    /// `GICD_IROUTER<n>`, whole or by halves; there is none for private interrupts.
    fn router(&mut self, offset: u64, access: Access) -> u64 {
        let intid = ((offset - GICD_IROUTER) >> 3 & 0x3ff) as u32;
        let (word, bit) = ((intid >> 5) as usize, intid & 31);
        if !(1..WORDS).contains(&word) {
            return 0;
        }
        let route = self.routes[spi(word, bit)];
        let any = if route.any { ROUTE_ANY } else { 0 };
        let old = u64::from(route.affinity >> 24) << 32 | u64::from(route.affinity & 0x00ff_ffff | any);
        let new = match access {
            Access::Read(width) => return half_of(old, offset, width),
            Access::Write(Width::Double, value) => value,
            Access::Write(Width::Word, value) if offset & 4 == 0 => old & !0xffff_ffff | value,
            Access::Write(Width::Word, value) => old & 0xffff_ffff | value << 32,
            Access::Write(Width::Byte | Width::Half, _) => return 0,
        };
        let affinity = (new & 0x00ff_ffff) as u32 | ((new >> 32 & 0xff) as u32) << 24;
        self.set_route(word, bit, affinity, new & u64::from(ROUTE_ANY) != 0);
        0
    }
}
