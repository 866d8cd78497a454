//! Who owns which host RAM.

use super::{Hpa, PAGE};
use alloc::vec::Vec;
use core::ops::Range;

/// The machine's RAM and who owns which part.
pub struct HostMemory {
    banks: Vec<Range<u64>>,
    taken: Vec<Range<u64>>,
}

/// Why a range was not given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimError {
    /// Not wholly inside one bank of RAM.
    NotRam,
    /// Part of it has an owner.
    Owned,
    /// Empty, or not made of whole pages.
    NotPages,
}

/// Exclusive ownership of a range of host RAM. It cannot be copied and is never given back.
#[derive(Debug)]
pub struct Claim(Range<u64>);

impl Claim {
    /// The first byte.
    #[must_use]
    pub fn start(&self) -> Hpa {
        Hpa(self.0.start)
    }

    /// In bytes; a multiple of [`PAGE`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.end - self.0.start
    }
}

impl HostMemory {
    /// The machine's RAM `banks`, of which `used` is owned already.
    ///
    /// # Safety
    /// Each bank is RAM that the hypervisor can read and write at its own address for as long as it runs, and
    /// nothing but what is in `used` lies in it.
    #[expect(unsafe_code, reason = "the one place where the loader's word about the machine's RAM is taken")]
    #[must_use]
    pub unsafe fn new(banks: Vec<Range<u64>>, used: Vec<Range<u64>>) -> Self {
        Self { banks, taken: used }
    }

    /// The banks of RAM.
    #[must_use]
    pub fn banks(&self) -> &[Range<u64>] {
        &self.banks
    }

    /// What has an owner.
    #[must_use]
    pub fn taken(&self) -> &[Range<u64>] {
        &self.taken
    }

    /// Gives `range` to the caller, for ever.
    ///
    /// # Errors
    /// [`ClaimError`] says why not.
    pub fn claim(&mut self, range: Range<u64>) -> Result<Claim, ClaimError> {
        if range.start >= range.end || !range.start.is_multiple_of(PAGE) || !range.end.is_multiple_of(PAGE) {
            return Err(ClaimError::NotPages);
        }
        if !self.banks.iter().any(|bank| bank.start <= range.start && range.end <= bank.end) {
            return Err(ClaimError::NotRam);
        }
        if self.taken.iter().any(|other| range.start < other.end && other.start < range.end) {
            return Err(ClaimError::Owned);
        }
        self.taken.push(range.clone());
        Ok(Claim(range))
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "nothing is read or written through these claims")]
mod tests {
    use super::*;
    use alloc::vec;

    fn memory() -> HostMemory {
        let (bank, image) = (0x4000_0000..0x8000_0000, 0x4020_0000..0x4040_0000);
        // SAFETY: no test dereferences a claim.
        unsafe { HostMemory::new(vec![bank], vec![image]) }
    }

    #[test]
    fn a_range_is_given_once() {
        let mut memory = memory();
        assert_eq!(memory.claim(0x5000_0000..0x5010_0000).map(|claim| claim.bytes()), Ok(0x10_0000));
        assert_eq!(memory.claim(0x500f_f000..0x5020_0000).err(), Some(ClaimError::Owned));
    }

    #[test]
    fn what_the_hypervisor_uses_is_refused() {
        assert_eq!(memory().claim(0x4000_0000..0x4020_1000).err(), Some(ClaimError::Owned));
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        assert_eq!(memory().claim(0x7fff_f000..0x8000_1000).err(), Some(ClaimError::NotRam));
        assert_eq!(memory().claim(0x0900_0000..0x0900_1000).err(), Some(ClaimError::NotRam));
    }

    #[test]
    fn a_claim_is_made_of_whole_pages() {
        assert_eq!(memory().claim(0x5000_0000..0x5000_0000).err(), Some(ClaimError::NotPages));
        assert_eq!(memory().claim(0x5000_0000..0x5000_0800).err(), Some(ClaimError::NotPages));
    }
}
