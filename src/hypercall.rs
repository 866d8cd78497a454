//! The hypervisor's own services: number -> function.
//!
//! A back end decodes a call as its architecture passes it; who may call what is decided here, by the VM's privileges.

use crate::arch::Arch;
use crate::config::Privilege;
use crate::vm::Vm;
use core::hint::black_box;

/// There is no such service, or not for this VM.
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// Makes the hypervisor fail in the caller's service; the argument says how ([`fail`]).
const PROVOKE_PANIC: u64 = 0xdead;

/// Performs service `number` for `vm`.
#[cold]
#[inline(never)]
pub fn call<A: Arch>(arch: &A, vm: &Vm<A>, number: u64, arguments: [u64; 4]) -> u64 {
    match number {
        PROVOKE_PANIC if vm.config.privileges.contains(&Privilege::ProvokePanic) => {
            fail(arch, vm, arguments[0])
        }
        _ => NOT_SUPPORTED,
    }
}

/// Fails in one of the ways that matter: plainly, with a lock of the VM held, beyond the end of the stack, or with what all
/// VMs share held.
fn fail<A: Arch>(arch: &A, vm: &Vm<A>, how: u64) -> ! {
    match how {
        1 => {
            let _held = vm.irqs(arch);
            panic!("the guest asked for a panic with its interrupt controller locked")
        }
        2 => panic!("the stack has no end: {}", descend(0)),
        3 => {
            vm.console.break_down();
            panic!("the guest asked for a panic with the consoles locked")
        }
        _ => panic!("the guest asked for a panic"),
    }
}

/// Uses stack until there is none.
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    if frame[0] == u64::MAX { 0 } else { descend(black_box(depth + 1)) + black_box(frame)[31] }
}
