//! Syndromes built from the manual's tables, decoded.

extern crate std;

use super::*;
use std::string::ToString;

/// `str w3, [x0]` to an unmapped page: ISV, word, x3, write, translation fault at level 1.
const STORE: Esr = Esr(0x9383_0045);

fn load(width: u64, signed: bool, to_64_bit: bool) -> Abort {
    Esr(0x24 << 26 | 1 << 24 | width << 22 | u64::from(signed) << 21 | u64::from(to_64_bit) << 15 | 6).abort()
}

#[test]
fn a_store_is_decoded_with_its_value_cut_to_its_width() {
    assert_eq!(STORE.class(), Class::DATA_ABORT_LOWER);
    assert_eq!(STORE.instruction_bytes(), 4);
    let abort = STORE.abort();
    assert_eq!(abort.register(), 3);
    assert_eq!(abort.fault(), Fault::Translation { level: 1 });
    assert!(abort.is_plain_access());
    assert_eq!(abort.access(0x1_2345_6789), Access::Write(Width::Word, 0x2345_6789));
}

#[test]
fn loads_extend_as_the_instruction_asks() {
    assert_eq!(load(0, false, false).extend(0xffff_ff80), 0x80, "ldrb w");
    assert_eq!(load(0, true, false).extend(0x80), 0xffff_ff80, "ldrsb w");
    assert_eq!(load(0, true, true).extend(0x80), 0xffff_ffff_ffff_ff80, "ldrsb x");
    assert_eq!(load(0, true, true).extend(0x7f), 0x7f, "ldrsb x of a positive number");
    assert_eq!(load(1, true, true).extend(0x8000), 0xffff_ffff_ffff_8000, "ldrsh x");
    assert_eq!(load(2, true, true).extend(0x8000_0000), 0xffff_ffff_8000_0000, "ldrsw x");
    assert_eq!(load(2, false, false).extend(u64::MAX), 0xffff_ffff, "ldr w");
    assert_eq!(load(3, false, true).extend(u64::MAX), u64::MAX, "ldr x");
    assert_eq!(load(3, true, true).extend(u64::MAX), u64::MAX);
}

#[test]
fn an_abort_without_a_syndrome_is_no_access() {
    assert!(!Esr(0x9200_0045).abort().is_plain_access());
    assert!(!Esr(STORE.0 | 1 << 8).abort().is_plain_access(), "cache maintenance");
    assert!(!Esr(STORE.0 | 1 << 7).abort().is_plain_access(), "table walk");
}

#[test]
fn the_address_has_its_page_from_hpfar_and_its_offset_from_far() {
    let abort = STORE.abort();
    assert!(abort.hpfar_is_valid());
    assert_eq!(abort.address(0x9_0000, 0xffff_8000_1234_5018), Gpa(0x0900_0018));
    assert_eq!(abort.address(1 << 63 | 0x9_0000, 0), Gpa(0x0900_0000), "NS is no address bit");
    let walk = Esr(STORE.0 | 1 << 7).abort();
    assert_eq!(walk.address(0x9_0000, 0x18), Gpa(0x0900_0000));
}

#[test]
fn hpfar_does_not_hold_for_permission_faults_outside_a_walk() {
    let permission = Esr(0x9200_004f).abort();
    assert_eq!(permission.fault(), Fault::Permission { level: 3 });
    assert!(!permission.hpfar_is_valid());
    assert!(Esr(0x9200_00cf).abort().hpfar_is_valid());
    assert!(!Esr(0x9200_0010).abort().hpfar_is_valid(), "external abort");
}

#[test]
fn a_system_register_is_named_whatever_register_and_direction() {
    let sgi1r = Encoding::new(3, 0, 12, 11, 5);
    // msr ICC_SGI1R_EL1, x2, built from the fields of the manual's table.
    let iss: u64 = 3 << 20 | 5 << 17 | 12 << 10 | 2 << 5 | 11 << 1;
    let write = Esr(0x18 << 26 | 1 << 25 | iss).system_register();
    assert_eq!((write.encoding(), write.register(), write.direction()), (sgi1r, 2, Direction::Write));
    let read = Esr(0x18 << 26 | 1 << 25 | iss | 31 << 5 | 1).system_register();
    assert_eq!((read.encoding(), read.register(), read.direction()), (sgi1r, 31, Direction::Read));
    assert_eq!(sgi1r.to_string(), "S3_0_C12_C11_5");
}

#[test]
fn an_encoding_gives_its_fields_back() {
    let encoding = Encoding::new(2, 3, 7, 14, 6);
    let fields = (encoding.op0(), encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2());
    assert_eq!(fields, (2, 3, 7, 14, 6));
}

#[test]
fn waits_and_calls_give_their_operands() {
    assert_eq!(Esr(0x0600_0000).wait(), Wait::Interrupt);
    assert_eq!(Esr(0x0600_0001).wait(), Wait::Event);
    assert_eq!(Esr(0x0600_0000 | 7 << 5 | 2).wait(), Wait::InterruptUntil(7));
    assert_eq!(Esr(0x5a00_4a48).immediate(), 0x4a48);
}

#[test]
fn each_value_reads_as_one_sentence() {
    for (esr, words) in [
        (
            STORE.0,
            "data abort of the guest: store of 4 bytes from x3, translation fault at level 1 (ESR 0x93830045, class 0x24)",
        ),
        (
            0x9200_0007,
            "data abort of the guest: load without a syndrome, translation fault at level 3 (ESR 0x92000007, class 0x24)",
        ),
        (
            0x8200_0086,
            "instruction abort of the guest: walk of the guest's own translation tables, translation fault at level 2 (ESR 0x82000086, class 0x20)",
        ),
        (0x5a00_0001, "HVC #0x1 (ESR 0x5a000001, class 0x16)"),
        (0x0600_0000, "trapped WFI or WFE: WFI (ESR 0x6000000, class 0x01)"),
        (
            0x6232_1801,
            "trapped system register access: read of S3_0_C6_C0_1, x0 (ESR 0x62321801, class 0x18)",
        ),
        (0xffff_ffff, "exception of an unknown class (ESR 0xffffffff, class 0x3f)"),
    ] {
        assert_eq!(Esr(esr).to_string(), words);
    }
}

#[test]
fn no_value_is_without_words() {
    for class in 0..64_u64 {
        for status in 0..64 {
            assert!(!Esr(class << 26 | 0x1ff_ffc0 | status).to_string().is_empty());
        }
    }
}
