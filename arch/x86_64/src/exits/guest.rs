//! A vCPU as instructions see it, for [`crate::mmio`] and [`crate::paging`].

use crate::control::{Controls, cr0, efer};
use crate::hw::Registers;
use crate::insn::CodeSize;
use crate::mmio::Guest;
use crate::paging::Paging;
use crate::vcpu::Vcpu;
use crate::vendor::{Control, Register, Segment, SegmentName, Vendor};

/// RFLAGS.VM: virtual-8086 mode.
const VIRTUAL_8086: u64 = 1 << 17;

/// The part of a vCPU that instructions work on.
pub(super) struct View<'v, C> {
    pub(super) registers: &'v mut Registers,
    pub(super) control: &'v mut C,
    pub(super) address_bits: u8,
}

impl<'v, C: Control> View<'v, C> {
    #[inline(always)]
    pub(super) fn of<V: Vendor<Control = C>>(vcpu: &'v mut Vcpu<V>) -> Self {
        Self {
            registers: &mut vcpu.registers,
            control: &mut vcpu.control,
            address_bits: vcpu.offer.address_bits,
        }
    }

    /// CR0, CR3, CR4 and EFER.
    #[inline(always)]
    pub(super) fn controls(&self) -> Controls {
        Controls {
            cr0: self.control.get(Register::Cr0),
            cr3: self.control.get(Register::Cr3),
            cr4: self.control.get(Register::Cr4),
            efer: self.control.get(Register::Efer),
        }
    }

    /// The linear address of the instruction at hand.
    #[inline(always)]
    pub(super) fn linear_rip(&self) -> u64 {
        let rip = self.rip();
        match self.code_size() {
            CodeSize::Bits64 => rip,
            CodeSize::Bits16 | CodeSize::Bits32 => {
                self.control.segment(SegmentName::Cs).base.wrapping_add(rip) & 0xffff_ffff
            }
        }
    }
}

impl<C: Control> Guest for View<'_, C> {
    #[inline(always)]
    fn register(&self, number: u8) -> u64 {
        self.registers.r[usize::from(number & 0xf)]
    }

    #[inline(always)]
    fn set_register(&mut self, number: u8, value: u64) {
        self.registers.r[usize::from(number & 0xf)] = value;
    }

    #[inline(always)]
    fn rip(&self) -> u64 {
        self.control.get(Register::Rip)
    }

    #[inline(always)]
    fn rflags(&self) -> u64 {
        self.control.get(Register::Rflags)
    }

    fn set_rflags(&mut self, value: u64) {
        self.control.set(Register::Rflags, value);
    }

    #[inline(always)]
    fn segment(&self, name: SegmentName) -> Segment {
        self.control.segment(name)
    }

    #[inline(always)]
    fn code_size(&self) -> CodeSize {
        let attributes = self.control.attributes(SegmentName::Cs);
        if attributes & Segment::LONG != 0 && self.control.get(Register::Efer) & efer::LMA != 0 {
            CodeSize::Bits64
        } else if attributes & Segment::BIG != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    fn has_real_segments(&self) -> bool {
        self.control.get(Register::Cr0) & cr0::PE == 0 || self.rflags() & VIRTUAL_8086 != 0
    }

    #[inline(always)]
    fn is_user(&self) -> bool {
        self.control.privilege() == 3
    }

    #[inline(always)]
    fn paging(&self) -> Paging {
        Paging::new(&self.controls(), self.control.directory_pointers(), self.address_bits)
    }
}
