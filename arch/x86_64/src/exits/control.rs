//! Control registers, where the vendor does not leave them to the guest; and what the CPU writes into the local APIC's page.

use super::guest::View;
use crate::control::{Change, Controls, GeneralProtection, write_cr0, write_cr3, write_cr4};
use crate::hw::read_tsc;
use crate::insn::{CodeSize, Operation};
use crate::mmio::{self, Guest as _};
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, ControlAccess, Register, Vendor};
use crate::x86::X86;
use bulkhead::arch::Exit;
use bulkhead::vm::Vm;
use bulkhead_vdev::{Gpa, GuestMemory};

/// CR0.TS, and the bits that LMSW loads: it sets PE and never clears it (SDM Vol. 2A, LMSW).
const TASK_SWITCHED: u64 = 1 << 3;
const STATUS_WORD: u64 = 0xe;
const PROTECTION: u64 = 1;

impl<V: Vendor> X86<V> {
    pub(super) fn control(&self, access: ControlAccess, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let (access, length) = match access {
            ControlAccess::Undecoded => decode(vcpu, vm)?,
            access => (access, self.any_length(vcpu, vm)?),
        };
        let result = match access {
            ControlAccess::Undecoded => Ok(()),
            ControlAccess::Write { control, register } => {
                let value = narrow(vcpu, vcpu.registers.r[usize::from(register & 0xf)]);
                self.write_control(vcpu, vm, control, value)
            }
            ControlAccess::Read { control, register } => {
                let value = self.read_control(vcpu, control);
                vcpu.registers.r[usize::from(register & 0xf)] = narrow(vcpu, value);
                Ok(())
            }
            ControlAccess::ClearTaskSwitched => {
                let value = vcpu.control.get(Register::Cr0) & !TASK_SWITCHED;
                self.write_control(vcpu, vm, 0, value)
            }
            ControlAccess::LoadStatusWord(word) => {
                let now = vcpu.control.get(Register::Cr0);
                let value = now & !STATUS_WORD | u64::from(word) & (STATUS_WORD | PROTECTION);
                self.write_control(vcpu, vm, 0, value)
            }
        };
        match result {
            Ok(()) => self.advance(vcpu, length),
            Err(GeneralProtection) => self.protect(vcpu),
        }
    }

    fn read_control(&self, vcpu: &Vcpu<V>, control: u8) -> u64 {
        match control {
            0 => vcpu.control.get(Register::Cr0),
            2 => vcpu.control.get(Register::Cr2),
            3 => vcpu.control.get(Register::Cr3),
            4 => vcpu.control.get(Register::Cr4),
            8 => vcpu.apic.cr8().into(),
            _ => 0,
        }
    }

    fn write_control(
        &self,
        vcpu: &mut Vcpu<V>,
        vm: &Vm<Self>,
        control: u8,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let offer = vcpu.offer;
        let view = View::of(vcpu);
        let now = view.controls();
        let is_64_bit = view.code_size() == CodeSize::Bits64;
        // What the CPU reads later is not looked at now.
        let pointers = |at: u64| {
            if V::LOADS_DIRECTORY_POINTERS { directory_pointers(vm.memory(), at) } else { Some([0; 4]) }
        };
        let change = match control {
            0 => write_cr0(&now, value, is_64_bit, &offer, pointers)?,
            3 => write_cr3(&now, value, &offer, pointers)?,
            4 => write_cr4(&now, value, &offer, pointers)?,
            8 => {
                vcpu.apic.set_cr8(value).map_err(|_| GeneralProtection)?;
                vcpu.control.set_task_priority(vcpu.apic.cr8());
                vcpu.todo |= todo::LOOK;
                return Ok(());
            }
            _ => return Err(GeneralProtection),
        };
        apply(&mut vcpu.control, &now, &change);
        Ok(())
    }

    /// The guest wrote a register in the page, and the value stands there.
    #[inline]
    pub(super) fn page_write(&self, register: u16, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let [register, _] = register.to_le_bytes();
        let effect = vcpu.apic.written(register, read_tsc());
        vcpu.todo |= todo::LOOK;
        self.effect(effect, vcpu, vm)
    }

    /// The CPU has ended an interrupt that an IOAPIC may have to hear of.
    #[inline]
    pub(super) fn page_end(&self, vector: u8, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        vcpu.todo |= todo::LOOK;
        let vector = vcpu.apic.ended(vector)?;
        let woken = vm.irqs(self).wires.eoi(vector);
        vm.wake(self, woken, Some(vcpu.id));
        None
    }
}

/// What the instruction at hand does with a control register, and how many bytes it has; `None` if it is executed again.
fn decode<V: Vendor>(vcpu: &mut Vcpu<V>, vm: &Vm<X86<V>>) -> Option<(ControlAccess, u8)> {
    let instruction = mmio::current(&View::of(vcpu), vm.memory()).ok()?;
    let access = match instruction.operation {
        Operation::ToControl(control, from) => ControlAccess::Write { control, register: from.number },
        Operation::FromControl(control, to) => ControlAccess::Read { control, register: to.number },
        Operation::ClearTaskSwitched => ControlAccess::ClearTaskSwitched,
        _ => return None,
    };
    Some((access, instruction.length))
}

/// Outside 64-bit mode control registers are moved by 32 bits.
fn narrow<V: Vendor>(vcpu: &mut Vcpu<V>, value: u64) -> u64 {
    match View::of(vcpu).code_size() {
        CodeSize::Bits64 => value,
        CodeSize::Bits16 | CodeSize::Bits32 => value & 0xffff_ffff,
    }
}

fn apply<C: Control>(control: &mut C, now: &Controls, change: &Change) {
    let new = &change.controls;
    for (register, old, new) in [
        (Register::Cr0, now.cr0, new.cr0),
        (Register::Cr3, now.cr3, new.cr3),
        (Register::Cr4, now.cr4, new.cr4),
        (Register::Efer, now.efer, new.efer),
    ] {
        if old != new {
            control.set(register, new);
        }
    }
    if let Some(pointers) = change.pdptes {
        control.set_directory_pointers(pointers);
    }
    if change.flush {
        control.forget_translations();
    }
}

fn directory_pointers<M: GuestMemory + ?Sized>(memory: &M, at: u64) -> Option<[u64; 4]> {
    let mut bytes = [0; 32];
    memory.read(Gpa(at), &mut bytes).ok()?;
    let mut pointers = [0; 4];
    for (pointer, bytes) in pointers.iter_mut().zip(bytes.as_chunks().0) {
        *pointer = u64::from_le_bytes(*bytes);
    }
    Some(pointers)
}
