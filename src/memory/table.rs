//! The one walker of translation tables: second stages of guests, the hypervisor's own, and those of IOMMUs.
//!
//! A [`Format`] says what an entry looks like; everything else is here: the largest pages that fit, roots made of
//! several tables, break-before-make on live changes. Levels count from the bottom: level 0 maps 4 KiB, each level
//! above it 512 times as much (2 MiB, 1 GiB, 512 GiB).

use super::frames::{ENTRIES, Frame, Frames};
use super::{Claim, Hpa, PAGE};
use bulkhead_vdev::Gpa;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a page may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Perm {
    /// Loads are allowed (always, where anything is).
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
    /// Device registers rather than memory: not cached, in order.
    pub device: bool,
}

impl Perm {
    /// A guest's RAM.
    pub const RAM: Self = Self { write: true, execute: true, device: false };
    /// Data.
    pub const DATA: Self = Self { write: true, execute: false, device: false };
    /// Constants.
    pub const CONSTANT: Self = Self { write: false, execute: false, device: false };
    /// Code.
    pub const CODE: Self = Self { write: false, execute: true, device: false };
    /// Device registers.
    pub const DEVICE: Self = Self { write: true, execute: false, device: true };
}

/// What an entry of a table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// Nothing is mapped.
    Empty,
    /// The next table.
    Table(Hpa),
    /// A page, or a block of the level's size.
    Leaf(Hpa),
}

/// What the entries of one kind of table look like. Pure.
pub trait Format {
    /// The highest level whose entries may be leaves, on a machine that has all that the format knows.
    const LARGEST_LEAF: u32;

    /// The top level for addresses of `bits`, and of how many tables in a row the root is made.
    fn root(bits: u32) -> (u32, usize);

    /// An entry that names the next table.
    fn table(next: Hpa) -> u64;

    /// An entry that maps `page` at `level`.
    fn leaf(page: Hpa, level: u32, perm: Perm) -> u64;

    /// The opposite of the other two.
    fn decode(entry: u64, level: u32) -> Slot;
}

/// Why a mapping was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The frame pool is empty.
    NoFrames,
    /// Something is mapped there already.
    Occupied,
    /// The address is outside the address space, or not that of a page.
    BadAddress,
}

/// The bytes that one entry of `level` covers.
const fn size(level: u32) -> u64 {
    PAGE << (9 * level)
}

/// A tree of tables in the format `F`.
pub struct Table<F> {
    root: Hpa,
    top: u32,
    bits: u32,
    largest_leaf: u32,
    format: core::marker::PhantomData<fn() -> F>,
}

impl<F: Format> Table<F> {
    /// An empty tree for addresses of `bits`.
    #[must_use]
    pub fn new(frames: &mut dyn Frames, bits: u32) -> Option<Self> {
        Self::with_leaves(frames, bits, F::LARGEST_LEAF)
    }

    /// The same, for a machine whose leaves stand at `largest_leaf` or below.
    fn with_leaves(frames: &mut dyn Frames, bits: u32, largest_leaf: u32) -> Option<Self> {
        let (top, tables) = F::root(bits);
        let largest_leaf = largest_leaf.min(F::LARGEST_LEAF).min(top);
        Some(Self { root: frames.take(tables)?, top, bits, largest_leaf, format: core::marker::PhantomData })
    }

    /// The root table, for the CPU's register.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// Maps `bytes` from `at` to host memory from `to`, with the largest pages that fit both.
    ///
    /// # Errors
    /// [`MapError`]; what was mapped before it struck stays.
    pub fn map_range(
        &self,
        frames: &mut dyn Frames,
        at: u64,
        to: Hpa,
        bytes: u64,
        perm: Perm,
    ) -> Result<(), MapError> {
        let end = at.checked_add(bytes).filter(|end| *end <= 1 << self.bits).ok_or(MapError::BadAddress)?;
        if (at | to.0 | bytes) & (PAGE - 1) != 0 {
            return Err(MapError::BadAddress);
        }
        let mut next = at;
        while next < end {
            let host = to.0 + (next - at);
            let level = (0..=self.largest_leaf)
                .rev()
                .find(|level| (next | host) & (size(*level) - 1) == 0 && end - next >= size(*level))
                .unwrap_or(0);
            let entry = self.descend(frames, next, level)?;
            if F::decode(entry.load(Ordering::Relaxed), level) != Slot::Empty {
                return Err(MapError::Occupied);
            }
            entry.store(F::leaf(Hpa(host), level, perm), Ordering::Release);
            next += size(level);
        }
        Ok(())
    }

