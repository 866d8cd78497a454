//! Accesses to memory that no RAM answers. The local APIC's and the IOAPIC's pages are served here: they go with the back end's
//! interrupts; all others are the core's devices.

use super::guest::View;
use super::{exception_vector, fault, known_code, learn_code};
use crate::hw::trail::Code;
use crate::insn::{self, Instruction};
use crate::mmio::{self, Guest as _, Raise, Refusal, Refused, Step};
use crate::vcpu::{Vcpu, Waiting};
use crate::vendor::{Control, Delivery, MemoryAccess, Register, Vendor};
use crate::x86::X86;
use bulkhead::arch::{Exit, Place};
use bulkhead::vm::Vm;
use bulkhead_vdev::{Access, pc};

const PAGE_BYTES: u64 = 4096;

impl<V: Vendor> X86<V> {
    #[inline]
    pub(super) fn memory(&self, access: MemoryAccess, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if access.is_fetch || access.is_walk || vcpu.control.interrupted().is_some() {
            return hopeless(access);
        }
        let step = self.begin(access, vcpu, vm);
        self.follow(step, vcpu, vm)
    }

    #[inline]
    fn begin(&self, access: MemoryAccess, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Step {
        let decoded = match self.known_instruction(vcpu) {
            Some(bytes) => {
                let view = View::of(vcpu);
                let (at, size) = (view.rip(), view.code_size());
                vcpu.memo.decode(at, bytes, size).or_else(|_| walk(vcpu, vm))
            }
            None => walk(vcpu, vm),
        };
        match decoded {
            Ok(instruction) => {
                let refused = Refused { at: access.at, write: access.is_write };
                mmio::begin(&instruction, refused, &mut View::of(vcpu), vm.memory())
            }
            Err(step) => step,
        }
    }

    /// The bytes of the instruction at hand, if the CPU has noted as many as one can have, or the way to them is known.
    #[inline]
    fn known_instruction(&self, vcpu: &Vcpu<V>) -> Option<[u8; 16]> {
        let noted = self.vendor.instruction_bytes(&vcpu.control);
        if let Some(noted) = noted.and_then(|noted| noted.first_chunk::<{ insn::LONGEST }>()) {
            let mut bytes = [0; 16];
            bytes[..insn::LONGEST].copy_from_slice(noted);
            return Some(bytes);
        }
        known_code(vcpu).and_then(Code::instruction)
    }

    /// Takes the steps of an instruction until it is done, or a device of the core's is asked.
    #[inline]
    pub(super) fn follow(&self, first: Step, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let mut step = first;
        let mut then = None;
        // An instruction, or one element of a string, asks at most a few times.
        loop {
            match step {
                Step::Ask(place, access, plan) => {
                    let Some((value, exit)) = self.own_place(place, access, vcpu, vm) else {
                        vcpu.waiting = Waiting::Device(plan, access.width());
                        return Some(Exit::Io(place, access));
                    };
                    then = then.or(exit);
                    step = plan.answer(value, &mut View::of(vcpu), vm.memory());
                }
                Step::Retry => return then,
                Step::Done(0) => return self.advance_element(vcpu).or(then),
                Step::Done(length) => return self.advance(vcpu, length).or(then),
                Step::Raise(raise) => return self.raise_for(vcpu, raise).or(then),
                Step::Refuse(refusal) => return refuse(refusal),
            }
        }
    }

    /// The core's device has answered.
    pub(crate) fn resume(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let waiting = core::mem::replace(&mut vcpu.waiting, Waiting::Nothing);
        let Waiting::Answered(plan, value) = waiting else { return None };
        let step = plan.answer(value, &mut View::of(vcpu), vm.memory());
        self.follow(step, vcpu, vm)
    }

    /// An access to what is the back end's own, and what it asks of the core; `None` if it is another's.
    #[inline]
    fn own_place(
        &self,
        place: Place,
        access: Access,
        vcpu: &mut Vcpu<V>,
        vm: &Vm<Self>,
    ) -> Option<(u64, Option<Exit>)> {
        let at = match place {
            Place::Memory(at) => at.0,
            Place::Port(port) => return self.own_port(port, access, vcpu, vm).map(|value| (value, None)),
        };
        let local = at.wrapping_sub(pc::LAPIC.0);
        if local < PAGE_BYTES && vcpu.apic.is_mapped() {
            return Some(self.apic_page(vcpu, vm, local, access));
        }
        let shared = at.wrapping_sub(pc::IOAPIC.0);
        if shared < PAGE_BYTES {
            let (value, woken) = vm.irqs(self).wires.mmio(shared, access);
            vm.wake(self, woken, Some(vcpu.id));
            return Some((value, None));
        }
        None
    }

    fn raise_for(&self, vcpu: &mut Vcpu<V>, raise: Raise) -> Option<Exit> {
        let exception = match raise {
            Raise::PageFault(fault) => {
                vcpu.control.set(Register::Cr2, fault.address);
                Delivery::exception(exception_vector::PAGE, Some(fault.code))
            }
            Raise::GeneralProtection => Delivery::exception(exception_vector::PROTECTION, Some(0)),
            Raise::StackFault => Delivery::exception(exception_vector::STACK, Some(0)),
        };
        self.raise(vcpu, exception)
    }
}

/// The instruction at hand, found by a walk through the guest's tables.
#[cold]
#[inline(never)]
fn walk<V: Vendor>(vcpu: &mut Vcpu<V>, vm: &Vm<X86<V>>) -> Result<Instruction, Step> {
    let instruction = mmio::current(&View::of(vcpu), vm.memory());
    learn_code(vcpu, vm);
    instruction
}

/// An access that no instruction makes.
#[cold]
fn hopeless(access: MemoryAccess) -> Option<Exit> {
    let cause = if access.is_walk {
        "its page tables lie where it has no RAM"
    } else if access.is_fetch {
        "it jumped to where it has no RAM"
    } else {
        "it took an interrupt or exception whose stack or tables lie where it has no RAM"
    };
    fault(cause, Some(Place::Memory(access.at)))
}

#[cold]
fn refuse(refusal: Refusal) -> Option<Exit> {
    match refusal {
        Refusal::Instruction => {
            fault("it accessed a device by an instruction that is not made for device registers", None)
        }
        Refusal::TableOutsideRam(at) => {
            fault("its page tables lie where it has no RAM", Some(Place::Memory(at)))
        }
    }
}
