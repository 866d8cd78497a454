//! Which host RAM each VM gets: pure arithmetic on ranges, the same at boot and in xtask.
//!
//! It trusts nothing about the order or the alignment of what it is given, never gives out what is used or the same
//! memory twice, and succeeds whenever the free RAM suffices, counted in whole granules. It claims nothing:
//! the ranges it returns are a proposal that [`HostMemory::claim`](super::HostMemory::claim) checks.

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;
use core::ops::Range;

use crate::arch::RamRange;
use crate::config::Size;
use bulkhead_vdev::Gpa;

/// RAM is given in whole blocks of the second-last translation level.
pub const GRANULE: u64 = 2 << 20;
/// A block one level higher; a VM of at least this size is placed so that its tables can use such blocks.
const LARGE_BLOCK: u64 = 1 << 30;

/// A VM's host memory in the order of its guest-physical addresses.
pub type Pieces = Vec<Range<u64>>;

/// Chooses host memory for VMs that `wanted` so many bytes each (multiples of [`GRANULE`]; others are rounded up), in
/// `banks` of RAM of which `used` is taken. A VM gets one piece if any bank has room for it in one piece, else
/// several; each piece lies in one bank and is aligned to [`GRANULE`], and to 1 GiB if it is that large and a bank
/// allows it. Equal input gives equal output.
///
/// # Errors
/// [`DoesNotFit`] for the first VM for which too little RAM is left. The largest VM is placed first.
pub fn place(wanted: &[u64], banks: &[Range<u64>], used: &[Range<u64>]) -> Result<Vec<Pieces>, DoesNotFit> {
    let mut free = Free::new(banks, used);
    let mut placed = vec![Pieces::new(); wanted.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&vm| Reverse(wanted[vm]));
    for vm in order {
        placed[vm] = free.take(wanted[vm]).ok_or_else(|| DoesNotFit {
            vm,
            wanted: wanted[vm],
            largest_free: free.largest(),
            total_free: free.total(),
        })?;
    }
    Ok(placed)
}

/// Where each piece of host memory appears in the guest's: `layout` is what the guest finds, in the order of `pieces`.
#[must_use]
pub fn lay(layout: &[RamRange], pieces: &[Range<u64>]) -> Vec<(Gpa, Range<u64>)> {
    let mut parts = Vec::new();
    let mut offset = 0;
    for piece in pieces {
        let end = offset + length(piece);
        for range in layout {
            let from = range.offset.max(offset);
            let to = (range.offset + range.bytes).min(end);
            if from < to {
                let at = Gpa(range.at.0 + (from - range.offset));
                parts.push((at, piece.start + (from - offset)..piece.start + (to - offset)));
            }
        }
        offset = end;
    }
    parts
}

/// Too little host RAM is left for a VM. Shown as one line without the VM's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoesNotFit {
    /// Which VM, an index into what was wanted.
    pub vm: usize,
    /// How many bytes it wants.
    pub wanted: u64,
    /// The largest piece in bytes that was left for it.
    pub largest_free: u64,
    /// All bytes that were left for it.
    pub total_free: u64,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [wanted, largest, total] = [self.wanted, self.largest_free, self.total_free].map(Size);
        write!(
            f,
            "{wanted} of RAM do not fit: the machine has {total} left (the largest piece {largest}); \
             give this or another VM less, or the machine more"
        )
    }
}

impl core::error::Error for DoesNotFit {}

/// Free memory: sorted, disjoint, not empty, granule-aligned, each range inside one bank.
struct Free(Vec<Range<u64>>);

impl Free {
    fn new(banks: &[Range<u64>], used: &[Range<u64>]) -> Self {
        let mut banks: Vec<_> = banks.to_vec();
        banks.sort_by_key(|bank| bank.start);
        let mut used: Vec<_> = used.iter().filter(|used| used.start < used.end).cloned().collect();
        used.sort_by_key(|used| used.start);

        let mut free = Self(Vec::new());
        // Everything below has been looked at: banks that overlap give what they share only once.
        let mut done = 0;
        for bank in banks {
            let mut at = bank.start.max(done);
            for used in used.iter().filter(|used| used.end > bank.start && used.start < bank.end) {
                free.add(at..used.start);
                at = at.max(used.end);
            }
            free.add(at..bank.end);
            done = done.max(bank.end);
        }
        free
    }

