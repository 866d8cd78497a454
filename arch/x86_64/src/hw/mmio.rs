//! Device registers in host memory.

use core::ptr::with_exposed_provenance_mut;

/// One page of device registers that the hypervisor has mapped for itself, uncached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(usize);

impl Page {
    /// The registers at `at`, the address of a page.
    ///
    /// # Safety
    /// Device registers are there, mapped one to one for as long as the value lives, and nothing that Rust keeps its objects
    /// in. The device cannot be told to break memory safety through them.
    #[must_use]
    pub unsafe fn new(at: u64) -> Self {
        Self(usize::try_from(at & !0xfff).unwrap_or(0))
    }

    /// Reads 32 bits.
    #[inline]
    #[must_use]
    pub fn read32(&self, offset: usize) -> u32 {
        // SAFETY: inside the page that `new` was promised, aligned.
        unsafe { with_exposed_provenance_mut::<u32>(self.0 + (offset & 0xffc)).read_volatile() }
    }

    /// Writes 32 bits.
    #[inline]
    pub fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as `read32`.
        unsafe { with_exposed_provenance_mut::<u32>(self.0 + (offset & 0xffc)).write_volatile(value) };
    }

    /// Reads 8 bits.
    #[inline]
    #[must_use]
    pub fn read8(&self, offset: usize) -> u8 {
        // SAFETY: inside the page that `new` was promised.
        unsafe { with_exposed_provenance_mut::<u8>(self.0 + (offset & 0xfff)).read_volatile() }
    }

    /// Writes 8 bits.
    #[inline]
    pub fn write8(&self, offset: usize, value: u8) {
        // SAFETY: as `read8`.
        unsafe { with_exposed_provenance_mut::<u8>(self.0 + (offset & 0xfff)).write_volatile(value) };
    }
}
