//! Walks of tables that were built by hand, format by format, and the rules for who may do what.

use super::*;
use bulkhead_vdev::OutsideRam;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// 1 MiB of RAM, of which only what was written is kept.
#[derive(Default)]
struct Ram(RefCell<BTreeMap<u64, u8>>);

const RAM_BYTES: u64 = 1 << 20;

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        if at.0 >= RAM_BYTES {
            return Err(OutsideRam);
        }
        for (byte, place) in into.iter_mut().zip(at.0..) {
            *byte = self.0.borrow().get(&place).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        self.0.borrow_mut().extend((at.0..).zip(from.iter().copied()));
        Ok(())
    }
}

impl Ram {
    fn put(&self, at: u64, entry: u64) {
        self.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    }

    fn put_narrow(&self, at: u64, entry: u32) {
        self.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(Gpa(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}

const NX: u64 = 1 << 63;
/// Present, writable, for users, accessed, dirty.
const ALL: u64 = 0x67;
const ROOT: u64 = 0x1000;
/// Linear address of the walks: index 1 at each level of 4, offset 0x234.
const AT: u64 = 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x234;

fn long() -> Controls {
    Controls {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: ROOT,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA | efer::NXE,
    }
}

/// Tables at 0x1000 to 0x4000, each entry 1 leads to the next, the last to 0x55000.
fn four_levels() -> Ram {
    let ram = Ram::default();
    for level in 0..3 {
        ram.put(ROOT + 0x1000 * level + 8, (ROOT + 0x1000 * (level + 1)) | ALL);
    }
    ram.put(ROOT + 0x3008, 0x55000 | ALL);
    ram
}

fn walk(ram: &Ram, controls: Controls, at: u64, reach: Reach) -> Result<Gpa, WalkError> {
    Paging::new(&controls, None, 40).translate(ram, at, reach)
}

fn fault(address: u64, code: u32) -> Result<Gpa, WalkError> {
    Err(WalkError::Fault(PageFault { address, code }))
}

const READ: Reach = Reach { intent: Intent::Read, user: false, alignment_check: false };
const WRITE: Reach = Reach { intent: Intent::Write, ..READ };
const FETCH: Reach = Reach { intent: Intent::Fetch, ..READ };
const USER: Reach = Reach { user: true, ..READ };

#[test]
fn without_paging_addresses_have_32_bits() {
    let controls = Controls { cr0: cr0::PE, ..Controls::default() };
    assert_eq!(walk(&Ram::default(), controls, 0x1_2345_6789, WRITE), Ok(Gpa(0x2345_6789)));
}

#[test]
fn four_levels_lead_to_pages_of_three_sizes() {
    let ram = four_levels();
    assert_eq!(walk(&ram, long(), AT, READ), Ok(Gpa(0x55234)));
    ram.put(ROOT + 0x2008, 0x1234_0000_0000 & FRAME & 0xff_ffff_ffff | 0x60_0000 | ALL | 0x80);
    assert_eq!(walk(&ram, long(), AT, READ), Ok(Gpa(0x34_0060_1234)));
    ram.put(ROOT + 0x1008, 0x80_4000_0000 | ALL | 0x80 | 0x1000);
    assert_eq!(walk(&ram, long(), AT, READ), Ok(Gpa(0x80_4020_1234)), "bit 12 is PAT");
}

#[test]
fn each_level_may_end_the_walk() {
    for level in 0..4 {
        let ram = four_levels();
        ram.put(ROOT + 0x1000 * level + 8, 0x666 & !1);
        assert_eq!(walk(&ram, long(), AT, READ), fault(AT, 0));
        assert_eq!(walk(&ram, long(), AT, Reach { user: true, ..WRITE }), fault(AT, 6));
        assert_eq!(walk(&ram, long(), AT, FETCH), fault(AT, 0x10));
    }
}

#[test]
fn reserved_bits_are_refused_at_each_level() {
    for level in 0..4 {
        for bit in [40, 51] {
            let ram = four_levels();
            let place = ROOT + 0x1000 * level + 8;
            ram.put(place, ram.get(place) | 1 << bit);
            assert_eq!(walk(&ram, long(), AT, READ), fault(AT, 9), "level {level}, bit {bit}");
            ram.put(place, ram.get(place) & !(1 << bit) | 1 << 52);
            assert!(walk(&ram, long(), AT, READ).is_ok(), "bit 52 is ignored");
        }
        let ram = four_levels();
        let place = ROOT + 0x1000 * level + 8;
        ram.put(place, ram.get(place) | NX);
        let without = Controls { efer: efer::LME | efer::LMA, ..long() };
        assert_eq!(walk(&ram, without, AT, READ), fault(AT, 9), "NX without NXE");
    }
    let ram = four_levels();
    ram.put(ROOT + 8, ram.get(ROOT + 8) | 0x80);
    assert_eq!(walk(&ram, long(), AT, READ), fault(AT, 9), "no page of 512 GiB");
    let ram = four_levels();
    ram.put(ROOT + 0x2008, 0x2000 | ALL | 0x80);
    assert_eq!(walk(&ram, long(), AT, READ), fault(AT, 9), "bit 13 of a 2 MiB page");
}

#[test]
fn every_level_has_to_allow_it() {
    for level in 0..4 {
        let place = ROOT + 0x1000 * level + 8;
        let ram = four_levels();
        let entry = ram.get(place);
        ram.put(place, entry & !2);
        assert_eq!(walk(&ram, long(), AT, WRITE), fault(AT, 3), "read-only");
        assert_eq!(walk(&ram, long(), AT, USER), Ok(Gpa(0x55234)));
        ram.put(place, entry & !4);
        assert_eq!(walk(&ram, long(), AT, USER), fault(AT, 5), "not for users");
        assert!(walk(&ram, long(), AT, WRITE).is_ok());
        ram.put(place, entry | NX);
        assert_eq!(walk(&ram, long(), AT, FETCH), fault(AT, 0x11));
        assert_eq!(walk(&ram, long(), AT, Reach { user: true, ..FETCH }), fault(AT, 0x15));
        assert!(walk(&ram, long(), AT, WRITE).is_ok());
    }
}

#[test]
fn without_wp_supervisors_write_anywhere_and_users_do_not() {
    let ram = four_levels();
    ram.put(ROOT + 0x3008, 0x55000 | ALL & !2);
    let controls = Controls { cr0: cr0::PE | cr0::PG, ..long() };
    assert!(walk(&ram, controls, AT, WRITE).is_ok());
    assert_eq!(walk(&ram, controls, AT, Reach { user: true, ..WRITE }), fault(AT, 7));
}

#[test]
fn smep_and_smap_keep_supervisors_out_of_user_pages() {
    let ram = four_levels();
    let smep = Controls { cr4: cr4::PAE | cr4::SMEP, ..long() };
    assert_eq!(walk(&ram, smep, AT, FETCH), fault(AT, 0x11));
    assert!(walk(&ram, smep, AT, Reach { user: true, ..FETCH }).is_ok());
    assert!(walk(&ram, smep, AT, WRITE).is_ok());
    let smap = Controls { cr4: cr4::PAE | cr4::SMAP, ..long() };
    assert_eq!(walk(&ram, smap, AT, READ), fault(AT, 1));
    assert_eq!(walk(&ram, smap, AT, WRITE), fault(AT, 3));
    assert!(walk(&ram, smap, AT, Reach { alignment_check: true, ..WRITE }).is_ok());
    assert!(walk(&ram, smap, AT, FETCH).is_ok());
    assert!(walk(&ram, smap, AT, USER).is_ok());
    let without_nxe = Controls { efer: efer::LME | efer::LMA, ..smep };
    assert_eq!(walk(&ram, without_nxe, AT, FETCH), fault(AT, 0x11), "SMEP tells fetches too");
}

#[test]
fn accessed_and_dirty_bits_are_set_as_the_access_needs() {
    let ram = four_levels();
    let places = [0, 1, 2, 3].map(|level| ROOT + 0x1000 * level + 8);
    let clear = || places.iter().for_each(|place| ram.put(*place, ram.get(*place) & !0x60));
    let bits = || places.map(|place| ram.get(place) & 0x60);
    clear();
    walk(&ram, long(), AT, READ).unwrap();
    assert_eq!(bits(), [0x20; 4]);
    walk(&ram, long(), AT, WRITE).unwrap();
    assert_eq!(bits(), [0x20, 0x20, 0x20, 0x60]);
    clear();
    ram.put(places[3], ram.get(places[3]) & !2);
    assert!(walk(&ram, long(), AT, WRITE).is_err());
    assert_eq!(bits(), [0; 4], "what is refused leaves no trace");
    assert_eq!(ram.get(places[3]), 0x55005);
}

#[test]
fn pae_has_four_entries_and_two_levels() {
    let controls = Controls { cr3: 0x1_0000_1020, efer: efer::NXE, ..long() };
    let ram = Ram::default();
    ram.put(0x1020 + 8 * 3, 0x2001);
    ram.put(0x2000 + 8 * 5, 0x3000 | ALL);
    ram.put(0x3000 + 8 * 6, 0x12_3456_7000 | ALL);
    let at = 3 << 30 | 5 << 21 | 6 << 12 | 0x89a;
    assert_eq!(walk(&ram, controls, at, WRITE), Ok(Gpa(0x12_3456_789a)));
    assert_eq!(ram.get(0x1038), 0x2001, "a PDPTE has no accessed bit");
    ram.put(0x2028, 0x60_0000 | ALL | 0x80 | NX);
    assert_eq!(walk(&ram, controls, at, READ), Ok(Gpa(0x60_689a)));
    assert_eq!(walk(&ram, controls, at, FETCH), fault(at, 0x11));
    ram.put(0x2028, 0x60_0000 | ALL | 0x80 | 1 << 52);
    assert_eq!(walk(&ram, controls, at, READ), fault(at, 9), "bit 52 is reserved here");
    ram.put(0x2028, 0x60_0000 | ALL | 0x80);
    ram.put(0x1038, 0x100_0000_2001);
    assert_eq!(walk(&ram, controls, at, READ), fault(at, 9), "bit 40 leads astray");
    let held = Paging::new(&controls, Some([0, 0, 0, 0x2001]), 40);
    assert_eq!(held.translate(&ram, at, READ), Ok(Gpa(0x60_689a)), "the CPU's own PDPTEs count");
    assert_eq!(held.translate(&ram, 0, READ), fault(0, 0));
}

#[test]
fn a_pdpte_that_its_cpu_marked_as_accessed_leads_on_and_one_that_the_cpu_holds_does_not() {
    let controls = Controls { efer: efer::NXE, ..long() };
    let ram = Ram::default();
    ram.put(ROOT, 0x2021);
    ram.put(0x2000, 0x60_0000 | ALL | 0x80);
    assert_eq!(walk(&ram, controls, 0x1234, WRITE), Ok(Gpa(0x60_1234)));
    let held = |pdpte| Paging::new(&controls, Some([pdpte, 0, 0, 0]), 40).translate(&ram, 0x1234, READ);
    assert_eq!(held(0x2021), fault(0x1234, 9));
    assert_eq!(held(0x2001), Ok(Gpa(0x60_1234)));
}

#[test]
fn narrow_tables_have_two_levels_and_pages_of_4_mib() {
    let controls = Controls { cr4: 0, efer: 0, ..long() };
    let ram = Ram::default();
    ram.put_narrow(0x1000 + 4 * 0x300, 0x2007);
    ram.put_narrow(0x2000 + 4 * 7, 0x5_5007);
    let at = 0xc000_7123;
    assert_eq!(walk(&ram, controls, at, Reach { user: true, ..WRITE }), Ok(Gpa(0x5_5123)));
    assert_eq!(ram.get(0x1c00) & 0x60, 0x20);
    assert_eq!(ram.get(0x201c) & 0x60, 0x60);
    assert_eq!(walk(&ram, controls, at + 0x1000, FETCH), fault(at + 0x1000, 0), "fetches are not told");
    let pse = Controls { cr4: cr4::PSE, ..controls };
    ram.put_narrow(0x1c00, 0x0080_0000 | 0x67 | 0x80 | 0xff << 13);
    assert_eq!(walk(&ram, pse, at, READ), Ok(Gpa(0xff_0080_7123)), "PSE-36");
    ram.put_narrow(0x1c00, 0x00a0_0000 | 0x67 | 0x80);
    assert_eq!(walk(&ram, pse, at, READ), fault(at, 9), "bit 21");
    ram.put_narrow(0x1c00, 0x2067 | 0x80);
    assert_eq!(walk(&ram, controls, at, READ), Ok(Gpa(0x5_5123)), "without PSE bit 7 means nothing");
}

#[test]
fn a_table_outside_ram_is_an_error_of_its_own() {
    let ram = four_levels();
    ram.put(ROOT + 0x1008, 0xfee0_0000 | ALL);
    assert_eq!(walk(&ram, long(), AT, READ), Err(WalkError::TableOutsideRam(Gpa(0xfee0_0008))));
    let nowhere = Controls { cr3: 0xff_ffff_f000, ..long() };
    assert_eq!(walk(&ram, nowhere, AT, READ), Err(WalkError::TableOutsideRam(Gpa(0xff_ffff_f008))));
}

/// RAM in which another vCPU clears each entry at the last moment before it is marked.
struct Racing(Ram);

impl GuestMemory for Racing {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        self.0.read(at, into)
    }

    fn write(&self, at: Gpa, _: &[u8]) -> Result<(), OutsideRam> {
        panic!("a plain store to {at}");
    }

    fn compare_exchange(&self, at: Gpa, width: Width, old: u64, new: u64) -> bool {
        self.0.put(at.0, 0);
        self.0.compare_exchange(at, width, old, new)
    }
}

#[test]
fn an_entry_that_another_vcpu_clears_meanwhile_stays_clear() {
    let ram = four_levels();
    ram.put(ROOT + 0x3008, 0x55000 | 0x07);
    let racing = Racing(ram);
    let found = Paging::new(&long(), None, 40).translate(&racing, AT, WRITE);
    assert_eq!(found, Ok(Gpa(0x55234)), "the walk was before");
    assert_eq!(racing.0.get(ROOT + 0x3008), 0);
}

proptest! {
    #[test]
    fn no_tables_and_no_registers_are_too_strange(
        entries in prop::collection::vec(any::<u64>(), 64),
        cr0 in any::<u64>(), cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(),
        at in any::<u64>(), user in any::<bool>(), bits in any::<u8>(), alignment_check in any::<bool>(),
    ) {
        let ram = Ram::default();
        for (index, entry) in entries.iter().enumerate() {
            ram.put(index as u64 * 8, *entry);
        }
        for cr3 in [cr3, cr3 & 0xfff] {
            for intent in [Intent::Read, Intent::Write, Intent::Fetch] {
                let controls = Controls { cr0: cr0 | cr0::PG, cr3, cr4, efer };
                let _ = walk(&ram, controls, at, Reach { intent, user, alignment_check });
                let _ = Paging::new(&controls, None, bits).translate(&ram, at & 0x1f_ffff, READ);
            }
        }
    }
}
