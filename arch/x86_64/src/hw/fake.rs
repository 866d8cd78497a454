//! A scripted CPU for tests on the host: registers hold what was written, CPUID says what a test wants, and no interrupt comes
//! but those that a test queued.

use super::{Alarm, GuestMsr, HostTables, Leaf};
use bulkhead::arch::Arch;
use bulkhead::vcpu::Cpu;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
struct Scripted {
    leaves: HashMap<(u32, u32), Leaf>,
    msrs: HashMap<u32, u64>,
    registers: HashMap<&'static str, u64>,
    ports: HashMap<u16, u32>,
    interrupts: VecDeque<u8>,
    tsc: u64,
}

thread_local! {
    static CPU: RefCell<Scripted> = RefCell::default();
}

/// Makes CPUID answer `answer` on this thread.
pub fn set_cpuid(leaf: u32, subleaf: u32, answer: Leaf) {
    CPU.with_borrow_mut(|cpu| cpu.leaves.insert((leaf, subleaf), answer));
}

/// Makes an interrupt come.
pub fn queue_interrupt(vector: u8) {
    CPU.with_borrow_mut(|cpu| cpu.interrupts.push_back(vector));
}

/// Sets the time stamp counter.
pub fn set_tsc(value: u64) {
    CPU.with_borrow_mut(|cpu| cpu.tsc = value);
}

/// What the CPU says of itself.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    CPU.with_borrow(|cpu| cpu.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default())
}

/// Reads a model-specific register.
#[must_use]
pub fn read_msr(msr: u32) -> u64 {
    CPU.with_borrow(|cpu| cpu.msrs.get(&msr).copied().unwrap_or(0))
}

/// Writes a model-specific register.
///
/// # Safety
/// As on the real CPU; here nothing can happen.
pub unsafe fn write_msr(msr: u32, value: u64) {
    CPU.with_borrow_mut(|cpu| cpu.msrs.insert(msr, value));
}

/// Loads a guest's value.
pub fn write_guest_msr(msr: GuestMsr, value: u64) {
    CPU.with_borrow_mut(|cpu| cpu.msrs.insert(msr as u32, msr.accepted(value)));
}

fn get(name: &'static str) -> u64 {
    CPU.with_borrow(|cpu| cpu.registers.get(name).copied().unwrap_or(0))
}

fn set(name: &'static str, value: u64) {
    CPU.with_borrow_mut(|cpu| cpu.registers.insert(name, value));
}

macro_rules! register {
    ($($read:ident, $write:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("The register ", $name, ".")]
            #[must_use]
            pub fn $read() -> u64 {
                get($name)
            }

            #[doc = concat!("The register ", $name, ".")]
            pub fn $write(value: u64) {
                set($name, value);
            }
        )*
    };
}
register! {
    read_cr2, write_cr2 = "cr2";
    read_dr0, write_dr0 = "dr0";
    read_dr1, write_dr1 = "dr1";
    read_dr2, write_dr2 = "dr2";
    read_dr3, write_dr3 = "dr3";
    read_dr6, write_dr6 = "dr6";
    read_xcr0, write_xcr0 = "xcr0";
}

macro_rules! own_register {
    ($($read:ident, $write:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("Our own ", $name, ".")]
            #[must_use]
            pub fn $read() -> u64 {
                get($name)
            }

            #[doc = concat!("Changes our own ", $name, ".")]
            ///
            /// # Safety
            /// As on the real CPU; here nothing can happen.
            pub unsafe fn $write(value: u64) {
                set($name, value);
            }
        )*
    };
}
own_register! {
    read_cr0, write_cr0 = "cr0";
    read_cr3, write_cr3 = "cr3";
    read_cr4, write_cr4 = "cr4";
}

/// The time stamp counter: a test's value, which grows by 1 with each look.
#[must_use]
pub fn read_tsc() -> u64 {
    CPU.with_borrow_mut(|cpu| {
        cpu.tsc += 1;
        cpu.tsc
    })
}

/// Nothing overtakes anything.
pub fn fence_stores() {}

/// Nothing is cached.
pub fn write_back_caches() {}

/// Nothing is cached.
pub fn invalidate_page(_at: u64) {}

macro_rules! port {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads what was written to the port.
        ///
        /// # Safety
        /// As on the real CPU; here nothing can happen.
        #[must_use]
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast, reason = "as wide as the access")]
        pub unsafe fn $read(port: u16) -> $type {
            CPU.with_borrow(|cpu| cpu.ports.get(&port).copied().unwrap_or(0)) as $type
        }

        /// Writes to the port.
        ///
        /// # Safety
        /// As on the real CPU; here nothing can happen.
        pub unsafe fn $write(port: u16, value: $type) {
            CPU.with_borrow_mut(|cpu| cpu.ports.insert(port, value.into()));
        }
    };
}
port!(in8, out8, u8);
port!(in16, out16, u16);
port!(in32, out32, u32);

/// The next queued interrupt.
#[must_use]
pub fn take_interrupt() -> Option<u8> {
    CPU.with_borrow_mut(|cpu| cpu.interrupts.pop_front())
}

/// The next queued interrupt.
#[must_use]
pub fn wait_for_interrupt() -> Option<u8> {
    take_interrupt()
}

/// Nobody would go on.
pub fn raise(alarm: Alarm) -> ! {
    panic!("the machine stops: {alarm:?}")
}

/// Not random at all.
#[must_use]
pub fn random() -> Option<u64> {
    Some(0x5eed)
}

/// No tables.
#[must_use]
pub fn host_tables() -> HostTables {
    HostTables::default()
}

/// Nothing is ever given up here.
pub fn keep_running<A: Arch>(cpu: &'static mut Cpu<A>) -> ! {
    cpu.run()
}

/// There is nothing to go back to.
pub fn give_up() -> ! {
    panic!("the VM has ended")
}

/// Copies nothing.
pub(super) unsafe fn xsave(_area: *mut u8, _mask: u64) {}

/// Copies nothing.
pub(super) unsafe fn xrstor(_area: *const u8, _mask: u64) {}

/// Copies nothing.
pub(super) unsafe fn fxsave(_area: *mut u8) {}

/// Copies nothing.
pub(super) unsafe fn fxrstor(_area: *const u8) {}

/// There are none.
pub(super) fn forget_x87_pointers() {}