    /// Where `at` leads, and how many bytes from there lie in the same leaf.
    #[must_use]
    pub fn translate(&self, frames: &dyn Frames, at: u64) -> Option<(Hpa, u64)> {
        let (entry, level) = self.find(frames, at)?;
        let Slot::Leaf(page) = F::decode(entry.load(Ordering::Relaxed), level) else { return None };
        let offset = at & (size(level) - 1);
        Some((Hpa(page.0 + offset), size(level) - offset))
    }

    /// Takes the mapping of `range` away while CPUs may use it. `invalidate` makes every CPU forget what it cached;
    /// it is called before a table that was linked can be seen to have changed its meaning (break before make).
    ///
    /// # Errors
    /// [`MapError::NoFrames`] if a block had to be split and could not be.
    pub fn unmap(
        &self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        perm: Perm,
        invalidate: &mut dyn FnMut(),
    ) -> Result<(), MapError> {
        self.change(frames, range, perm, None, invalidate)
    }

    /// Gives what is mapped in `range` the permission `to` while CPUs may use it; `perm` is what it has now.
    ///
    /// # Errors
    /// [`MapError::NoFrames`] if a block had to be split and could not be.
    pub fn protect(
        &self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        perm: Perm,
        to: Perm,
        invalidate: &mut dyn FnMut(),
    ) -> Result<(), MapError> {
        self.change(frames, range, perm, Some(to), invalidate)
    }

    fn change(
        &self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        perm: Perm,
        to: Option<Perm>,
        invalidate: &mut dyn FnMut(),
    ) -> Result<(), MapError> {
        let mut next = range.start;
        while next < range.end.min(1 << self.bits) {
            let Some((entry, level)) = self.find(frames, next) else { return Err(MapError::BadAddress) };
            let start = next & !(size(level) - 1);
            if let Slot::Leaf(page) = F::decode(entry.load(Ordering::Relaxed), level) {
                entry.store(0, Ordering::Release);
                invalidate();
                let rest = if start < range.start || start + size(level) > range.end {
                    Self::split(frames, page, level, perm)?
                } else {
                    to.map_or(0, |to| F::leaf(page, level, to))
                };
                self.find(frames, next).ok_or(MapError::BadAddress)?.0.store(rest, Ordering::Release);
                if matches!(F::decode(rest, level), Slot::Table(_)) {
                    continue;
                }
            }
            next = start + size(level);
        }
        Ok(())
    }

    /// A table that maps what the block `page` of `level` mapped, for an entry of that level.
    fn split(frames: &mut dyn Frames, page: Hpa, level: u32, perm: Perm) -> Result<u64, MapError> {
        let below = level.checked_sub(1).ok_or(MapError::BadAddress)?;
        let table = frames.take(1).ok_or(MapError::NoFrames)?;
        let frame = frames.table(table).ok_or(MapError::NoFrames)?;
        for (entry, host) in frame.0.iter().zip((page.0..).step_by(1 << (12 + 9 * below))) {
            entry.store(F::leaf(Hpa(host), below, perm), Ordering::Relaxed);
        }
        Ok(F::table(table))
    }

