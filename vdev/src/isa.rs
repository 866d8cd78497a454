//! Byte-wide devices behind a wider access: the bus asks for one byte after the other, the lowest first.

use crate::{Access, Width};

/// What one byte of an access asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Byte {
    Read,
    Write(u8),
}

/// Performs `access` byte by byte at rising offsets; a read's bytes are put together again.
#[inline]
pub(crate) fn bytewise(offset: u64, access: Access, mut one: impl FnMut(u64, Byte) -> u8) -> u64 {
    match access {
        Access::Read(Width::Byte) => u64::from(one(offset, Byte::Read)),
        Access::Write(Width::Byte, value) => u64::from(one(offset, Byte::Write(byte(value, 0)))),
        wide => split(offset, wide, &mut one),
    }
}

#[cold]
#[inline(never)]
fn split(offset: u64, access: Access, one: &mut dyn FnMut(u64, Byte) -> u8) -> u64 {
    let mut together = 0;
    for index in 0..access.width().bytes() {
        let ask = match access {
            Access::Read(_) => Byte::Read,
            Access::Write(_, value) => Byte::Write(byte(value, index)),
        };
        together |= u64::from(one(offset.wrapping_add(index), ask)) << (8 * index);
    }
    together
}

/// Byte `index` of `value`, counted from the lowest; `index` is below 8.
pub(crate) const fn byte(value: u64, index: u64) -> u8 {
    (value >> (8 * index) & 0xff) as u8
}

/// A moment in the time of [`crate::Clock::now_ns`] as ticks of a clock with `hertz` (below 2^32), rounded down.
pub(crate) const fn ticks(now_ns: u64, hertz: u64) -> u64 {
    (now_ns / NS_PER_S).saturating_mul(hertz).saturating_add(now_ns % NS_PER_S * hertz / NS_PER_S)
}

/// The first moment at which [`ticks`] gives `tick`.
pub(crate) const fn moment_ns(tick: u64, hertz: u64) -> u64 {
    (tick / hertz).saturating_mul(NS_PER_S).saturating_add((tick % hertz * NS_PER_S).div_ceil(hertz))
}

pub(crate) const NS_PER_S: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn a_wide_access_moves_its_bytes_lowest_first() {
        let mut seen = Vec::new();
        bytewise(4, Access::Write(Width::Word, 0x4433_2211), |offset, ask| {
            seen.push((offset, ask));
            0
        });
        assert_eq!(
            seen,
            [0x11, 0x22, 0x33, 0x44]
                .map(Byte::Write)
                .into_iter()
                .zip(4..)
                .map(|(ask, at)| (at, ask))
                .collect::<Vec<_>>()
        );
        let read = bytewise(1, Access::Read(Width::Half), |offset, ask| {
            assert_eq!(ask, Byte::Read);
            u8::try_from(offset).unwrap() * 0x11
        });
        assert_eq!(read, 0x2211);
    }

    proptest! {
        #[test]
        fn a_tick_comes_at_its_moment_and_not_before(tick in 0u64..1 << 53, hertz in 1u64..5_000_000) {
            let at = moment_ns(tick, hertz);
            prop_assume!(at < u64::MAX);
            prop_assert_eq!(ticks(at, hertz), tick);
            prop_assert!(at == 0 || ticks(at - 1, hertz) < tick);
        }

        #[test]
        fn no_moment_overflows(value: u64, hertz in 1u64..1 << 32) {
            let _ = (ticks(value, hertz), moment_ns(value, hertz));
        }
    }
}
