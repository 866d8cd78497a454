//! The XSAVE area that a guest sees: only the components whose registers the hypervisor keeps apart.
#![forbid(unsafe_code)]

use super::{Facts, Leaf};
use crate::control::xcr0;

/// Components that are switched (SDM Vol. 1, 13.1): x87, SSE, AVX, the three of AVX-512, PKRU.
const SWITCHED: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512 | xcr0::PKRU;
/// Of these, the ones with a place behind the header.
pub(super) const EXTENDED: [u8; 5] = [2, 5, 6, 7, 9];
/// Legacy area and header (SDM Vol. 1, 13.4).
const BASE_BYTES: u32 = 512 + 64;

#[derive(Clone, Copy, Default)]
pub(super) struct Component {
    pub(super) number: u8,
    bytes: u32,
    offset: u32,
    is_aligned: bool,
}

pub(super) struct Xsave {
    offered: u64,
    components: [Component; EXTENDED.len()],
}

impl Xsave {
    pub(super) fn new(host: &dyn Fn(u32, u32) -> Leaf, facts: &Facts) -> Self {
        let has_xsave = host(0, 0).eax >= 0xd && host(1, 0).ecx & super::features::XSAVE != 0;
        let mut offered = if has_xsave { facts.xcr0 & SWITCHED & u64::from(host(0xd, 0).eax) } else { 0 };
        // Never a set that XSETBV refuses (SDM Vol. 1, 13.3).
        if offered & xcr0::AVX == 0 || offered & xcr0::AVX512 != xcr0::AVX512 {
            offered &= !xcr0::AVX512;
        }
        if offered & (xcr0::X87 | xcr0::SSE) != xcr0::X87 | xcr0::SSE {
            offered = 0;
        }
        let components = EXTENDED.map(|number| {
            if offered >> number & 1 == 0 {
                return Component { number, ..Component::default() };
            }
            let Leaf { eax, ebx, ecx, .. } = host(0xd, u32::from(number));
            Component { number, bytes: eax, offset: ebx, is_aligned: ecx & 2 != 0 }
        });
        Self { offered, components }
    }

    /// XCR0 bits that the guest may set.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// Bytes that XSAVE uses with this XCR0.
    pub(super) fn size(&self, xcr0: u64) -> u32 {
        self.in_use(xcr0)
            .map(|component| component.offset.saturating_add(component.bytes))
            .fold(BASE_BYTES, u32::max)
    }

    /// Bytes that XSAVEC and XSAVES use (SDM Vol. 1, 13.4.3).
    pub(super) fn compacted_size(&self, xcr0: u64) -> u32 {
        self.in_use(xcr0).fold(BASE_BYTES, |end, component| {
            let start = if component.is_aligned { end.next_multiple_of(64) } else { end };
            start.saturating_add(component.bytes)
        })
    }

    fn in_use(&self, xcr0: u64) -> impl Iterator<Item = &Component> {
        self.components.iter().filter(move |component| xcr0 & self.offered & 1 << component.number != 0)
    }
}
