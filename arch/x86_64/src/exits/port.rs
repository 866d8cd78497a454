//! Ports: the 8259s are served here, all others are the core's devices.

use super::guest::View;
use crate::hw::Registers;
use crate::mmio;
use crate::vcpu::{Vcpu, Waiting, todo};
use crate::vendor::{PortAccess, Vendor};
use crate::x86::X86;
use bulkhead::arch::{Exit, Place};
use bulkhead::vm::Vm;
use bulkhead_vdev::{Access, Width, pc};

/// Whether the 8259s are there.
const fn is_wires(port: u16) -> bool {
    /// The two pairs differ in one bit.
    const OTHER: u16 = pc::PIC_MASTER ^ pc::PIC_SLAVE;
    port & !1 & !OTHER == pc::PIC_MASTER || port & !1 == pc::ELCR
}

impl<V: Vendor> X86<V> {
    #[inline]
    pub(super) fn port(&self, port: PortAccess, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if port.is_string() {
            return self.string_port(port, vcpu, vm);
        }
        let length = self.any_length(vcpu, vm)?;
        let access = if port.is_write() {
            Access::Write(port.width(), vcpu.registers.r[Registers::RAX] & port.width().mask())
        } else {
            Access::Read(port.width())
        };
        if let Some(value) = self.own_port(port.port(), access, vcpu, vm) {
            self.complete_port(vcpu, port, length, value);
            return None;
        }
        vcpu.waiting = Waiting::Port(port, length);
        Some(Exit::Io(Place::Port(port.port()), access))
    }

    /// The device has answered.
    #[inline]
    pub(crate) fn complete_port(&self, vcpu: &mut Vcpu<V>, port: PortAccess, length: u8, value: u64) {
        vcpu.waiting = Waiting::Nothing;
        if !port.is_write() {
            let rax = &mut vcpu.registers.r[Registers::RAX];
            let mask = port.width().mask();
            let kept = if port.width() == Width::Word { 0 } else { *rax & !mask };
            *rax = kept | value & mask;
        }
        // Nothing was being delivered, so a single step is no double fault.
        let _ = self.advance(vcpu, length);
    }

    /// An access to the 8259s; `None` if the port is another's.
    #[inline]
    pub(super) fn own_port(
        &self,
        port: u16,
        access: Access,
        vcpu: &mut Vcpu<V>,
        vm: &Vm<Self>,
    ) -> Option<u64> {
        if !is_wires(port) {
            return None;
        }
        let (value, woken) = vm.irqs(self).wires.port(port, access)?;
        vm.wake(self, woken, Some(vcpu.id));
        vcpu.todo |= todo::LOOK;
        Some(value)
    }

    #[cold]
    #[inline(never)]
    fn string_port(&self, port: PortAccess, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let mut guest = View::of(vcpu);
        let step = match mmio::current(&guest, vm.memory()) {
            Ok(instruction) => mmio::begin_string_port(&instruction, port.port(), &mut guest, vm.memory()),
            Err(step) => step,
        };
        self.follow(step, vcpu, vm)
    }
}