    /// The entry of `level` for `at`; missing tables above it are made.
    fn descend<'f>(
        &self,
        frames: &'f mut dyn Frames,
        at: u64,
        level: u32,
    ) -> Result<&'f AtomicU64, MapError> {
        let mut table = self.root_table(at);
        for above in (level + 1..=self.top).rev() {
            let entry = Self::entry(frames, table, at, above).ok_or(MapError::NoFrames)?;
            table = match F::decode(entry.load(Ordering::Relaxed), above) {
                Slot::Table(next) => next,
                Slot::Leaf(_) => return Err(MapError::Occupied),
                Slot::Empty => {
                    let next = frames.take(1).ok_or(MapError::NoFrames)?;
                    let entry = Self::entry(frames, table, at, above).ok_or(MapError::NoFrames)?;
                    entry.store(F::table(next), Ordering::Release);
                    next
                }
            };
        }
        Self::entry(frames, table, at, level).ok_or(MapError::NoFrames)
    }

    /// The entry at which the walk for `at` ends, and its level.
    fn find<'f>(&self, frames: &'f dyn Frames, at: u64) -> Option<(&'f AtomicU64, u32)> {
        if at >> self.bits != 0 {
            return None;
        }
        let mut table = self.root_table(at);
        for level in (0..=self.top).rev() {
            let entry = Self::entry(frames, table, at, level)?;
            match F::decode(entry.load(Ordering::Relaxed), level) {
                Slot::Table(next) if level > 0 => table = next,
                _ => return Some((entry, level)),
            }
        }
        None
    }

    /// Of the tables that the root is made of, the one for `at`.
    fn root_table(&self, at: u64) -> Hpa {
        Hpa(self.root.0 + (at >> (12 + 9 * (self.top + 1))) * PAGE)
    }

    fn entry(frames: &dyn Frames, table: Hpa, at: u64, level: u32) -> Option<&AtomicU64> {
        let Frame(entries) = frames.table(table)?;
        #[expect(clippy::cast_possible_truncation, reason = "masked to an index of a table")]
        let index = (at >> (12 + 9 * level)) as usize & (ENTRIES - 1);
        entries.get(index)
    }
}

/// A guest's second stage: guest-physical to host-physical. What it maps, the guest reaches; nothing else.
pub struct Stage2<F>(Table<F>);

impl<F: Format> Stage2<F> {
    /// An empty address space of `bits`, whose leaves stand at `largest_leaf` or below.
    #[must_use]
    pub fn new(frames: &mut dyn Frames, bits: u32, largest_leaf: u32) -> Option<Self> {
        Table::with_leaves(frames, bits, largest_leaf).map(Self)
    }

