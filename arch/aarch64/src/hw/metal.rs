//! The real CPU.

use super::registers::for_each_register;
use super::{GuestRegisters, Vector, guest_pstate};
use core::arch::{asm, global_asm};

global_asm!(
    include_str!("vectors.S"),
    start_emergency = const core::mem::offset_of!(super::start::Start, emergency),
    trap = sym super::start::trap,
);
global_asm!(include_str!("floating.S"));

macro_rules! declare {
    (
        guest { $($guest:ident = $guest_name:literal,)* }
        host { $($host:ident = $host_name:literal,)* }
        banked { $($banked:ident = $plain:literal or $vhe:literal,)* }
        listed { $($listed:ident = [$($number:literal $listed_name:literal),*],)* }
    ) => {
        $(
            #[doc = concat!("`", stringify!($guest), "`")]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the manual's name")]
            pub struct $guest;

            impl $guest {
                /// The register's value.
                #[inline(always)]
                #[must_use]
                pub fn read() -> u64 {
                    let value;
                    // SAFETY: reading this register changes nothing that Rust relies on.
                    unsafe { asm!(concat!("mrs {}, ", $guest_name), out(reg) value, options(nostack)) };
                    value
                }

                /// Changes the register.
                #[inline(always)]
                pub fn write(value: u64) {
                    // SAFETY: the register is a guest's, or only says when we are interrupted; Rust relies on neither.
                    unsafe { asm!(concat!("msr ", $guest_name, ", {}"), in(reg) value, options(nostack)) };
                }
            }
        )*
        $(
            #[doc = concat!("`", stringify!($host), "`")]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the manual's name")]
            pub struct $host;

            impl $host {
                /// The register's value.
                #[inline(always)]
                #[must_use]
                pub fn read() -> u64 {
                    let value;
                    // SAFETY: reading this register changes nothing.
                    unsafe { asm!(concat!("mrs {}, ", $host_name), out(reg) value, options(nostack)) };
                    value
                }

                /// Changes the register.
                ///
                /// # Safety
                /// The new value keeps guests where they belong and EL2 running.
                #[inline(always)]
                pub unsafe fn write(value: u64) {
                    // SAFETY: the caller answers for the value.
                    unsafe { asm!(concat!("msr ", $host_name, ", {}"), in(reg) value, options(nostack)) };
                }
            }
        )*
        $(
            #[doc = concat!("The guest's `", stringify!($banked), "`")]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the manual's name")]
            pub struct $banked;

            impl $banked {
                /// The register's value; `vhe` says whether EL2 runs with VHE.
                #[inline(always)]
                #[must_use]
                pub fn read(vhe: bool) -> u64 {
                    let value;
                    if vhe {
                        // SAFETY: reading a guest's register changes nothing.
                        unsafe { asm!(concat!("mrs {}, ", $vhe), out(reg) value, options(nostack)) };
                    } else {
                        // SAFETY: as above.
                        unsafe { asm!(concat!("mrs {}, ", $plain), out(reg) value, options(nostack)) };
                    }
                    value
                }

                /// Changes the register.
                #[inline(always)]
                pub fn write(vhe: bool, value: u64) {
                    if vhe {
                        // SAFETY: the register rules EL1 and EL0 only, where no code of ours runs.
                        unsafe { asm!(concat!("msr ", $vhe, ", {}"), in(reg) value, options(nostack)) };
                    } else {
                        // SAFETY: as above.
                        unsafe { asm!(concat!("msr ", $plain, ", {}"), in(reg) value, options(nostack)) };
                    }
                }
            }
        )*
        $(
            #[doc = concat!("`", stringify!($listed), "`, by number")]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the manual's name")]
            pub struct $listed;

            impl $listed {
                /// The value of register `number`; 0 beyond the last one.
                #[inline]
                #[must_use]
                pub fn read(number: usize) -> u64 {
                    let mut value = 0;
                    match number {
                        $($number => {
                            // SAFETY: reading this register changes nothing.
                            unsafe { asm!(concat!("mrs {}, ", $listed_name), out(reg) value, options(nostack)) };
                        })*
                        _ => {}
                    }
                    value
                }

                /// Changes register `number`; nothing beyond the last one.
                #[inline]
                pub fn write(number: usize, value: u64) {
                    match number {
                        $($number => {
                            // SAFETY: the register holds state of a guest.
                            unsafe { asm!(concat!("msr ", $listed_name, ", {}"), in(reg) value, options(nostack)) };
                        })*
                        _ => {}
                    }
                }
            }
        )*
    };
}
for_each_register!(declare);

unsafe extern "C" {
    fn bulkhead_enter(guest: *mut GuestRegisters) -> u64;
    fn bulkhead_save_simd(state: *mut u128);
    fn bulkhead_load_simd(state: *const u128);
    fn bulkhead_save_sve(vectors: *mut u8, predicates: *mut u8);
    fn bulkhead_load_sve(vectors: *const u8, predicates: *const u8);
    fn bulkhead_vector_bytes() -> usize;
}

