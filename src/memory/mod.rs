//! Host memory: who owns which part of it, and what a guest can reach.
//!
//! A [`Claim`] is the proof that a range of host memory belongs to one owner; only [`HostMemory::claim`] makes one, after it
//! has checked that the range is RAM and nobody else's. [`table::Stage2::map`] takes claims, never addresses: that is
//! why the safe `map` cannot give one VM another VM's memory or the hypervisor's.

mod claim;
pub mod frames;
pub mod guest_ram;
pub mod place;
pub mod table;

pub use claim::{Claim, ClaimError, HostMemory};

use core::fmt;

/// A host-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hpa(pub u64);

impl fmt::Debug for Hpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A page: the smallest unit of translation, 4 KiB.
pub const PAGE: u64 = 4096;
