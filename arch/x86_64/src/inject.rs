//! What a guest takes before its next instruction: exceptions first, then what was interrupted, NMIs, interrupts.
//!
//! At most one per entry. What has to wait makes a window wanted, so that no interrupt waits longer than its guest lets it.

use crate::hw::read_tsc;
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, Delivery, DeliveryKind, Vendor, Window};
use crate::x86::{NEVER, X86};
use bulkhead::vm::Vm;
use bulkhead_vdev::lapic::LocalApic;

/// How many times a second it is looked whether a guest takes NMIs again, where the CPU does not tell.
const NMI_LOOKS_PER_SECOND: u64 = 50_000;

/// #DF
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
/// #DE, #TS, #NP, #SS, #GP, #CP (SDM Vol. 3A, table 6-4).
const CONTRIBUTORY: u32 = 1 | 0xf << 10 | 1 << 21;

/// What an exception becomes that comes while another one is being delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Combined {
    /// The guest takes this.
    Deliver(Delivery),
    /// A fault while the handler of a double fault was called: the CPU shuts down.
    Shutdown,
}

/// SDM Vol. 3A, table 6-5: `second` comes while `first` is delivered.
#[must_use]
pub fn combine(first: Delivery, second: Delivery) -> Combined {
    let is_contributory = |delivery: Delivery| {
        delivery.kind == DeliveryKind::Exception
            && CONTRIBUTORY.checked_shr(delivery.vector.into()).unwrap_or(0) & 1 != 0
    };
    let is = |delivery: Delivery, vector: u8| {
        delivery.kind == DeliveryKind::Exception && delivery.vector == vector
    };
    let is_fault = is_contributory(second) || is(second, PAGE_FAULT);
    if is(first, DOUBLE_FAULT) && is_fault {
        return Combined::Shutdown;
    }
    let is_double = is_contributory(first) && is_contributory(second) || is(first, PAGE_FAULT) && is_fault;
    if is_double {
        return Combined::Deliver(Delivery::exception(DOUBLE_FAULT, Some(0)));
    }
    Combined::Deliver(second)
}

