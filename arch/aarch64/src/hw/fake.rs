//! A scripted CPU for tests on the host: registers that hold what was written, and guests that never run.

use super::registers::for_each_register;
use super::{GuestRegisters, Vector, guest_pstate};
use crate::el2::El2;
use bulkhead::vcpu::Cpu;
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    static REGISTERS: RefCell<HashMap<(&'static str, usize), u64>> = RefCell::default();
}

fn get(name: &'static str, number: usize) -> u64 {
    REGISTERS.with_borrow(|registers| registers.get(&(name, number)).copied().unwrap_or(0))
}

fn set(name: &'static str, number: usize, value: u64) {
    REGISTERS.with_borrow_mut(|registers| registers.insert((name, number), value));
}

macro_rules! declare {
    (
        guest { $($guest:ident = $guest_name:literal,)* }
        host { $($host:ident = $host_name:literal,)* }
        banked { $($banked:ident = $plain:literal or $vhe:literal,)* }
        listed { $($listed:ident = [$($number:literal $listed_name:literal),*],)* }
    ) => {
        $(
            #[doc = concat!("`", stringify!($guest), "`")]
            #[allow(non_camel_case_types, reason = "the manual's name")]
            pub struct $guest;

            impl $guest {
                /// The register's value.
                #[must_use]
                pub fn read() -> u64 {
                    get(stringify!($guest), 0)
                }

                /// Changes the register.
                pub fn write(value: u64) {
                    set(stringify!($guest), 0, value);
                }
            }
        )*
        $(
            #[doc = concat!("`", stringify!($host), "`")]
            #[expect(non_camel_case_types, reason = "the manual's name")]
            pub struct $host;

            impl $host {
                /// The register's value.
                #[must_use]
                pub fn read() -> u64 {
                    get(stringify!($host), 0)
                }

                /// Changes the register.
                ///
                /// # Safety
                /// As on the real CPU; here nothing can happen.
                pub unsafe fn write(value: u64) {
                    set(stringify!($host), 0, value);
                }
            }
        )*
        $(
            #[doc = concat!("The guest's `", stringify!($banked), "`")]
            #[expect(non_camel_case_types, reason = "the manual's name")]
            pub struct $banked;

            impl $banked {
                /// The register's value.
                #[must_use]
                pub fn read(_vhe: bool) -> u64 {
                    get(stringify!($banked), 0)
                }

                /// Changes the register.
                pub fn write(_vhe: bool, value: u64) {
                    set(stringify!($banked), 0, value);
                }
            }
        )*
        $(
            #[doc = concat!("`", stringify!($listed), "`, by number")]
            #[expect(non_camel_case_types, reason = "the manual's name")]
            pub struct $listed;

            impl $listed {
                /// The value of register `number`.
                #[must_use]
                pub fn read(number: usize) -> u64 {
                    get(stringify!($listed), number)
                }

                /// Changes register `number`.
                pub fn write(number: usize, value: u64) {
                    set(stringify!($listed), number, value);
                }
            }
        )*
    };
}
for_each_register!(declare);

/// No guest runs here: an interrupt comes at once.
pub fn enter(_guest: &mut GuestRegisters) -> Vector {
    Vector::Irq
}

/// Where the guest goes on in which state.
pub fn set_guest_pstate(value: u64) {
    set("SPSR_EL2", 0, guest_pstate(value));
}

/// The size of one SVE vector in bytes.
#[must_use]
pub fn vector_bytes() -> usize {
    16
}

/// Copies nothing.
pub fn save_simd(_state: &mut [u128; 32]) {}

/// Copies nothing.
pub fn load_simd(_state: &[u128; 32]) {}

/// Copies nothing.
pub fn save_sve(_state: &mut [u8], _vector_bytes: usize) {}

/// Copies nothing.
pub fn load_sve(_state: &[u8], _vector_bytes: usize) {}

pub(super) fn set_vttbr(vttbr: u64) {
    set("VTTBR_EL2", 0, vttbr);
}

/// Nothing to order.
pub fn isb() {}

/// Nothing to order.
pub fn dsb() {}

/// Nothing to wait for.
pub fn wait_for_interrupt() {}

/// Nothing is cached.
pub fn forget_guest_translations() {}

/// Nothing is cached.
pub fn forget_all_guests() {}

/// Nothing is cached.
pub fn clean(_at: u64, _bytes: usize) {}

/// Nothing is ever given up here.
pub fn keep_running(cpu: &'static mut Cpu<El2>) -> ! {
    cpu.run()
}

/// There is nothing to go back to.
pub fn give_up() -> ! {
    panic!("the VM has ended")
}
