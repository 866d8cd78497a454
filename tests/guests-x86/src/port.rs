//! Port instructions, one each, and strings of them.
#![expect(unsafe_code, reason = "port instructions")]

use core::arch::asm;

use crate::attempt;
use crate::exception::Fault;

/// IN, one byte.
#[must_use]
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: devices cannot reach this program's memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// OUT, one byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// IN, two bytes.
#[must_use]
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// OUT, two bytes.
pub fn write16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// IN, four bytes.
#[must_use]
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// OUT, four bytes.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// REP OUTSB right behind STI, which holds interrupts back for one instruction.
pub fn write_all_unmasked(port: u16, bytes: &[u8]) {
    // SAFETY: reads the bytes; the vectors serve interrupts.
    unsafe {
        asm!("sti", "rep outsb", in("dx") port, inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _);
    }
}

/// REP OUTSB with a single step: how it ended, and how many bytes were left then.
pub fn write_all_stepping(port: u16, bytes: &[u8]) -> (Option<Fault>, usize) {
    let mut left = bytes.len();
    // SAFETY: reads the bytes.
    let fault = unsafe {
        attempt!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "rep outsb";
            in("dx") port, inout("rcx") left, inout("rsi") bytes.as_ptr() => _)
    };
    (fault, left)
}
