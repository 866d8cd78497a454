//! The bus: which device answers at a guest-physical address.
//!
//! Windows are added while a VM is built and never change afterwards. They are kept sorted and never overlap, so
//! a look-up is one binary search and has one answer. Guests poll one device for long, so the last answer is tried first.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::{Gpa, Width};

/// Windows of guest-physical addresses, each with what answers there.
#[derive(Debug, Default)]
pub struct Bus<T: Copy> {
    windows: Vec<Window<T>>,
    /// Where the last answer was: a guess, so any value is right.
    recent: AtomicUsize,
}

/// The window is empty, leaves the address space, or shares an address with one that is already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlap;

/// Both ends belong to the window, so that one may end with the address space.
#[derive(Clone, Copy, Debug)]
struct Window<T> {
    first: u64,
    last: u64,
    what: T,
}

impl<T: Copy> Bus<T> {
    /// Nothing answers anywhere.
    #[must_use]
    pub const fn new() -> Self {
        Self { windows: Vec::new(), recent: AtomicUsize::new(0) }
    }

    /// Lets `what` answer in the `len` bytes from `base`.
    ///
    /// # Errors
    /// [`Overlap`], and the bus stays as it was.
    pub fn add(&mut self, base: Gpa, len: u64, what: T) -> Result<(), Overlap> {
        let first = base.0;
        let last = len.checked_sub(1).and_then(|rest| first.checked_add(rest)).ok_or(Overlap)?;
        let place = self.windows.partition_point(|window| window.last < first);
        if self.windows.get(place).is_some_and(|next| next.first <= last) {
            return Err(Overlap);
        }
        self.windows.insert(place, Window { first, last, what });
        Ok(())
    }

    /// What answers an access at `at`, and the offset of the access in its window; nothing if no window holds all
    /// bytes of the access.
    #[inline]
    #[must_use]
    pub fn find(&self, at: Gpa, width: Width) -> Option<(T, u64)> {
        let recent = self.recent.load(Ordering::Relaxed);
        if let Some(found) = self.windows.get(recent).and_then(|window| window.hit(at, width)) {
            return Some(found);
        }
        let place = self.windows.partition_point(|window| window.last < at.0);
        let found = self.windows.get(place)?.hit(at, width);
        self.recent.store(place, Ordering::Relaxed);
        found
    }
}

impl<T: Copy> Window<T> {
    #[inline]
    fn hit(&self, at: Gpa, width: Width) -> Option<(T, u64)> {
        let offset = at.0.wrapping_sub(self.first);
        let beyond = (self.last - self.first).checked_sub(width.bytes() - 1)?;
        (offset <= beyond).then_some((self.what, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

    #[test]
    fn an_access_across_the_end_of_a_window_finds_nothing() {
        let mut bus = Bus::new();
        bus.add(Gpa(0x1000), 0x10, 'a').unwrap();
        bus.add(Gpa(0x1010), 0x10, 'b').unwrap();
        assert_eq!(bus.find(Gpa(0x100c), Width::Word), Some(('a', 0xc)));
        assert_eq!(bus.find(Gpa(0x100e), Width::Word), None);
        assert_eq!(bus.find(Gpa(0x1010), Width::Double), Some(('b', 0)));
        assert_eq!(bus.find(Gpa(0xfff), Width::Byte), None);
        assert_eq!(bus.find(Gpa(0x1020), Width::Byte), None);
    }

    #[test]
    fn a_window_may_end_with_the_address_space_but_not_leave_it() {
        let mut bus = Bus::new();
        assert_eq!(bus.add(Gpa(u64::MAX - 3), 5, ()), Err(Overlap));
        assert_eq!(bus.add(Gpa(u64::MAX - 3), 0, ()), Err(Overlap));
        assert_eq!(bus.add(Gpa(u64::MAX - 3), 4, ()), Ok(()));
        assert_eq!(bus.find(Gpa(u64::MAX), Width::Byte), Some(((), 3)));
        assert_eq!(bus.find(Gpa(u64::MAX), Width::Half), None);
    }

    proptest! {
        #[test]
        fn the_bus_agrees_with_a_list_of_windows(
            windows in prop::collection::vec((0u64..256, 0u64..24), 0..24),
            probes in prop::collection::vec((0u64..280, 0usize..4), 64),
        ) {
            let mut bus = Bus::new();
            let mut list: Vec<(u64, u64)> = Vec::new();
            for (base, len) in windows {
                let fits = len > 0 && list.iter().all(|&(b, l)| base + len <= b || b + l <= base);
                let index = list.len();
                prop_assert_eq!(bus.add(Gpa(base), len, index).is_ok(), fits);
                if fits {
                    list.push((base, len));
                }
            }
            for (at, width) in probes {
                let width = WIDTHS[width];
                let naive = list
                    .iter()
                    .position(|&(b, l)| b <= at && at + width.bytes() <= b + l)
                    .map(|index| (index, at - list[index].0));
                prop_assert_eq!(bus.find(Gpa(at), width), naive);
            }
        }
    }
}
