//! Instructions that the back end executes for the guest: CPUID, HLT, XSETBV, and the call to a hypervisor.

use super::exception_vector;
use super::guest::View;
use crate::control::{cr4, write_xcr0};
use crate::cpuid::Live;
use crate::hw::{Registers, write_xcr0 as load_xcr0};
use crate::insn::Known;
use crate::mmio::Guest as _;
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, Delivery, Register, Vendor};
use crate::x86::X86;
use bulkhead::arch::Exit;
use bulkhead::vm::Vm;

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

impl<V: Vendor> X86<V> {
    #[inline]
    pub(super) fn cpuid(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let length = self.length(vcpu, vm, Known::Cpuid)?;
        let live = Live {
            cr4: vcpu.control.get(Register::Cr4),
            xcr0: vcpu.xcr0,
            apic: vcpu.apic.is_mapped() || vcpu.apic.is_x2apic(),
        };
        let registers = &mut vcpu.registers.r;
        let leaf = vcpu.cpuid.read(low(registers[Registers::RAX]), low(registers[Registers::RCX]), &live);
        registers[Registers::RAX] = leaf.eax.into();
        registers[Registers::RBX] = leaf.ebx.into();
        registers[Registers::RCX] = leaf.ecx.into();
        registers[Registers::RDX] = leaf.edx.into();
        self.advance(vcpu, length)
    }

    /// HLT: the guest waits, unless it has something to take now. [`X86::deliver`] decides before it would go on.
    #[inline]
    pub(super) fn halt(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let length = self.length(vcpu, vm, Known::Halt)?;
        vcpu.todo |= todo::HALTED | todo::LOOK;
        self.advance(vcpu, length)
    }

    /// A call: RAX is its number, the arguments are RBX, RCX, RDX and RSI. User mode has none.
    #[inline]
    pub(super) fn hypercall(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if vcpu.control.privilege() != 0 {
            return self.raise(vcpu, Delivery::exception(exception_vector::UNDEFINED, None));
        }
        let length = self.length(vcpu, vm, Known::Hypercall)?;
        if let Some(exit) = self.advance(vcpu, length) {
            return Some(exit);
        }
        let registers = &vcpu.registers.r;
        let arguments =
            [Registers::RBX, Registers::RCX, Registers::RDX, Registers::RSI].map(|name| registers[name]);
        Some(Exit::Hypercall(registers[Registers::RAX], arguments))
    }

    pub(super) fn xsetbv(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if vcpu.offer.xcr0 == 0 || vcpu.control.get(Register::Cr4) & cr4::OSXSAVE == 0 {
            return self.raise(vcpu, Delivery::exception(exception_vector::UNDEFINED, None));
        }
        let registers = &vcpu.registers.r;
        let number = low(registers[Registers::RCX]);
        let value =
            u64::from(low(registers[Registers::RDX])) << 32 | u64::from(low(registers[Registers::RAX]));
        let Ok(value) = write_xcr0(number, value, &vcpu.offer) else { return self.protect(vcpu) };
        if View::of(vcpu).is_user() {
            return self.protect(vcpu);
        }
        let length = self.any_length(vcpu, vm)?;
        vcpu.xcr0 = value;
        load_xcr0(value);
        self.advance(vcpu, length)
    }
}
