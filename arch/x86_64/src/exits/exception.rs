//! Exceptions that are taken from the guest first, because their delivery could repeat itself for ever.

use super::fault;
use super::guest::View;
use crate::control::{cr0, efer};
use crate::mmio::Guest as _;
use crate::paging::Reach;
use crate::vcpu::{Repeated, Vcpu};
use crate::vendor::{Control, Delivery, DeliveryKind, Register, TableName, Vendor};
use crate::x86::X86;
use bulkhead::arch::Exit;
use bulkhead::vm::Vm;
use bulkhead_vdev::GuestMemory as _;

/// How often the same exception comes at the same instruction before it is asked whether that is its own handler's first.
const MOST_REPEATS: u32 = 256;

impl<V: Vendor> X86<V> {
    /// #DB and #AC go on to the guest, unless that would never end.
    pub(super) fn exception(&self, exception: Delivery, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let vector = exception.vector;
        let same = |first: Delivery| first.kind == DeliveryKind::Exception && first.vector == vector;
        if vcpu.control.interrupted().is_some_and(same) {
            return fault("the delivery of an exception caused the same exception, for ever", None);
        }
        if self.repeats(vcpu) && handler(vcpu, vm, vector) == Some(vcpu.control.get(Register::Rip)) {
            return fault(
                "the handler of an exception causes it before its first instruction, for ever",
                None,
            );
        }
        self.raise(vcpu, exception)
    }

    /// Whether exceptions came at this instruction very often without another place in between.
    fn repeats(&self, vcpu: &mut Vcpu<V>) -> bool {
        let rip = vcpu.control.get(Register::Rip);
        let times = if vcpu.repeated.rip == rip { vcpu.repeated.times.saturating_add(1) } else { 0 };
        vcpu.repeated = Repeated { rip, times };
        if times < MOST_REPEATS {
            return false;
        }
        vcpu.repeated.times = 0;
        true
    }
}

/// Where the guest's handler of the exception starts, by its interrupt table.
fn handler<V: Vendor>(vcpu: &mut Vcpu<V>, vm: &Vm<X86<V>>, vector: u8) -> Option<u64> {
    let guest = View::of(vcpu);
    let is_long = guest.control.get(Register::Efer) & efer::LMA != 0;
    let is_protected = guest.control.get(Register::Cr0) & cr0::PE != 0;
    let bytes = match (is_long, is_protected) {
        (true, _) => 16,
        (false, true) => 8,
        (false, false) => 4,
    };
    let at = guest.control.table(TableName::Interrupt).base.wrapping_add(u64::from(vector) * bytes);
    let mut gate = [0; 16];
    let place = guest.paging().translate(vm.memory(), at, Reach::default()).ok()?;
    vm.memory().read(place, &mut gate).ok()?;
    let word = |at: usize| u64::from(u16::from_le_bytes([gate[at], gate[at + 1]]));
    // Offsets of gates (SDM Vol. 3A, 6.11 and 6.14.1; Vol. 3B, 20.1.4).
    Some(match (is_long, is_protected) {
        (true, _) => word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48,
        (false, true) => word(0) | word(6) << 16,
        (false, false) => word(0),
    })
}
