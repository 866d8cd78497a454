//! A VM's RAM, as the hypervisor itself reads and writes it: to load a kernel, and for devices.
//!
//! The guest runs beside us and may change any byte at any time, so nothing here hands out a reference: bytes are
//! copied, in or out, and what was copied is what is used.
#![expect(unsafe_code, reason = "guest RAM is not Rust's: it is copied by address, inside claims only")]

use super::{Claim, Hpa};
use alloc::vec::Vec;
use bulkhead_vdev::{Gpa, GuestMemory, OutsideRam, Width};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A VM's RAM: guest-physical ranges, each backed by one claim.
pub struct GuestRam {
    parts: Vec<(Gpa, Claim)>,
}

/// A piece of an access that lies in one claim.
struct Share {
    host: Hpa,
    offset: usize,
    bytes: usize,
}

impl GuestRam {
    /// RAM made of `parts`: claims, and where in the guest's memory each begins. They do not overlap there.
    #[must_use]
    pub fn new(parts: Vec<(Gpa, Claim)>) -> Self {
        Self { parts }
    }

    /// The claims and where in the guest's memory each begins.
    pub fn parts(&self) -> impl Iterator<Item = (Gpa, &Claim)> {
        self.parts.iter().map(|(at, claim)| (*at, claim))
    }

    /// Calls `each` for every piece of `at..at + len` that is contiguous in host memory: host address, offset in the
    /// range, length.
    ///
    /// # Errors
    /// [`OutsideRam`] if the range is not wholly RAM; then `each` is not called.
    pub fn pieces(
        &self,
        at: Gpa,
        len: usize,
        mut each: impl FnMut(Hpa, usize, usize),
    ) -> Result<(), OutsideRam> {
        let end = at.0.checked_add(len as u64).ok_or(OutsideRam)?;
        if self.shares(at.0, end).map(|share| share.bytes).sum::<usize>() != len {
            return Err(OutsideRam);
        }
        self.shares(at.0, end).for_each(|share| each(share.host, share.offset, share.bytes));
        Ok(())
    }

    /// What each part has of `start..end`.
    fn shares(&self, start: u64, end: u64) -> impl Iterator<Item = Share> {
        self.parts.iter().filter_map(move |(at, claim)| {
            let from = start.max(at.0);
            let to = end.min(at.0 + claim.bytes());
            let bytes = usize::try_from(to.checked_sub(from)?).ok()?;
            let offset = usize::try_from(from - start).ok()?;
            Some(Share { host: Hpa(claim.start().0 + (from - at.0)), offset, bytes })
        })
    }

    /// Where `at..at + len` lies in host memory, if one claim has all of it: nearly always, and found quickly.
    #[inline]
    fn whole(&self, at: Gpa, len: usize) -> Option<Hpa> {
        self.parts.iter().find_map(|(start, claim)| {
            let offset = at.0.wrapping_sub(start.0);
            let left = claim.bytes().checked_sub(offset)?;
            (len as u64 <= left).then(|| Hpa(claim.start().0.wrapping_add(offset)))
        })
    }

