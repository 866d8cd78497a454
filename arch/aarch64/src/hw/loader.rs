//! The loader's word: where the device tree, the machine's RAM and the system archive are.
//!
//! Nothing can prove it, so this is where it is believed. What is read here is never given to a guest.

use super::clean;
use super::start::image;
use crate::machine::{Machine, device_tree_bytes};
use alloc::vec::Vec;
use bulkhead::memory::{HostMemory, PAGE};
use core::ops::Range;

/// The device tree at the address that came in x0, if that can be one.
pub(super) fn device_tree(at: u64) -> Option<&'static [u8]> {
    let pointer = core::ptr::with_exposed_provenance::<u8>(usize::try_from(at).ok()?);
    if pointer.is_null() || !at.is_multiple_of(8) {
        return None;
    }
    // Our caches are off, the loader's may have been on.
    clean(at, size_of::<[u8; 8]>());
    // SAFETY: the boot protocol puts the address of a device tree of at least a header into x0.
    let start = unsafe { pointer.cast::<[u8; 8]>().read() };
    let bytes = device_tree_bytes(start)?;
    clean(at, bytes);
    // SAFETY: the header says how long the tree is; nothing writes to it, as `memory` keeps it.
    Some(unsafe { core::slice::from_raw_parts(pointer, bytes) })
}

/// The machine's RAM, less ourselves, the archive, the device tree and what firmware keeps.
pub(crate) fn memory(machine: &Machine<'_>, tree: &[u8]) -> HostMemory {
    let tree = tree.as_ptr().addr() as u64..(tree.as_ptr().addr() + tree.len()) as u64;
    let mut used: Vec<Range<u64>> = [image(), tree].map(pages_around).into();
    used.extend(machine.archive.clone().map(pages_around));
    used.extend(machine.reserved.iter().cloned().map(pages_around));
    // SAFETY: the device tree says what is RAM, `own_tables` maps it, and what lies in it is listed.
    unsafe { HostMemory::new(machine.ram.iter().cloned().collect(), used) }
}

/// The archive that the loader passed as initial RAM disk; empty if there is none.
pub(crate) fn archive(machine: &Machine<'_>) -> &'static [u8] {
    let Some(range) = machine.archive.clone() else { return &[] };
    if !machine.ram.iter().any(|bank| bank.start <= range.start && range.end <= bank.end) {
        return &[];
    }
    let (Ok(start), Ok(bytes)) =
        (usize::try_from(range.start), usize::try_from(range.end.saturating_sub(range.start)))
    else {
        return &[];
    };
    // SAFETY: RAM, mapped, kept out of what is given to guests by `memory`, and written by nobody.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(start), bytes) }
}

/// The whole pages that `range` touches.
pub(super) fn pages_around(range: Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE)
}
