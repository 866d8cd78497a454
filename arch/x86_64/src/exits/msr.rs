//! RDMSR and WRMSR of what the CPU does not serve itself.

use super::guest::View;
use crate::control::{GeneralProtection, write_efer};
use crate::hw::{GuestMsr, Registers, read_tsc};
use crate::insn::Known;
use crate::msr::{Answer, Owner};
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, Register, Vendor};
use crate::x86::X86;
use bulkhead::arch::Exit;
use bulkhead::vm::Vm;
use bulkhead_vdev::lapic::Effect;

const LOW: u64 = 0xffff_ffff;
/// The end of an interrupt, as an MSR.
const X2APIC_END: u32 = 0x80b;

impl<V: Vendor> X86<V> {
    #[inline]
    pub(super) fn read_msr(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let length = self.length(vcpu, vm, Known::ReadMsr)?;
        let number = (vcpu.registers.r[Registers::RCX] & LOW) as u32;
        let answer = match vcpu.msrs.read(number) {
            Ok(Answer::Value(value)) => Ok(value),
            Ok(Answer::Done) => Ok(0),
            Ok(Answer::Ask(owner)) => self.read_owned(vcpu, owner),
            Err(error) => Err(error),
        };
        let Ok(value) = answer else { return self.protect(vcpu) };
        vcpu.registers.r[Registers::RAX] = value & LOW;
        vcpu.registers.r[Registers::RDX] = value >> 32;
        self.advance(vcpu, length)
    }

    fn read_owned(&self, vcpu: &mut Vcpu<V>, owner: Owner) -> Result<u64, GeneralProtection> {
        let now = read_tsc();
        match owner {
            Owner::ApicBase => Ok(vcpu.apic.base()),
            Owner::X2Apic(register) => self.read_x2apic(vcpu, register),
            Owner::TscDeadline => Ok(vcpu.apic.tsc_deadline(now)),
            Owner::Tsc => Ok(now.wrapping_add(vcpu.control.get(Register::TscOffset))),
            Owner::TscAdjust => Ok(vcpu.control.get(Register::TscOffset)),
            Owner::Efer => Ok(vcpu.control.get(Register::Efer)),
            Owner::Pat => Ok(vcpu.control.get(Register::Pat)),
            Owner::Native(number) if number == GuestMsr::SpecCtrl as u32 => {
                vcpu.speculation().ok_or(GeneralProtection)
            }
            Owner::Native(_) | Owner::Plain => Err(GeneralProtection),
        }
    }

    #[inline]
    pub(super) fn write_msr(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let length = self.length(vcpu, vm, Known::WriteMsr)?;
        let registers = &vcpu.registers.r;
        let number = (registers[Registers::RCX] & LOW) as u32;
        let value = registers[Registers::RDX] << 32 | registers[Registers::RAX] & LOW;
        let effect = if number == X2APIC_END {
            self.write_x2apic(vcpu, 0x0b, value)
        } else {
            match vcpu.msrs.write(number, value) {
                Ok(Answer::Ask(owner)) => self.write_owned(vcpu, owner, value),
                Ok(Answer::Done | Answer::Value(_)) => Ok(Effect::Nothing),
                Err(error) => Err(error),
            }
        };
        let Ok(effect) = effect else { return self.protect(vcpu) };
        if let Some(exit) = self.advance(vcpu, length) {
            return Some(exit);
        }
        self.effect(effect, vcpu, vm)
    }

    fn write_owned(&self, vcpu: &mut Vcpu<V>, owner: Owner, value: u64) -> Result<Effect, GeneralProtection> {
        match owner {
            Owner::X2Apic(register) => return self.write_x2apic(vcpu, register, value),
            Owner::TscDeadline => {
                vcpu.apic.set_tsc_deadline(value, read_tsc());
                vcpu.todo |= todo::LOOK;
            }
            Owner::ApicBase => self.write_apic_base(vcpu, value)?,
            Owner::Tsc => Self::set_tsc_offset(vcpu, value.wrapping_sub(read_tsc())),
            Owner::TscAdjust => Self::set_tsc_offset(vcpu, value),
            Owner::Efer => {
                let view = View::of(vcpu);
                let change = write_efer(&view.controls(), value, &vcpu.offer)?;
                vcpu.control.set(Register::Efer, change.controls.efer);
                if change.flush {
                    vcpu.control.forget_translations();
                }
            }
            Owner::Pat => vcpu.control.set(Register::Pat, value),
            Owner::Native(number) if number == GuestMsr::SpecCtrl as u32 && vcpu.speculation().is_some() => {
                vcpu.set_speculation(value);
            }
            Owner::Native(_) | Owner::Plain => return Err(GeneralProtection),
        }
        Ok(Effect::Nothing)
    }

    /// The guest's counter is the host's and this. TSC_ADJUST starts at 0 with the VM, so it is the same number.
    fn set_tsc_offset(vcpu: &mut Vcpu<V>, offset: u64) {
        vcpu.control.set(Register::TscOffset, offset);
        vcpu.apic.set_tsc_offset(offset, read_tsc());
        vcpu.todo |= todo::LOOK;
    }
}