    #[inline]
    fn pointer(at: Hpa) -> *mut u8 {
        // The hypervisor maps all RAM one to one; 64-bit targets only, so no bit is lost.
        core::ptr::with_exposed_provenance_mut(usize::try_from(at.0).unwrap_or(0))
    }
}

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        if let Some(host) = self.whole(at, into.len()) {
            // SAFETY: `whole` names only bytes of one of our claims, which are RAM, mapped, and not part of any Rust object,
            // so they do not overlap `into`; a guest that writes meanwhile only changes which bytes are read.
            unsafe { core::ptr::copy_nonoverlapping(Self::pointer(host), into.as_mut_ptr(), into.len()) };
            return Ok(());
        }
        self.pieces(at, into.len(), |host, offset, count| {
            let Some(target) = into.get_mut(offset..offset + count) else { return };
            // SAFETY: as above, for the bytes that `pieces` names.
            unsafe { core::ptr::copy_nonoverlapping(Self::pointer(host), target.as_mut_ptr(), count) };
        })
    }

    #[inline]
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        if let Some(host) = self.whole(at, from.len()) {
            // SAFETY: as in `read`: claimed RAM that is no Rust object's, so nothing of ours is overwritten.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), Self::pointer(host), from.len()) };
            return Ok(());
        }
        self.pieces(at, from.len(), |host, offset, count| {
            let Some(source) = from.get(offset..offset + count) else { return };
            // SAFETY: as above.
            unsafe { core::ptr::copy_nonoverlapping(source.as_ptr(), Self::pointer(host), count) };
        })
    }

    fn compare_exchange(&self, at: Gpa, width: Width, old: u64, new: u64) -> bool {
        let Some(host) = self.whole(at, 1 << width as usize).filter(|host| host.0 % width.bytes() == 0)
        else {
            return false;
        };
        let pointer = Self::pointer(host);
        match width {
            Width::Word => {
                let (Ok(old), Ok(new)) = (u32::try_from(old), u32::try_from(new)) else { return false };
                // SAFETY: four aligned bytes that `whole` names: claimed RAM, mapped, and no Rust object's. The guest's CPUs
                // change it by whole accesses, as other threads would.
                let number = unsafe { AtomicU32::from_ptr(pointer.cast()) };
                number.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
            Width::Double => {
                // SAFETY: as above, eight bytes.
                let number = unsafe { AtomicU64::from_ptr(pointer.cast()) };
                number.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
            Width::Byte | Width::Half => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HostMemory;
    use alloc::boxed::Box;
    use alloc::vec;

    /// RAM at 0x4000_0000 made of two claims of a page each that are apart in host memory.
    fn ram() -> GuestRam {
        #[repr(align(4096))]
        struct Pages(#[expect(dead_code, reason = "reached by address only")] [u8; 3 * 4096]);
        let pages = Box::leak(Box::new(Pages([0; 3 * 4096])));
        let base = core::ptr::from_mut(pages).expose_provenance() as u64;
        let bank = base..base + 3 * 4096;
        // SAFETY: the pages are leaked: they stay, and only these claims reach them.
        let mut memory = unsafe { HostMemory::new(vec![bank], vec![]) };
        GuestRam::new(vec![
            (Gpa(0x4000_0000), memory.claim(base + 0x2000..base + 0x3000).unwrap()),
            (Gpa(0x4000_1000), memory.claim(base..base + 0x1000).unwrap()),
            (Gpa(0x4000_3000), memory.claim(base + 0x1000..base + 0x2000).unwrap()),
        ])
    }

    #[test]
    fn what_is_written_over_a_seam_is_read_back() {
        let ram = ram();
        ram.write(Gpa(0x4000_0ffe), &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 6];
        ram.read(Gpa(0x4000_0ffd), &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 0]);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let ram = ram();
        assert_eq!(ram.write(Gpa(0x4000_1fff), &[1, 2]), Err(OutsideRam), "a hole begins");
        assert_eq!(ram.read(Gpa(0x4000_1fff), &mut [0; 0x1002]), Err(OutsideRam), "over a hole");
        assert_eq!(ram.write(Gpa(0x3fff_ffff), &[1]), Err(OutsideRam));
        assert_eq!(ram.read(Gpa(u64::MAX), &mut [0; 2]), Err(OutsideRam));
        let mut last = [9];
        ram.read(Gpa(0x4000_1fff), &mut last).unwrap();
        assert_eq!(last, [0]);
    }

    #[test]
    fn a_number_is_exchanged_only_where_the_expected_one_stands() {
        let ram = ram();
        let at = Gpa(0x4000_0ff8);
        ram.write(at, &0x1_0000_0007u64.to_le_bytes()).unwrap();
        assert!(!ram.compare_exchange(at, Width::Double, 7, 0x27), "the upper half counts");
        assert!(ram.compare_exchange(at, Width::Double, 0x1_0000_0007, 0x1_0000_0027));
        assert!(!ram.compare_exchange(at, Width::Word, 7, 0x67));
        assert!(ram.compare_exchange(at, Width::Word, 0x27, 0x67), "the upper half does not");
        let mut found = [0; 8];
        ram.read(at, &mut found).unwrap();
        assert_eq!(u64::from_le_bytes(found), 0x1_0000_0067);
    }

    #[test]
    fn nothing_is_exchanged_outside_or_across() {
        let ram = ram();
        for at in [0x4000_2000, 0x4000_0ffc, 0x4000_0004, u64::MAX] {
            assert!(!ram.compare_exchange(Gpa(at), Width::Double, 0, 1), "{at:#x}");
        }
        assert!(!ram.compare_exchange(Gpa(0x4000_0002), Width::Word, 0, 1));
        assert!(ram.compare_exchange(Gpa(0x4000_0004), Width::Word, 0, 1));
    }
}
