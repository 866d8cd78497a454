//! Where the guest's instructions lay that were looked at last: the entries of its page tables that led there, and the page.
//!
//! A CPU that does not tell how long an intercepted instruction is makes us read it, and a walk through four tables costs more
//! than all else that an exit needs. So the entries are remembered. They are read again each time: as long as each has its old
//! value the walk would lead to the same page, so nothing is ever out of date, whatever a guest does with its tables.
//!
//! Only for 4-level paging, and only for addresses at which the CPU has just executed an instruction: permissions are not
//! looked at.

use bulkhead::memory::guest_ram::GuestRam;
use bulkhead_vdev::Gpa;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many pages are remembered: each at the place that its low bits name.
const TRAILS: usize = 8;
const LEVELS: usize = 4;
const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;
/// Page table entries (SDM Vol. 3A, 4.5).
const PRESENT: u64 = 1;
const LEAF: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// No page begins there.
const NOWHERE: u64 = u64::MAX;

static NOTHING: AtomicU64 = AtomicU64::new(0);

/// An entry in the guest's RAM, and what it said.
#[derive(Clone, Copy)]
struct Step {
    entry: &'static AtomicU64,
    value: u64,
}

#[derive(Clone, Copy)]
struct Trail {
    /// The linear address of the page.
    page: u64,
    cr3: u64,
    cr4: u64,
    steps: [Step; LEVELS],
    /// The host's address of the page.
    code: usize,
}

/// The pages that one vCPU executed last.
pub struct Trails([Trail; TRAILS]);

/// The bytes from an instruction on, as far as its page reaches.
#[derive(Clone, Copy)]
pub struct Code {
    at: usize,
    left: usize,
}

impl Default for Trails {
    fn default() -> Self {
        let none = Step { entry: &NOTHING, value: 0 };
        Self([Trail { page: NOWHERE, cr3: 0, cr4: 0, steps: [none; LEVELS], code: 0 }; TRAILS])
    }
}

impl Trails {
    fn place(linear: u64) -> usize {
        usize::try_from(linear / PAGE).unwrap_or(0) % TRAILS
    }

    /// The instruction at `linear`, if the way there is known and still the same.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, linear: u64, cr3: u64, cr4: u64) -> Option<Code> {
        let trail = &self.0[Self::place(linear)];
        if trail.page != linear & !(PAGE - 1) || trail.cr3 != cr3 || trail.cr4 != cr4 {
            return None;
        }
        if trail.steps.iter().any(|step| step.entry.load(Ordering::Relaxed) != step.value) {
            return None;
        }
        let offset = usize::try_from(linear & (PAGE - 1)).unwrap_or(0);
        Some(Code { at: trail.code + offset, left: PAGE_BYTES - offset })
    }

    /// Remembers the way to `linear` in 4-level paging, which the guest's CPU has just taken.
    #[cold]
    #[inline(never)]
    pub fn learn(&mut self, ram: &GuestRam, linear: u64, cr3: u64, cr4: u64) {
        if let Some(trail) = walk(ram, linear, cr3, cr4) {
            self.0[Self::place(linear)] = trail;
        }
    }
}

fn walk(ram: &GuestRam, linear: u64, cr3: u64, cr4: u64) -> Option<Trail> {
    let mut steps = [Step { entry: &NOTHING, value: 0 }; LEVELS];
    let mut next = cr3 & ADDRESS;
    for (depth, step) in steps.iter_mut().enumerate() {
        let shift = 12 + 9 * (LEVELS - 1 - depth);
        let entry = entry(ram, next + (linear >> shift & 0x1ff) * 8)?;
        let value = entry.load(Ordering::Relaxed);
        *step = Step { entry, value };
        if value & PRESENT == 0 {
            return None;
        }
        next = value & ADDRESS;
        let is_leaf = (1..LEVELS - 1).contains(&depth) && value & LEAF != 0;
        if is_leaf {
            let inside = (1 << shift) - 1;
            next = next & !inside | linear & inside & !(PAGE - 1);
            break;
        }
    }
    let mut code = None;
    ram.pieces(Gpa(next), PAGE_BYTES, |host, _, bytes| {
        code = (bytes == PAGE_BYTES).then_some(host);
    })
    .ok()?;
    let code = usize::try_from(code?.0).ok()?;
    Some(Trail { page: linear & !(PAGE - 1), cr3, cr4, steps, code })
}

/// The entry at `at`, if that is RAM.
fn entry(ram: &GuestRam, at: u64) -> Option<&'static AtomicU64> {
    let mut found = None;
    ram.pieces(Gpa(at), 8, |host, _, bytes| found = (bytes == 8).then_some(host)).ok()?;
    let pointer = core::ptr::with_exposed_provenance_mut(usize::try_from(found?.0).ok()?);
    // SAFETY: eight aligned bytes inside a claim: RAM that is no Rust object's, mapped one to one, and never given back.
    Some(unsafe { AtomicU64::from_ptr(pointer) })
}

