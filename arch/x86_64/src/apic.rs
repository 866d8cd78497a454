//! The local APIC as its vCPU reaches it: the page, the x2APIC's MSRs, and what its writes ask of others.
//!
//! It is the vCPU's own, so no lock is taken but for the end of a level-triggered interrupt, which the IOAPIC has to hear of.

use crate::board::StartState;
use crate::control::GeneralProtection;
use crate::hw::read_tsc;
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, PageMode, Vendor};
use crate::x86::X86;
use bulkhead::arch::{Entry, Exit};
use bulkhead::vm::Vm;
use bulkhead_vdev::lapic::{Effect, register};
use bulkhead_vdev::{Access, Gpa};

impl<V: Vendor> X86<V> {
    /// An access to the page.
    pub(crate) fn apic_page(
        &self,
        vcpu: &mut Vcpu<V>,
        vm: &Vm<Self>,
        offset: u64,
        access: Access,
    ) -> (u64, Option<Exit>) {
        self.before_apic(vcpu);
        let before = vcpu.apic.highest_requested();
        let (value, effect) = vcpu.apic.access(offset, access, read_tsc());
        if let Access::Read(_) = access {
            after_read(vcpu, before);
            return (value, None);
        }
        self.after_write(vcpu, u8::try_from(offset >> 4).unwrap_or(0));
        (value, self.effect(effect, vcpu, vm))
    }

    /// RDMSR of the x2APIC's register.
    pub(crate) fn read_x2apic(&self, vcpu: &mut Vcpu<V>, register: u16) -> Result<u64, GeneralProtection> {
        self.before_apic(vcpu);
        let register = u8::try_from(register).map_err(|_| GeneralProtection)?;
        let before = vcpu.apic.highest_requested();
        let value = vcpu.apic.read_x2apic(register, read_tsc()).map_err(|_| GeneralProtection);
        after_read(vcpu, before);
        value
    }

    /// WRMSR of the x2APIC's register.
    #[inline]
    pub(crate) fn write_x2apic(
        &self,
        vcpu: &mut Vcpu<V>,
        register: u16,
        value: u64,
    ) -> Result<Effect, GeneralProtection> {
        self.before_apic(vcpu);
        let register = u8::try_from(register).map_err(|_| GeneralProtection)?;
        let effect = vcpu.apic.write_x2apic(register, value, read_tsc()).map_err(|_| GeneralProtection)?;
        self.after_write(vcpu, register);
        Ok(effect)
    }

    /// WRMSR of IA32_APIC_BASE.
    pub(crate) fn write_apic_base(&self, vcpu: &mut Vcpu<V>, value: u64) -> Result<(), GeneralProtection> {
        vcpu.apic.set_base(value).map_err(|_| GeneralProtection)?;
        self.apic_changed(vcpu);
        Ok(())
    }

    /// The mode of the local APIC, or all of it, is another one now.
    pub(crate) fn apic_changed(&self, vcpu: &mut Vcpu<V>) {
        let mode = match (vcpu.apic.is_mapped(), vcpu.apic.is_x2apic()) {
            (true, _) => PageMode::XApic,
            (false, true) => PageMode::X2Apic,
            (false, false) => PageMode::Off,
        };
        vcpu.control.set_page_mode(mode);
        self.after_apic(vcpu);
    }

    /// The guest may have written CR8 meanwhile, which is the task priority.
    #[inline]
    fn before_apic(&self, vcpu: &mut Vcpu<V>) {
        let priority = vcpu.control.task_priority();
        if priority != vcpu.apic.cr8() && !self.vendor.delivers_interrupts() {
            // CR8 has four bits; more were refused by the CPU.
            let _ = vcpu.apic.set_cr8(priority.into());
        }
    }

    /// The end of an interrupt lets in what was requested before, and changes nothing else that is looked at before an entry.
    #[inline]
    fn after_write(&self, vcpu: &mut Vcpu<V>, register: u8) {
        if register != register::END_OF_INTERRUPT || vcpu.apic.has_requests() {
            self.after_apic(vcpu);
        }
    }

    #[inline]
    fn after_apic(&self, vcpu: &mut Vcpu<V>) {
        let priority = vcpu.apic.cr8();
        if priority != vcpu.control.task_priority() {
            vcpu.control.set_task_priority(priority);
        }
        vcpu.todo |= todo::LOOK;
    }

    /// What a write to the local APIC asks of others.
    #[inline]
    pub(crate) fn effect(&self, effect: Effect, vcpu: &Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        match effect {
            Effect::Nothing => {}
            Effect::Look(set) => vm.wake(self, set, Some(vcpu.id)),
            Effect::Ended(vector) => {
                let woken = vm.irqs(self).wires.eoi(vector);
                vm.wake(self, woken, Some(vcpu.id));
            }
            Effect::SwitchOff(set) => return Some(Exit::SwitchOff(set)),
            Effect::Start(set, page) => {
                let pc = Gpa(u64::from(page) << 12);
                return Some(Exit::Start(
                    set,
                    Entry { pc, state: StartState::Real as u32, ..Entry::default() },
                ));
            }
        }
        None
    }
}

/// A read requests an interrupt where it is an error, or finds that the timer is due. A vector below the highest one that was
/// requested is found with that one.
#[inline]
fn after_read<V: Vendor>(vcpu: &mut Vcpu<V>, before: u8) {
    if vcpu.apic.highest_requested() > before {
        vcpu.todo |= todo::LOOK;
    }
}