    /// Adds the whole granules of `range`.
    fn add(&mut self, range: Range<u64>) {
        let Some(start) = range.start.checked_next_multiple_of(GRANULE) else { return };
        let end = range.end - range.end % GRANULE;
        if start < end {
            self.0.push(start..end);
        }
    }

    fn largest(&self) -> u64 {
        self.0.iter().map(length).max().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.0.iter().map(length).sum()
    }

    /// Takes `bytes` in as few pieces as there is room for; nothing, if they do not fit.
    fn take(&mut self, bytes: u64) -> Option<Pieces> {
        let mut left = bytes.checked_next_multiple_of(GRANULE)?;
        if left > self.total() {
            return None;
        }
        let mut pieces = Pieces::new();
        while left > 0 {
            let piece = self.take_one(left.min(self.largest()))?;
            left -= length(&piece);
            pieces.push(piece);
        }
        Some(pieces)
    }

    /// Takes one piece where it fits best: aligned to a large block if it can hold one, then from the smallest free
    /// range, then at the lowest address.
    fn take_one(&mut self, bytes: u64) -> Option<Range<u64>> {
        let alignments: &[u64] = if bytes >= LARGE_BLOCK { &[LARGE_BLOCK, GRANULE] } else { &[GRANULE] };
        for &alignment in alignments {
            let candidates = self.0.iter().enumerate().filter_map(|(index, free)| {
                let start = free.start.checked_next_multiple_of(alignment)?;
                let end = start.checked_add(bytes)?;
                (end <= free.end).then_some((length(free), start..end, index))
            });
            if let Some((_, piece, index)) =
                candidates.min_by_key(|(length, piece, _)| (*length, piece.start))
            {
                self.remove(index, &piece);
                return Some(piece);
            }
        }
        None
    }