impl<V: Vendor> X86<V> {
    /// Brings the local APIC up to now and gives the guest what it has to take. Returns whether that ends a wait.
    #[inline(never)]
    pub(crate) fn deliver(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> bool {
        vcpu.todo &= !todo::LOOK;
        vcpu.apic.absorb();
        if let Some(due) = vcpu.apic.deadline() {
            let now = read_tsc();
            if due <= now {
                vcpu.apic.expire(now);
            }
        }
        let recheck = self.choose(vcpu, vm);
        let deadline = vcpu.apic.deadline().unwrap_or(NEVER).min(recheck);
        let has_own_timer = self.vendor.set_deadline(&mut vcpu.control, deadline);
        self.set_guest_deadline(if has_own_timer { NEVER } else { deadline });
        if vcpu.todo & todo::HALTED == 0 {
            return false;
        }
        // An NMI that can be taken is being injected; one that is blocked ends no wait.
        vcpu.control.is_injecting()
            || self.vendor.delivers_interrupts() && vcpu.control.is_open() && vcpu.apic.pending().is_some()
    }

    /// Returns when to look again whether an NMI can be taken.
    #[inline]
    fn choose(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> u64 {
        if !vcpu.control.is_injecting()
            && let Some(again) = vcpu.control.interrupted()
        {
            vcpu.control.inject(again);
        }
        let mut recheck = NEVER;
        if vcpu.apic.has_nmi() {
            recheck = self.non_maskable(vcpu);
        }
        if vcpu.apic.has_external() {
            self.external(vcpu, vm);
        } else if self.vendor.delivers_interrupts() {
            hand_over(vcpu);
            vcpu.control.want_window(Window::Unwanted);
        } else {
            self.fixed(vcpu);
        }
        recheck
    }

    #[cold]
    fn non_maskable(&self, vcpu: &mut Vcpu<V>) -> u64 {
        if !vcpu.control.is_injecting() && vcpu.control.is_open_for_nmi() {
            vcpu.apic.take_nmi();
            vcpu.control.inject(Delivery::nmi());
            return NEVER;
        }
        if vcpu.control.want_nmi_window() {
            return NEVER;
        }
        read_tsc().saturating_add(self.platform.ticks_per_second / NMI_LOOKS_PER_SECOND)
    }

    /// An interrupt of the 8259s.
    #[cold]
    fn external(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) {
        if self.vendor.delivers_interrupts() {
            hand_over(vcpu);
        }
        if vcpu.control.is_injecting() || !vcpu.control.is_open() {
            vcpu.control.want_window(Window::External);
            return;
        }
        let vector = vm.irqs(self).wires.acknowledge_pic();
        vcpu.apic.take_external();
        vcpu.control.inject(Delivery::external(vector));
        if vcpu.apic.has_external() {
            vcpu.control.want_window(Window::External);
        } else if self.vendor.delivers_interrupts() {
            vcpu.control.want_window(Window::Unwanted);
        } else {
            self.fixed(vcpu);
        }
    }

    /// An interrupt of the local APIC.
    #[inline]
    fn fixed(&self, vcpu: &mut Vcpu<V>) {
        let priority = vcpu.control.task_priority();
        if priority != vcpu.apic.cr8() {
            // CR8 has four bits; more were refused by the CPU.
            let _ = vcpu.apic.set_cr8(priority.into());
        }
        if let Some(vector) = vcpu.apic.pending()
            && !vcpu.control.is_injecting()
            && vcpu.control.is_open()
        {
            vcpu.apic.take(vector);
            vcpu.control.inject(Delivery::external(vector));
            // It was the highest one: what else was requested waits for its end.
            vcpu.control.want_window(Window::Unwanted);
            return;
        }
        vcpu.control.want_window(waiting(&vcpu.apic).map_or(Window::Unwanted, Window::Vector));
    }
}

/// The interrupt that comes next once the guest lets it in, by RFLAGS.IF or by CR8.
#[inline]
fn waiting(apic: &LocalApic) -> Option<u8> {
    let pending = apic.pending();
    if pending.is_none() && apic.cr8() != 0 { held_by_task_priority(apic) } else { pending }
}

/// The CPU itself delivers what has been requested.
#[inline]
fn hand_over<V: Vendor>(vcpu: &mut Vcpu<V>) {
    let requested = vcpu.apic.newly_requested();
    let levels = vcpu.apic.changed_levels();
    vcpu.control.refresh_page(requested, levels);
}

/// The interrupt that a lower task priority would let in: the guest may write CR8 without an exit.
#[cold]
fn held_by_task_priority(apic: &LocalApic) -> Option<u8> {
    let vector = apic.highest_requested();
    (vector >> 4 > apic.highest_in_service() >> 4).then_some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::sync::Arc;

    #[test]
    fn an_interrupt_that_waits_for_the_task_priority_is_waited_for() {
        use bulkhead_vdev::lapic::{Apics, Features, Owner, Page, Setup, register};
        let setup =
            Setup { features: Features::X2APIC, owner: Owner::Software, ticks_per_second: 1_000_000_000 };
        let page = Box::leak(Box::new(Page::new()));
        let mut apic = LocalApic::new(0, page, Arc::new(Apics::new(1)), setup);
        let _ = apic.write(register::SPURIOUS, 0x1ff, 0);
        assert_eq!(waiting(&apic), None);
        // To itself.
        let _ = apic.write(register::COMMAND, 0x4_0051, 0);
        assert_eq!(waiting(&apic), Some(0x51));
        apic.set_cr8(5).unwrap();
        assert_eq!((apic.pending(), waiting(&apic)), (None, Some(0x51)));
        apic.set_cr8(0).unwrap();
        apic.take(0x51);
        apic.set_cr8(5).unwrap();
        let _ = apic.write(register::COMMAND, 0x4_0050, 0);
        assert_eq!(waiting(&apic), None, "it waits for the one in service");
    }

    fn exception(vector: u8) -> Delivery {
        Delivery::exception(vector, None)
    }

    #[test]
    fn two_contributory_exceptions_are_a_double_fault() {
        let double = Combined::Deliver(Delivery::exception(DOUBLE_FAULT, Some(0)));
        assert_eq!(combine(exception(13), exception(11)), double);
        assert_eq!(combine(exception(14), exception(13)), double);
        assert_eq!(combine(exception(14), exception(14)), double);
    }

    #[test]
    fn benign_ones_are_taken_one_after_the_other() {
        assert_eq!(combine(exception(13), exception(14)), Combined::Deliver(exception(14)));
        assert_eq!(combine(exception(17), exception(17)), Combined::Deliver(exception(17)));
        assert_eq!(combine(Delivery::external(0x30), exception(13)), Combined::Deliver(exception(13)));
        assert_eq!(combine(exception(8), exception(1)), Combined::Deliver(exception(1)));
    }

    #[test]
    fn a_fault_of_the_double_fault_is_the_end() {
        assert_eq!(combine(exception(8), exception(13)), Combined::Shutdown);
        assert_eq!(combine(exception(8), exception(14)), Combined::Shutdown);
    }
}
