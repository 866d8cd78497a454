//! The frames that translation tables are made of: a fixed pool, part of the hypervisor's own image.
//!
//! The pool's address is its host-physical address (the hypervisor maps itself one to one), so a table that an
//! entry names is found by arithmetic inside the pool, and everything here is safe code.

use super::{Hpa, PAGE};
use core::sync::atomic::{AtomicU64, Ordering};

/// Entries of one table.
pub const ENTRIES: usize = 512;

/// One table: 4 KiB that the CPU's table walker reads while we write.
#[repr(C, align(4096))]
pub struct Frame(pub [AtomicU64; ENTRIES]);

impl Frame {
    /// All entries invalid.
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "an initial value: each use is a frame of its own"
    )]
    pub const EMPTY: Self = Self([const { AtomicU64::new(0) }; ENTRIES]);
}

/// Where tables come from and are found again.
pub trait Frames {
    /// `count` frames (a power of two) in a row, aligned to their size, all zero; `None` if there are no more.
    fn take(&mut self, count: usize) -> Option<Hpa>;

    /// The table at `at`, if it is one of these.
    fn table(&self, at: Hpa) -> Option<&Frame>;
}

/// A fixed pool of frames, given out once each.
pub struct FramePool {
    frames: &'static [Frame],
    next: usize,
}

impl FramePool {
    /// All of `frames`, none given out yet.
    #[must_use]
    pub const fn new(frames: &'static [Frame]) -> Self {
        Self { frames, next: 0 }
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.frames.len() - self.next
    }

    fn base(&self) -> u64 {
        self.frames.as_ptr().addr() as u64
    }
}

impl Frames for FramePool {
    fn take(&mut self, count: usize) -> Option<Hpa> {
        let page = usize::try_from(self.base() / PAGE).ok()?;
        let first = (page + self.next).next_multiple_of(count) - page;
        let frames = self.frames.get(first..first.checked_add(count)?)?;
        for entry in frames.iter().flat_map(|frame| &frame.0) {
            entry.store(0, Ordering::Relaxed);
        }
        self.next = first + count;
        Some(Hpa(self.base() + first as u64 * PAGE))
    }

    fn table(&self, at: Hpa) -> Option<&Frame> {
        let offset = at.0.checked_sub(self.base())?;
        self.frames.get(usize::try_from(offset / PAGE).ok()?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec::Vec;

    /// A pool of `count` frames for a test.
    pub(crate) fn pool(count: usize) -> FramePool {
        let frames: Vec<Frame> = (0..count).map(|_| Frame::EMPTY).collect();
        FramePool::new(Box::leak(frames.into_boxed_slice()))
    }

    #[test]
    fn frames_in_a_row_are_aligned_to_their_size() {
        let mut pool = pool(16);
        pool.take(1).unwrap();
        let four = pool.take(4).unwrap();
        assert!(four.0.is_multiple_of(4 * PAGE));
        assert!(pool.take(16).is_none());
    }

    #[test]
    fn only_the_pools_own_frames_are_tables() {
        let mut pool = pool(2);
        let first = pool.take(1).unwrap();
        assert!(pool.table(first).is_some());
        assert!(pool.table(Hpa(first.0 + 2 * PAGE)).is_none());
        assert!(pool.table(Hpa(first.0.wrapping_sub(PAGE))).is_none());
    }
}
