//! The rules of the manuals' pages on MOV to control registers, WRMSR and XSETBV, one by one.

use super::*;

const OFFER: Offer = Offer {
    cr4: cr4::PAE | cr4::PSE | cr4::PGE | cr4::PCIDE | cr4::OSFXSR | cr4::SMEP | cr4::TSD,
    efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
    xcr0: xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512 | xcr0::PKRU,
    address_bits: 40,
};
const NO_PDPTES: fn(u64) -> Option<[u64; 4]> = |_| None;

fn long() -> Controls {
    Controls { cr0: cr0::PE | cr0::ET | cr0::PG, cr3: 0x1000, cr4: cr4::PAE, efer: efer::LME | efer::LMA }
}

fn protected() -> Controls {
    Controls { cr0: cr0::PE | cr0::ET, cr3: 0x1000, cr4: 0, efer: 0 }
}

#[test]
fn cr0_refuses_what_the_manual_refuses() {
    let write = |now: &Controls, value| write_cr0(now, value, false, &OFFER, NO_PDPTES).map(|_| ());
    assert_eq!(write(&protected(), cr0::PG), Err(GeneralProtection), "PG without PE");
    assert_eq!(write(&protected(), cr0::PE | cr0::NW), Err(GeneralProtection), "NW without CD");
    assert_eq!(write(&protected(), cr0::PE | 1 << 32), Err(GeneralProtection), "upper half");
    let pcid = Controls { cr4: cr4::PAE | cr4::PCIDE, ..long() };
    assert_eq!(write(&pcid, cr0::PE), Err(GeneralProtection), "paging off with PCIDs");
    let wants_long = Controls { efer: efer::LME, ..protected() };
    assert_eq!(write(&wants_long, cr0::PE | cr0::PG), Err(GeneralProtection), "long mode without PAE");
    assert_eq!(write(&protected(), cr0::PE | cr0::NW | cr0::CD), Ok(()));
    let from_64_bit = write_cr0(&long(), cr0::PE, true, &OFFER, NO_PDPTES);
    assert_eq!(from_64_bit, Err(GeneralProtection), "paging off in 64-bit code");
}

#[test]
fn unknown_bits_of_cr0_are_ignored_and_et_stays() {
    let change = write_cr0(&protected(), 0x0fff_ffc1 & !cr0::NW, false, &OFFER, NO_PDPTES).unwrap();
    assert_eq!(change.controls.cr0, cr0::PE | cr0::ET | cr0::WP | cr0::AM);
}

#[test]
fn long_mode_is_active_while_paging_is_on() {
    let ready = Controls { cr4: cr4::PAE, efer: efer::LME, ..protected() };
    let on = write_cr0(&ready, cr0::PE | cr0::PG, false, &OFFER, NO_PDPTES).unwrap();
    assert_eq!(on.controls.efer, efer::LME | efer::LMA);
    assert!(on.flush);
    let off = write_cr0(&on.controls, cr0::PE, false, &OFFER, NO_PDPTES).unwrap();
    assert_eq!(off.controls.efer, efer::LME);
    assert!(off.flush);
}

#[test]
fn pae_paging_loads_and_checks_its_four_entries() {
    let ready = Controls { cr4: cr4::PAE, cr3: 0x1_0000_5fe0, ..protected() };
    let read = |entries: [u64; 4]| {
        move |at| {
            assert_eq!(at, 0x5fe0);
            Some(entries)
        }
    };
    let on = |entries| write_cr0(&ready, cr0::PE | cr0::PG, false, &OFFER, read(entries)).map(|it| it.pdptes);
    let good = [0x2001, 0x3019, 0, 0xfff_ffff_fffe];
    assert_eq!(on(good), Ok(Some(good)), "an absent entry may hold anything");
    for bit in [1, 2, 5, 8, 40, 63] {
        assert_eq!(on([0x2001 | 1 << bit, 0, 0, 0]), Err(GeneralProtection), "bit {bit}");
    }
    let pae = Controls { cr0: cr0::PE | cr0::PG | cr0::ET, ..ready };
    assert_eq!(write_cr3(&pae, 0x5fe0, &OFFER, read(good)).unwrap().pdptes, Some(good));
    assert_eq!(write_cr4(&pae, cr4::PAE | cr4::PGE, &OFFER, read(good)).unwrap().pdptes, Some(good));
    assert_eq!(write_cr4(&pae, cr4::PAE | cr4::TSD, &OFFER, read(good)).unwrap().pdptes, None);
    assert_eq!(write_cr3(&pae, 0x5fe0, &OFFER, NO_PDPTES), Err(GeneralProtection), "outside RAM");
    assert_eq!(write_cr0(&ready, cr0::PE, false, &OFFER, NO_PDPTES).unwrap().pdptes, None, "not paged");
}

