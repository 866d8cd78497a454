//! The redistributors (IHI 0069, chapter 12): two frames of 64 KiB for each vCPU, one for control and one for
//! its private interrupts.

use super::bank::Bits;
use super::registers::{Frame, IIDR, half_of, identity, is_aligned};
use super::{Gicv3, SHARED, VCPU, VirtualInterface};
use crate::{Access, VcpuSet, Width};

/// Both frames of one vCPU.
const STRIDE_SHIFT: u32 = 17;
/// In the second frame.
const PRIVATE_FRAME: u64 = 0x1_0000;

/// Register offsets (IHI 0069, chapter 12). `GICR_CTLR` reads as zero: there is nothing in it without LPIs.
const GICR_IIDR: u64 = 0x0004;
const GICR_TYPER: u64 = 0x0008;
const GICR_TYPER_HIGH: u64 = 0x000c;
const GICR_WAKER: u64 = 0x0014;
const IDS: u64 = 0xffd0;

/// `GICR_TYPER` (IHI 0069, chapter 12).
const TYPER_LAST: u64 = 1 << 4;
const TYPER_PROCESSOR_SHIFT: u32 = 8;
const TYPER_AFFINITY_SHIFT: u32 = 32;
/// `GICR_WAKER` (IHI 0069, chapter 12).
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

impl Gicv3 {
    /// An access by `vcpu` at `offset` in the region of all redistributors. The returned vCPUs run elsewhere and have
    /// to refresh.
    pub fn redistributor(
        &mut self,
        vcpu: usize,
        offset: u64,
        access: Access,
        cpu: &mut impl VirtualInterface,
    ) -> (u64, VcpuSet) {
        let value = self.redistributor_register(vcpu & VCPU, offset, access, cpu);
        (value, self.take_kicks(vcpu))
    }

    fn redistributor_register(
        &mut self,
        vcpu: usize,
        offset: u64,
        access: Access,
        cpu: &mut impl VirtualInterface,
    ) -> u64 {
        let owner = u32::try_from(offset >> STRIDE_SHIFT).ok().filter(|&owner| self.has(owner));
        let Some(owner) = owner.filter(|_| is_aligned(offset, access)) else { return 0 };
        let owner = owner as usize & VCPU;
        let register = offset & ((1 << STRIDE_SHIFT) - 1);
        match (register, access) {
            (GICR_IIDR, Access::Read(Width::Word)) => IIDR,
            (GICR_TYPER | GICR_TYPER_HIGH, Access::Read(width)) => {
                half_of(self.typer(owner), register, width)
            }
            (GICR_WAKER, Access::Read(Width::Word)) => self.waker(owner),
            (GICR_WAKER, Access::Write(Width::Word, value)) => {
                self.set_waker(owner, value);
                0
            }
            (IDS..PRIVATE_FRAME, Access::Read(Width::Word)) => identity(register, 0x93),
            (PRIVATE_FRAME.., _) => {
                self.block(vcpu, &Frame { owner, words: 0..=0 }, register - PRIVATE_FRAME, access, cpu)
            }
            _ => 0,
        }
    }

    fn typer(&self, vcpu: usize) -> u64 {
        let last = if self.present >> vcpu == 1 { TYPER_LAST } else { 0 };
        (vcpu as u64) << TYPER_AFFINITY_SHIFT | (vcpu as u64) << TYPER_PROCESSOR_SHIFT | last
    }

    /// Both bits move together: nothing takes time here.
    fn waker(&self, vcpu: usize) -> u64 {
        if self.vcpus[vcpu & VCPU].asleep { WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP } else { 0 }
    }

    /// Who is awake decides where interrupts for any vCPU go. A sleeping vCPU's own interrupts are still delivered,
    /// as on QEMU's `virt`: it is the wake-up request.
    fn set_waker(&mut self, vcpu: usize, value: u64) {
        let asleep = value & WAKER_PROCESSOR_SLEEP != 0;
        if core::mem::replace(&mut self.vcpus[vcpu & VCPU].asleep, asleep) == asleep {
            return;
        }
        for word in 1..=SHARED {
            for bit in Bits(u32::MAX) {
                let route = self.routes[super::spi(word, bit)];
                if route.any {
                    self.set_route(word, bit, route.affinity, true);
                }
            }
        }
    }
}