    /// Takes `piece` out of the free range at `index`, which holds it.
    fn remove(&mut self, index: usize, piece: &Range<u64>) {
        let free = self.0[index].clone();
        let rest = [free.start..piece.start, piece.end..free.end];
        self.0.splice(index..=index, rest.into_iter().filter(|rest| !rest.is_empty()));
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a machine with one bank of RAM")]
mod tests {
    use alloc::string::ToString;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_hole_in_the_layout_is_left_out_and_alignment_stays() {
        let layout = [
            RamRange { at: Gpa(0), offset: 0, bytes: 0x1000 },
            RamRange { at: Gpa(0x2000), offset: 0x2000, bytes: 0x4000 },
            RamRange { at: Gpa(0x10_0000), offset: 0x6000, bytes: 0x2000 },
        ];
        let pieces = [0x50_0000..0x50_3000, 0x90_0000..0x90_5000];
        let parts = [
            (Gpa(0), 0x50_0000..0x50_1000),
            (Gpa(0x2000), 0x50_2000..0x50_3000),
            (Gpa(0x3000), 0x90_0000..0x90_3000),
            (Gpa(0x10_0000), 0x90_3000..0x90_5000),
        ];
        assert_eq!(lay(&layout, &pieces), parts);
    }

    #[test]
    fn a_vm_gets_the_lowest_memory_that_is_not_used() {
        let placed = place(&[64 * MIB], &[GIB..2 * GIB], &[GIB..GIB + 3 * MIB]);
        assert_eq!(placed, Ok(vec![vec![GIB + 4 * MIB..GIB + 68 * MIB]]));
    }

    #[test]
    fn a_large_vm_is_aligned_to_large_blocks() {
        let placed = place(&[3 * GIB], &[GIB..8 * GIB], &[GIB..GIB + 4096]).unwrap();
        assert_eq!(placed, [[2 * GIB..5 * GIB]]);
    }

    #[test]
    fn a_large_vm_gives_up_its_alignment_rather_than_be_split() {
        let bank = GIB + 2 * MIB..2 * GIB + 4 * MIB;
        assert_eq!(place(&[GIB], &[bank], &[]).unwrap(), [[GIB + 2 * MIB..2 * GIB + 2 * MIB]]);
    }

    #[test]
    fn the_smallest_bank_that_holds_a_vm_is_taken() {
        let banks = [4 * GIB..8 * GIB, GIB..GIB + 256 * MIB];
        assert_eq!(place(&[128 * MIB], &banks, &[]).unwrap(), [[GIB..GIB + 128 * MIB]]);
    }

    #[test]
    fn a_vm_is_split_only_if_no_bank_holds_it() {
        let banks = [GIB..GIB + 256 * MIB, 4 * GIB..4 * GIB + 512 * MIB];
        let placed = place(&[600 * MIB], &banks, &[]).unwrap();
        assert_eq!(placed, [[4 * GIB..4 * GIB + 512 * MIB, GIB..GIB + 88 * MIB]]);
    }

    #[test]
    fn adjacent_banks_are_not_crossed_by_one_piece() {
        let banks = [GIB..GIB + 256 * MIB, GIB + 256 * MIB..GIB + 512 * MIB];
        let placed = place(&[512 * MIB], &banks, &[]).unwrap();
        assert_eq!(placed[0], banks);
    }

    #[test]
    fn banks_that_overlap_give_their_memory_once() {
        let banks = [GIB..GIB + 8 * MIB, GIB + 2 * MIB..GIB + 4 * MIB, GIB + 4 * MIB..GIB + 10 * MIB];
        assert!(place(&[10 * MIB], &banks, &[]).is_ok());
        assert!(place(&[12 * MIB], &banks, &[]).is_err());
    }

    #[test]
    fn the_error_tells_what_was_left() {
        let error = place(&[64 * MIB, 512 * MIB], &[GIB..GIB + 512 * MIB], &[GIB..GIB + 1]).unwrap_err();
        let left = 510 * MIB;
        assert_eq!(error, DoesNotFit { vm: 1, wanted: 512 * MIB, largest_free: left, total_free: left });
        assert_eq!(
            error.to_string(),
            "512 MiB of RAM do not fit: the machine has 510 MiB left (the largest piece 510 MiB); \
             give this or another VM less, or the machine more"
        );
    }

    #[test]
    fn absurd_numbers_are_an_error() {
        assert!(place(&[u64::MAX], &[0..u64::MAX], &[]).is_err());
        assert!(place(&[GRANULE], &[u64::MAX - 5..u64::MAX], &[]).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "a device tree may say anything")]
        let backwards = 5 * GIB..GIB;
        assert!(place(&[GRANULE], &[backwards], &[]).is_err());
    }

    fn ranges(count: usize) -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0..64 * MIB / 4096, 0..16 * MIB / 4096);
        proptest::collection::vec(
            range.prop_map(|(start, pages)| start * 4096..(start + pages) * 4096),
            0..count,
        )
    }

    fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
        one.start < other.end && other.start < one.end
    }

    proptest! {
        #[test]
        fn what_is_placed_is_free_disjoint_and_whole(
            wanted in proptest::collection::vec((0..8_u64).prop_map(|granules| granules * GRANULE), 0..5),
            banks in ranges(5),
            used in ranges(5),
        ) {
            let free_granules = (0..80 * MIB / GRANULE)
                .map(|index| index * GRANULE..(index + 1) * GRANULE)
                .filter(|granule| banks.iter().any(|bank| bank.start <= granule.start && granule.end <= bank.end))
                .filter(|granule| !used.iter().any(|used| !used.is_empty() && overlap(used, granule)))
                .count() as u64;
            let placed = match place(&wanted, &banks, &used) {
                Ok(placed) => placed,
                Err(error) => {
                    prop_assert!(error.wanted > error.total_free && error.largest_free <= error.total_free);
                    // Banks that overlap may cut a granule in two, so only separate ones must be used up.
                    let separate = banks.iter().enumerate().all(|(index, bank)| {
                        banks[..index].iter().all(|other| !overlap(bank, other))
                    });
                    prop_assert!(!separate || wanted.iter().sum::<u64>() > free_granules * GRANULE);
                    return Ok(());
                }
            };
            let pieces: Vec<_> = placed.iter().flatten().collect();
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.start % GRANULE == 0 && piece.end % GRANULE == 0);
                prop_assert!(banks.iter().any(|bank| bank.start <= piece.start && piece.end <= bank.end));
                prop_assert!(!used.iter().any(|used| !used.is_empty() && overlap(used, piece)));
                prop_assert!(pieces[..index].iter().all(|other| !overlap(piece, other)));
            }
            for (vm, wanted) in placed.iter().zip(&wanted) {
                prop_assert_eq!(vm.iter().map(length).sum::<u64>(), *wanted);
            }
        }
    }
}