    /// Maps all of `claim` from `at`.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map(&self, frames: &mut dyn Frames, at: Gpa, claim: &Claim, perm: Perm) -> Result<(), MapError> {
        self.0.map_range(frames, at.0, claim.start(), claim.bytes(), perm)
    }

    /// The root table, for the CPU's register.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.0.root()
    }

    /// Where `at` leads, and how many bytes from there lie in the same leaf.
    #[must_use]
    pub fn translate(&self, frames: &dyn Frames, at: Gpa) -> Option<(Hpa, u64)> {
        self.0.translate(frames, at.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frames::tests::pool;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// A format as plain as one can be: bit 0 valid, bit 1 leaf, bit 2 write.
    struct Plain;

    impl Format for Plain {
        const LARGEST_LEAF: u32 = 2;

        fn root(bits: u32) -> (u32, usize) {
            if bits <= 39 { (2, 1) } else { (2, 1 << (bits - 39)) }
        }

        fn table(next: Hpa) -> u64 {
            next.0 | 1
        }

        fn leaf(page: Hpa, _level: u32, perm: Perm) -> u64 {
            page.0 | 3 | u64::from(perm.write) << 2
        }

        fn decode(entry: u64, _level: u32) -> Slot {
            match entry & 3 {
                1 => Slot::Table(Hpa(entry & !0xfff)),
                3 => Slot::Leaf(Hpa(entry & !0xfff)),
                _ => Slot::Empty,
            }
        }
    }

    #[test]
    fn the_largest_page_that_fits_is_used() {
        let mut pool = pool(8);
        let table = Table::<Plain>::new(&mut pool, 40).unwrap();
        let left = pool.left();
        table.map_range(&mut pool, 0x4000_0000, Hpa(0x8000_0000), 0x4000_0000, Perm::RAM).unwrap();
        assert_eq!(pool.left(), left, "a gibibyte needs no table below the root");
        table.map_range(&mut pool, 0x8000_0000, Hpa(0x1_0020_0000), 0x20_0000, Perm::RAM).unwrap();
        assert_eq!(pool.left(), left - 1);
        assert_eq!(table.translate(&pool, 0x8000_1234), Some((Hpa(0x1_0020_1234), 0x20_0000 - 0x1234)));
    }

    #[test]
    fn a_machine_without_the_largest_pages_gets_smaller_ones() {
        let mut pool = pool(8);
        let table = Table::<Plain>::with_leaves(&mut pool, 39, 1).unwrap();
        table.map_range(&mut pool, 0x4000_0000, Hpa(0x8000_0000), 0x4000_0000, Perm::RAM).unwrap();
        assert_eq!(table.translate(&pool, 0x4020_0000), Some((Hpa(0x8020_0000), 0x20_0000)));
    }

    #[test]
    fn a_root_of_several_tables_covers_all_address_bits() {
        let mut pool = pool(8);
        let table = Table::<Plain>::new(&mut pool, 40).unwrap();
        table.map_range(&mut pool, 0xff_c000_0000, Hpa(0x4000_0000), 0x4000_0000, Perm::RAM).unwrap();
        assert_eq!(table.translate(&pool, 0xff_ffff_ffff), Some((Hpa(0x7fff_ffff), 1)));
        assert_eq!(table.translate(&pool, 0x7f_ffff_ffff), None);
        assert_eq!(
            table.map_range(&mut pool, 0x100_0000_0000, Hpa(0), PAGE, Perm::RAM),
            Err(MapError::BadAddress)
        );
    }

    #[test]
    fn nothing_is_mapped_twice() {
        let mut pool = pool(8);
        let table = Table::<Plain>::new(&mut pool, 39).unwrap();
        table.map_range(&mut pool, 0x20_0000, Hpa(0x20_0000), 0x20_0000, Perm::RAM).unwrap();
        let again = table.map_range(&mut pool, 0x20_1000, Hpa(0), PAGE, Perm::RAM);
        assert_eq!(again, Err(MapError::Occupied));
    }

    #[test]
    fn an_empty_pool_is_said_and_nothing_is_lost() {
        let mut pool = pool(1);
        let table = Table::<Plain>::new(&mut pool, 39).unwrap();
        assert_eq!(table.map_range(&mut pool, 0, Hpa(0), PAGE, Perm::RAM), Err(MapError::NoFrames));
        assert_eq!(table.translate(&pool, 0), None);
    }

    #[test]
    fn a_live_change_breaks_before_it_makes() {
        let mut pool = pool(8);
        let table = Table::<Plain>::new(&mut pool, 39).unwrap();
        table.map_range(&mut pool, 0, Hpa(0x4000_0000), 0x4000_0000, Perm::RAM).unwrap();
        let mut flushes = 0;
        table.unmap(&mut pool, 0x1000..0x2000, Perm::RAM, &mut || flushes += 1).unwrap();
        assert_eq!(flushes, 3, "1 GiB to 2 MiB, 2 MiB to 4 KiB, and the page");
        assert_eq!(table.translate(&pool, 0x1000), None);
        assert_eq!(table.translate(&pool, 0xfff), Some((Hpa(0x4000_0fff), 1)));
        assert_eq!(table.translate(&pool, 0x2000), Some((Hpa(0x4000_2000), PAGE)));
        assert_eq!(table.translate(&pool, 0x20_0000).unwrap().1, 0x20_0000);
    }

    #[test]
    fn a_changed_permission_keeps_the_address() {
        let mut pool = pool(8);
        let table = Table::<Plain>::new(&mut pool, 39).unwrap();
        table.map_range(&mut pool, 0, Hpa(0x20_0000), 0x40_0000, Perm::RAM).unwrap();
        table.protect(&mut pool, 0..0x20_0000, Perm::RAM, Perm::CODE, &mut || ()).unwrap();
        assert_eq!(table.translate(&pool, 0), Some((Hpa(0x20_0000), 0x20_0000)));
        let (entry, _) = table.find(&pool, 0).unwrap();
        assert_eq!(entry.load(Ordering::Relaxed) & 4, 0);
    }

    proptest! {
        #[test]
        fn every_page_leads_where_it_was_mapped(ranges in prop::collection::vec((0u64..2048, 1u64..700, 0u64..4096), 1..6)) {
            let mut pool = pool(64);
            let table = Table::<Plain>::new(&mut pool, 40).unwrap();
            let mut mapped: Vec<(u64, u64, u64)> = Vec::new();
            for (at, pages, to) in ranges {
                let free = mapped.iter().all(|(other, count, _)| at + pages <= *other || other + count <= at);
                if free {
                    table.map_range(&mut pool, at * PAGE, Hpa(to * PAGE), pages * PAGE, Perm::RAM).unwrap();
                    mapped.push((at, pages, to));
                }
            }
            for page in 0..2800 {
                let expected = mapped
                    .iter()
                    .find(|(at, pages, _)| (*at..at + pages).contains(&page))
                    .map(|(at, _, to)| Hpa((to + page - at) * PAGE));
                prop_assert_eq!(table.translate(&pool, page * PAGE).map(|(host, _)| host), expected);
            }
        }
    }
}