#[test]
fn cr3_takes_the_addresses_that_there_are() {
    let write = |now: &Controls, value| write_cr3(now, value, &OFFER, NO_PDPTES);
    assert_eq!(write(&long(), 1 << 40), Err(GeneralProtection));
    assert_eq!(write(&long(), 1 << 63), Err(GeneralProtection));
    assert_eq!(write(&long(), 0xff_ffff_f000).unwrap().controls.cr3, 0xff_ffff_f000);
    assert_eq!(write(&protected(), 0xffff_0000_1000).unwrap().controls.cr3, 0x1000);
}

#[test]
fn with_pcids_bit_63_keeps_translations() {
    let pcid = Controls { cr4: cr4::PAE | cr4::PCIDE, ..long() };
    let keep = write_cr3(&pcid, 1 << 63 | 0x2005, &OFFER, NO_PDPTES).unwrap();
    assert_eq!((keep.controls.cr3, keep.flush), (0x2005, false));
    assert!(write_cr3(&pcid, 0x2005, &OFFER, NO_PDPTES).unwrap().flush);
}

#[test]
fn cr4_takes_what_is_offered_in_a_mode_that_allows_it() {
    let write = |now: &Controls, value| write_cr4(now, value, &OFFER, NO_PDPTES).map(|it| it.flush);
    for refused in [cr4::SMAP, cr4::LA57, cr4::VMXE, 1 << 40] {
        assert_eq!(write(&long(), cr4::PAE | refused), Err(GeneralProtection), "{refused:#x}");
    }
    assert_eq!(write(&long(), 0), Err(GeneralProtection), "PAE off in long mode");
    assert_eq!(write(&protected(), cr4::PCIDE), Err(GeneralProtection), "PCIDs without long mode");
    let with_pcid = Controls { cr3: 0x1001, ..long() };
    assert_eq!(write(&with_pcid, cr4::PAE | cr4::PCIDE), Err(GeneralProtection), "a PCID already");
    assert_eq!(write(&long(), cr4::PAE | cr4::PCIDE), Ok(true));
    assert_eq!(write(&long(), cr4::PAE | cr4::PGE), Ok(true));
    assert_eq!(write(&long(), cr4::PAE | cr4::OSFXSR), Ok(false));
}

#[test]
fn efer_keeps_lma_and_refuses_a_change_of_lme_while_paged() {
    let write = |now: &Controls, value| write_efer(now, value, &OFFER).map(|it| it.controls.efer);
    assert_eq!(write(&long(), efer::LME | efer::SCE), Ok(efer::LME | efer::LMA | efer::SCE));
    assert_eq!(write(&long(), 0), Err(GeneralProtection));
    assert_eq!(write(&protected(), efer::LME | efer::LMA), Ok(efer::LME));
    assert_eq!(write(&protected(), efer::SVME), Err(GeneralProtection));
    assert!(write_efer(&long(), efer::LME | efer::NXE, &OFFER).unwrap().flush);
}

#[test]
fn xcr0_holds_only_combinations_that_exist() {
    let allowed = [1, 3, 7, 0xe7, 0x203, 0x2e7];
    for value in 0..0x400 {
        let expected = allowed.contains(&(value & !0x200)) || allowed.contains(&value);
        assert_eq!(write_xcr0(0, value, &OFFER).is_ok(), expected, "{value:#x}");
    }
    assert_eq!(write_xcr0(1, 1, &OFFER), Err(GeneralProtection));
    assert_eq!(write_xcr0(0, 1 << 17 | 1, &OFFER), Err(GeneralProtection));
}
