//! The identity map: one level-1 table of 1 GiB blocks, devices below 1 GiB, memory above.
//!
//! The table is a constant of the image, right wherever it is loaded, so it serves before any store was made.
#![expect(unsafe_code, reason = "TLB maintenance")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const ENTRIES: usize = 64;
/// Attribute 0: Device-nGnRnE; attribute 1: normal, write-back (Arm ARM D19.2.97).
pub(crate) const MAIR: u64 = 0xff00;
/// 36 bits of address below, none above, 4 KiB granule, walks write-back and inner shareable (Arm ARM D19.2.139).
pub(crate) const TCR: u64 = 28 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 32;

const BLOCK: u64 = 0b01;
const NORMAL: u64 = 1 << 2 | 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const NO_EXECUTE: u64 = 0b11 << 53;

#[repr(C, align(4096))]
pub(crate) struct Table([AtomicU64; ENTRIES]);

pub(crate) static TABLE: Table = Table(identity());

const fn identity() -> [AtomicU64; ENTRIES] {
    let mut table = [const { AtomicU64::new(0) }; ENTRIES];
    table[0] = AtomicU64::new(BLOCK | ACCESSED | NO_EXECUTE);
    let mut gigabyte = 1;
    while gigabyte < ENTRIES - 1 {
        table[gigabyte] = AtomicU64::new(memory_block(gigabyte as u64));
        gigabyte += 1;
    }
    table
}

const fn memory_block(gigabyte: u64) -> u64 {
    gigabyte << 30 | BLOCK | ACCESSED | NORMAL
}

/// The address at which [`alias`] shows memory: the last gigabyte of the map.
pub const ALIAS: usize = (ENTRIES - 1) << 30;

/// Shows the gigabyte of memory numbered `gigabyte` a second time, at [`ALIAS`]; `None` unmaps it.
pub fn alias(gigabyte: Option<u64>) {
    let entry = &TABLE.0[ENTRIES - 1];
    entry.store(0, Relaxed);
    flush();
    if let Some(gigabyte) = gigabyte {
        entry.store(memory_block(gigabyte), Relaxed);
        flush();
    }
}

/// Destroys the map of everything, the program's own code too; the next instruction already faults.
pub fn destroy() {
    for entry in &TABLE.0 {
        entry.store(0, Relaxed);
    }
    flush();
}

fn flush() {
    // SAFETY: drops cached translations only; the table holds what the program wants.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// Translates `address` as a load at EL1 would: the physical address, or `None` on a fault (AT S1E1R).
#[must_use]
pub fn translate(address: usize) -> Option<u64> {
    let result: u64;
    // SAFETY: asks the MMU and reads the answer; no memory changes.
    unsafe {
        asm!("at s1e1r, {a}", "isb", "mrs {r}, par_el1", a = in(reg) address, r = out(reg) result, options(nostack));
    }
    (result & 1 == 0).then_some(result & 0x000f_ffff_ffff_f000 | (address as u64 & 0xfff))
}
