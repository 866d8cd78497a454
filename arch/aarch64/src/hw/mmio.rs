//! Device registers in host memory.

use core::ops::Range;
use core::ptr::with_exposed_provenance_mut;

/// A block of device registers that the hypervisor has mapped for itself. Accesses outside it read 0 and write nothing.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: usize,
    bytes: usize,
}

impl Registers {
    /// The registers at `range`.
    ///
    /// # Safety
    /// The range holds device registers, mapped one to one as device memory for as long as the value lives, and
    /// nothing that Rust keeps its objects in. The device cannot be told to break memory safety through them.
    #[must_use]
    pub unsafe fn new(range: &Range<u64>) -> Self {
        let clip = |value| usize::try_from(value).unwrap_or(0);
        Self { base: clip(range.start), bytes: clip(range.end.saturating_sub(range.start)) }
    }

    /// The part of it from `offset` on.
    #[must_use]
    pub fn from_offset(&self, offset: usize) -> Self {
        let skip = offset.min(self.bytes);
        Self { base: self.base + skip, bytes: self.bytes - skip }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads 32 bits.
    #[inline]
    #[must_use]
    pub fn read32(&self, offset: usize) -> u32 {
        if offset + 4 > self.bytes {
            return 0;
        }
        // SAFETY: inside the block that `new` was promised; device registers are aligned.
        unsafe { with_exposed_provenance_mut::<u32>(self.base + (offset & !3)).read_volatile() }
    }

    /// Writes 32 bits.
    #[inline]
    pub fn write32(&self, offset: usize, value: u32) {
        if offset + 4 > self.bytes {
            return;
        }
        // SAFETY: as `read32`.
        unsafe { with_exposed_provenance_mut::<u32>(self.base + (offset & !3)).write_volatile(value) };
    }

    /// Reads 64 bits.
    #[inline]
    #[must_use]
    pub fn read64(&self, offset: usize) -> u64 {
        if offset + 8 > self.bytes {
            return 0;
        }
        // SAFETY: as `read32`.
        unsafe { with_exposed_provenance_mut::<u64>(self.base + (offset & !7)).read_volatile() }
    }

    /// Writes 64 bits.
    #[inline]
    pub fn write64(&self, offset: usize, value: u64) {
        if offset + 8 > self.bytes {
            return;
        }
        // SAFETY: as `read32`.
        unsafe { with_exposed_provenance_mut::<u64>(self.base + (offset & !7)).write_volatile(value) };
    }
}