/// Runs the guest until an exception comes to EL2. What it reaches is what the last [`set_space`] said; nothing before that.
#[inline(always)]
pub fn enter(guest: &mut GuestRegisters) -> Vector {
    // SAFETY: the code saves and restores every register that the calling convention protects, and touches no memory but
    // `guest` and our own stack; the guest itself is confined by the second stage and by HCR_EL2.
    match unsafe { bulkhead_enter(guest) } {
        0 => Vector::Synchronous,
        1 => Vector::Irq,
        2 => Vector::Fiq,
        _ => Vector::SError,
    }
}

/// Where the guest goes on in which state; a state above EL1 is made one of EL1.
pub fn set_guest_pstate(value: u64) {
    // SAFETY: the state is a guest's.
    unsafe { SPSR_EL2::write(guest_pstate(value)) };
}

/// The size of one SVE vector in bytes.
#[must_use]
pub fn vector_bytes() -> usize {
    // SAFETY: the instruction only reads; it exists where the caller found SVE, else it would trap to our own vector.
    unsafe { bulkhead_vector_bytes() }
}

/// Copies the 32 SIMD registers out of the CPU.
pub fn save_simd(state: &mut [u128; 32]) {
    // SAFETY: 512 bytes, exclusively ours.
    unsafe { bulkhead_save_simd(state.as_mut_ptr()) };
}

/// Copies the 32 SIMD registers into the CPU.
pub fn load_simd(state: &[u128; 32]) {
    // SAFETY: 512 bytes; no code of ours uses these registers.
    unsafe { bulkhead_load_simd(state.as_ptr()) };
}

/// Copies the SVE registers out of the CPU: 32 vectors of `vector_bytes`, then 17 predicates of an eighth of that.
///
/// # Panics
/// If `state` is shorter: our own mistake.
pub fn save_sve(state: &mut [u8], vector_bytes: usize) {
    let (vectors, predicates) = state.split_at_mut(32 * vector_bytes);
    assert!(predicates.len() >= 17 * vector_bytes / 8, "the SVE state was allocated for this CPU");
    // SAFETY: the lengths were just checked against what the instructions write at this vector length.
    unsafe { bulkhead_save_sve(vectors.as_mut_ptr(), predicates.as_mut_ptr()) };
}

/// Copies the SVE registers into the CPU.
///
/// # Panics
/// As [`save_sve`].
pub fn load_sve(state: &[u8], vector_bytes: usize) {
    let (vectors, predicates) = state.split_at(32 * vector_bytes);
    assert!(predicates.len() >= 17 * vector_bytes / 8, "the SVE state was allocated for this CPU");
    // SAFETY: as in `save_sve`, for reading.
    unsafe { bulkhead_load_sve(vectors.as_ptr(), predicates.as_ptr()) };
}

/// Gives the CPU the second stage whose root and identifier `vttbr` holds, made by `Space::new` alone.
pub(super) fn set_vttbr(vttbr: u64) {
    // SAFETY: the value comes from a `Stage2`, which maps claims only.
    unsafe { VTTBR_EL2::write(vttbr) };
    isb();
}

/// Context synchronisation.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// What was written is seen by all CPUs and tables before what follows.
#[inline(always)]
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Waits for an interrupt, which may be masked.
pub fn wait_for_interrupt() {
    // SAFETY: a hint.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Forgets cached translations of the current VTTBR_EL2's guest, both stages, on all CPUs.
pub fn forget_guest_translations() {
    // SAFETY: invalidation only makes translations be fetched again.
    unsafe { asm!("dsb ishst", "tlbi vmalls12e1is", "dsb ish", "isb", options(nostack)) };
}

/// Forgets cached instructions and translations of guests on this CPU.
pub fn forget_all_guests() {
    // SAFETY: as above.
    unsafe { asm!("tlbi alle1", "ic iallu", "dsb nsh", "isb", options(nostack)) };
}

/// Writes the data cache's lines of `bytes` from `at` back to memory, and drops the instruction caches' copies.
pub fn clean(at: u64, bytes: usize) {
    let line = 4u64 << (CTR_EL0::read() >> 16 & 0xf);
    let end = at + bytes as u64;
    let mut next = at & !(line - 1);
    while next < end {
        // SAFETY: maintenance moves data, it does not change it.
        unsafe { asm!("dc cvac, {}", in(reg) next, options(nostack)) };
        next += line;
    }
    // SAFETY: as above.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack)) };
}

/// Firmware call by `SMC`.
pub fn smc(call: [u64; 4]) -> u64 {
    let [function, first, second, third] = call;
    let result;
    // SAFETY: the calling convention (DEN0028 2.6) preserves x18 to x30; the calls made here change no memory of ours.
    unsafe {
        asm!("smc #0", inlateout("x0") function => result, in("x1") first, in("x2") second, in("x3") third,
            clobber_abi("C"), options(nostack));
    }
    result
}

/// Firmware call by `HVC`, where firmware is a hypervisor below us.
pub fn hvc(call: [u64; 4]) -> u64 {
    let [function, first, second, third] = call;
    let result;
    // SAFETY: as `smc`.
    unsafe {
        asm!("hvc #0", inlateout("x0") function => result, in("x1") first, in("x2") second, in("x3") third,
            clobber_abi("C"), options(nostack));
    }
    result
}