impl Code {
    /// The first four bytes, unless the page ends before.
    #[inline(always)]
    #[must_use]
    pub fn first(self) -> Option<u32> {
        if self.left < 4 {
            return None;
        }
        let pointer: *const u32 = core::ptr::with_exposed_provenance(self.at);
        // SAFETY: inside of a page of guest RAM, as in `entry`; a guest that writes meanwhile only changes what is read.
        Some(unsafe { pointer.read_unaligned() })
    }

    /// As many bytes as one instruction can have, unless the page ends before.
    #[inline(always)]
    #[must_use]
    pub fn instruction(self) -> Option<[u8; 16]> {
        if self.left < 16 {
            return None;
        }
        let pointer: *const [u8; 16] = core::ptr::with_exposed_provenance(self.at);
        // SAFETY: as above.
        Some(unsafe { pointer.read_unaligned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead::memory::HostMemory;
    use bulkhead_vdev::GuestMemory as _;

    const BYTES: usize = 16 * 4096;

    fn ram() -> GuestRam {
        #[repr(align(4096))]
        struct Pages(#[expect(dead_code, reason = "reached by address only")] [u8; BYTES]);
        let pages = Box::leak(Box::new(Pages([0; BYTES])));
        let base = core::ptr::from_mut(pages).expose_provenance() as u64;
        let bank = base..base + BYTES as u64;
        // SAFETY: the pages are leaked: they stay, and only this claim reaches them.
        let mut memory = unsafe { HostMemory::new(vec![bank.clone()], vec![]) };
        GuestRam::new(vec![(Gpa(0), memory.claim(bank).unwrap())])
    }

    /// Tables at 0x1000 to 0x4000 that map linear 0 to 0x5000; the page begins with CPUID.
    fn mapped() -> (GuestRam, Trails) {
        let ram = ram();
        for table in 1..=4u64 {
            ram.write(Gpa(table * 0x1000), &(((table + 1) * 0x1000) | 3).to_le_bytes()).unwrap();
        }
        ram.write(Gpa(0x5123), &[0x0f, 0xa2, 0x90, 0x90]).unwrap();
        let mut trails = Trails::default();
        trails.learn(&ram, 0x123, 0x1000, 0x20);
        (ram, trails)
    }

    #[test]
    fn a_way_that_was_taken_is_known() {
        let (_, trails) = mapped();
        assert_eq!(trails.find(0x123, 0x1000, 0x20).unwrap().first(), Some(0x9090_a20f));
        assert!(trails.find(0x1123, 0x1000, 0x20).is_none(), "another page");
        assert!(trails.find(0x123, 0x2000, 0x20).is_none(), "other tables");
        assert!(trails.find(0x123, 0x1000, 0x1020).is_none(), "another kind of tables");
    }

    #[test]
    fn any_entry_that_changed_makes_it_unknown() {
        for table in 1..=4u64 {
            let (ram, trails) = mapped();
            ram.write(Gpa(table * 0x1000), &(0x6000u64 | 3).to_le_bytes()).unwrap();
            assert!(trails.find(0x123, 0x1000, 0x20).is_none(), "table {table}");
        }
    }

    #[test]
    fn code_that_changed_is_read_as_it_is_now() {
        let (ram, trails) = mapped();
        ram.write(Gpa(0x5123), &[0xf4]).unwrap();
        assert_eq!(trails.find(0x123, 0x1000, 0x20).unwrap().first(), Some(0x9090_a2f4));
    }

    #[test]
    fn nothing_is_read_beyond_the_page() {
        let (_, trails) = mapped();
        assert!(trails.find(0xffd, 0x1000, 0x20).unwrap().first().is_none());
        assert!(trails.find(0xff1, 0x1000, 0x20).unwrap().instruction().is_none());
        assert!(trails.find(0xff0, 0x1000, 0x20).unwrap().instruction().is_some());
    }

    #[test]
    fn large_pages_and_tables_outside_ram_are_understood() {
        let ram = ram();
        ram.write(Gpa(0x1000), &0x2003u64.to_le_bytes()).unwrap();
        ram.write(Gpa(0x2000), &0x83u64.to_le_bytes()).unwrap();
        ram.write(Gpa(0x5000), &[0xf4]).unwrap();
        let mut trails = Trails::default();
        trails.learn(&ram, 0x5000, 0x1000, 0x20);
        assert_eq!(trails.find(0x5000, 0x1000, 0x20).unwrap().first().unwrap() & 0xff, 0xf4);
        trails.learn(&ram, 0x5000, 0xfec0_0000, 0x20);
        assert!(trails.find(0x5000, 0xfec0_0000, 0x20).is_none());
    }
}
