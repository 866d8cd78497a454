//! What a boot protocol hands to a guest in memory, in one piece below 640 KiB, so that one place has to be found for it.

use crate::pc_placement::{DoesNotFit, Layout, Part};
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;

/// The piece: where it lies, and its bytes so far.
#[derive(Debug)]
pub(crate) struct BootData {
    start: Gpa,
    capacity: usize,
    bytes: Vec<u8>,
}

/// What the code segment of a guest's first descriptor table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CodeSegment {
    /// 32-bit protected mode.
    Protected,
    /// 64-bit mode.
    Long,
}

/// Where a descriptor table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// Its first byte.
    pub base: Gpa,
    /// Its last byte's offset.
    pub limit: u16,
}

/// Descriptors of 4 GiB from 0, already marked as used (SDM Vol. 3A, 3.4.5).
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;

impl BootData {
    /// Room for `capacity` bytes, from the start of a page.
    pub(crate) fn new(layout: &mut Layout, capacity: usize) -> Result<Self, DoesNotFit> {
        let start = layout.take_low(Part::BootData, capacity as u64, 4096)?;
        Ok(Self { start, capacity, bytes: Vec::with_capacity(capacity) })
    }

    /// Adds `bytes` at the next multiple of `alignment`; says where that is.
    pub(crate) fn add(&mut self, bytes: &[u8], alignment: usize) -> Gpa {
        let offset = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(bytes);
        debug_assert!(self.bytes.len() <= self.capacity, "each format counts what it adds");
        Gpa(self.start.0 + offset as u64)
    }

    /// Adds a text with its final zero.
    pub(crate) fn add_text(&mut self, text: &str) -> Gpa {
        let at = self.add(text.as_bytes(), 1);
        self.bytes.push(0);
        at
    }

    /// Adds the descriptor table of Linux's boot protocol: selector 0x10 is code, 0x18 data.
    pub(crate) fn add_descriptors(&mut self, code: CodeSegment) -> Descriptors {
        let code = match code {
            CodeSegment::Protected => CODE_32,
            CodeSegment::Long => CODE_64,
        };
        let table = [0, 0, code, DATA].map(u64::to_le_bytes);
        let limit = u16::try_from(size_of_val(&table) - 1).expect("it has four entries");
        Descriptors { base: self.add(table.as_flattened(), 8), limit }
    }

    /// Overwrites what [`BootData::add`] put at `at`.
    pub(crate) fn replace(&mut self, at: Gpa, bytes: &[u8]) {
        let offset = usize::try_from(at.0 - self.start.0).expect("it is below 640 KiB");
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> (Gpa, Vec<u8>) {
        (self.start, self.bytes)
    }
}

/// An address or a size that a [`Layout`] made, as 32 bits.
pub(crate) fn word(value: u64) -> u32 {
    u32::try_from(value).expect("a layout ends at 3 GiB")
}
