//! Loads and stores of one width, one instruction each, in the plain form whose syndrome a hypervisor can decode.
//!
//! Never reaches memory that the program lives in: an address inside RAM is refused by a panic.
#![expect(unsafe_code, reason = "memory-mapped registers")]

use core::arch::asm;

use crate::machine;

macro_rules! width {
    ($read:ident, $write:ident, $load:literal, $store:literal, $type:ty) => {
        #[doc = concat!("One `", $load, "`; 0 if the load was caught by [`crate::exception::catch`].")]
        #[must_use]
        pub fn $read(address: usize) -> $type {
            assert!(!machine::is_ram(address));
            let mut value: u64 = 0;
            // SAFETY: nothing of the program lives outside RAM.
            unsafe { asm!(concat!($load, ", [{a}]"), a = in(reg) address, v = inout(reg) value, options(nostack)) };
            <$type>::try_from(value).unwrap_or_default()
        }

        #[doc = concat!("One `", $store, "`.")]
        pub fn $write(address: usize, value: $type) {
            assert!(!machine::is_ram(address));
            let value = u64::from(value);
            // SAFETY: nothing of the program lives outside RAM.
            unsafe { asm!(concat!($store, ", [{a}]"), a = in(reg) address, v = in(reg) value, options(nostack)) };
        }
    };
}

width!(read8, write8, "ldrb {v:w}", "strb {v:w}", u8);
width!(read16, write16, "ldrh {v:w}", "strh {v:w}", u16);
width!(read32, write32, "ldr {v:w}", "str {v:w}", u32);
width!(read64, write64, "ldr {v}", "str {v}", u64);
