//! What each maker's guest may read and write, and what is refused.

use super::*;
use crate::cpuid::tests::{facts, skylake, zen};
use crate::cpuid::{Facts, Native};

fn amd() -> Msrs {
    Msrs::new(&Table::new(&zen, &facts(2, 0)))
}

fn intel() -> Msrs {
    let host = HostWords { revision: 0x200_0065_0000_0000, arch_capabilities: u64::MAX };
    Msrs::new(&Table::new(&skylake, &facts(2, 0))).with_host(host)
}

fn value(msrs: &Msrs, number: u32) -> u64 {
    match msrs.read(number) {
        Ok(Answer::Value(value)) => value,
        other => panic!("{number:#x}: {other:?}"),
    }
}

#[test]
fn what_linux_reads_at_boot_is_there() {
    let common =
        [0x8b, 0xfe, 0x179, 0x17a, 0x1d9, 0x200, 0x20f, 0x250, 0x26f, 0x2ff, 0x400, 0x401, 0x402, 0x403];
    for msrs in [amd(), intel()] {
        for number in common {
            value(&msrs, number);
        }
    }
    for number in [
        0xc001_0010,
        0xc001_0015,
        0xc001_001a,
        0xc001_001d,
        0xc001_001f,
        0xc001_0055,
        0xc001_0114,
        0xc001_0140,
        0xc001_0141,
        0xc001_1029,
    ] {
        value(&amd(), number);
        assert_eq!(intel().read(number), Err(GeneralProtection), "{number:#x}");
    }
    for number in [0x17, 0x3a, 0xce, 0x10a, 0x1a0] {
        value(&intel(), number);
        assert_eq!(amd().read(number), Err(GeneralProtection), "{number:#x}");
    }
    assert_eq!(value(&amd(), 0xc001_0015) & 1 << 24, 1 << 24, "the TSC counts at P0's frequency");
    assert_eq!(value(&amd(), 0xc001_0114), 0x18, "SVM is switched off for good");
    assert_eq!(value(&intel(), 0x3a), 1, "VMX is switched off for good");
    assert_eq!(value(&intel(), 0xce), 24 << 8, "2400 MHz");
    assert_eq!(value(&intel(), 0x8b), 0x200_0065_0000_0000);
    assert_eq!(
        value(&intel(), 0x10a) & (1 << 7 | 1 << 10 | 1 << 12 | 1 << 21),
        0,
        "nothing that we would have to serve"
    );
}

#[test]
fn what_nobody_named_raises_gp() {
    // VMX, PMU, RDT, SGX, RAPL, LBR, HDC, trace, SVM's host area, IBS, SEV, Hyper-V's and KVM's, and no MSR at all.
    let numbers = [
        0x11,
        0xc1,
        0x186,
        0x345,
        0x38f,
        0x480,
        0x491,
        0x560,
        0x606,
        0x680,
        0x6a0,
        0xc81,
        0xd90,
        0x122,
        0xe7,
        0xe8,
        0xc001_0000,
        0xc001_0117,
        0xc001_0131,
        0xc001_1020,
        0xc001_1030,
        0x4000_0000,
        0x4b56_4d00,
        u32::MAX,
    ];
    for mut msrs in [amd(), intel()] {
        for number in numbers {
            assert_eq!(msrs.read(number), Err(GeneralProtection), "{number:#x}");
            assert_eq!(msrs.write(number, 0), Err(GeneralProtection), "{number:#x}");
        }
    }
}

#[test]
fn what_acts_elsewhere_is_handed_over() {
    let mut msrs = intel();
    let cases = [
        (0x1b, Owner::ApicBase),
        (0x6e0, Owner::TscDeadline),
        (0x10, Owner::Tsc),
        (0x3b, Owner::TscAdjust),
        (0xc000_0080, Owner::Efer),
        (0x800, Owner::X2Apic(0)),
        (0x830, Owner::X2Apic(0x30)),
        (0x8ff, Owner::X2Apic(0xff)),
        (0x174, Owner::Native(0x174)),
        (0xc000_0102, Owner::Native(0xc000_0102)),
    ];
    for (number, owner) in cases {
        assert_eq!(msrs.read(number), Ok(Answer::Ask(owner)), "{number:#x}");
        assert_eq!(msrs.write(number, 0), Ok(Answer::Ask(owner)), "{number:#x}");
    }
    assert_eq!(amd().read(0x3b), Err(GeneralProtection), "this CPU has no TSC_ADJUST");
}

#[test]
fn a_page_attribute_table_has_types_that_exist() {
    let mut msrs = amd();
    assert_eq!(msrs.write(0x277, 0x0007_0406_0007_0406), Ok(Answer::Ask(Owner::Pat)));
    assert_eq!(msrs.write(0x277, 0x0107_0506_0007_0406), Ok(Answer::Ask(Owner::Pat)));
    for wrong in [2, 3, 8, 0x80] {
        assert_eq!(msrs.write(0x277, wrong << 32), Err(GeneralProtection), "{wrong}");
    }
}

#[test]
fn memory_types_are_as_firmware_leaves_them_and_take_what_is_legal() {
    let mut msrs = intel();
    assert_eq!(value(&msrs, 0xfe), 0x508, "8 pairs, fixed ranges, write-combining");
    assert_eq!(value(&msrs, 0x2ff), 0xc06, "enabled, write-back");
    assert_eq!((value(&msrs, 0x200), value(&msrs, 0x201)), (0xc000_0000, 0x3fff_c000_0800), "46 bits");
    assert_eq!(value(&msrs, 0x250), 0x0606_0606_0606_0606);
    assert_eq!(value(&msrs, 0x259), 0);
    assert_eq!(value(&msrs, 0x26f), 0x0505_0505_0505_0505);
    let legal =
        [(0x202, 0x1_0000_0006), (0x203, 0x3fff_0000_0800), (0x250, 0x0604_0501_0006_0606), (0x2ff, 0)];
    for (number, new) in legal {
        assert_eq!(msrs.write(number, new), Ok(Answer::Done), "{number:#x}");
        assert_eq!(value(&msrs, number), new);
    }
    let illegal = [
        (0xfe, 0x508),
        (0x200, 2),
        (0x200, 7),
        (0x200, 0x100),
        (0x200, 1 << 46),
        (0x201, 1),
        (0x201, 1 << 46),
        (0x2ff, 2),
        (0x2ff, 0x1000),
        (0x250, 7 << 16),
        (0x26f, 3 << 56),
    ];
    for (number, new) in illegal {
        assert_eq!(msrs.write(number, new), Err(GeneralProtection), "{number:#x} = {new:#x}");
    }
    msrs.reset();
    assert_eq!(value(&msrs, 0x2ff), 0xc06);
}

#[test]
fn machine_check_banks_are_cleared_and_not_forged() {
    let mut msrs = amd();
    assert_eq!(value(&msrs, 0x179), 1);
    assert_eq!(msrs.write(0x400, u64::MAX), Ok(Answer::Done));
    assert_eq!(value(&msrs, 0x400), u64::MAX);
    assert_eq!(msrs.write(0x401, 0), Ok(Answer::Done));
    assert_eq!(msrs.write(0x401, 1), Err(GeneralProtection));
    assert_eq!(msrs.write(0xc001_0015, 1 << 18), Ok(Answer::Done));
    assert_eq!(msrs.write(0x401, 1), Ok(Answer::Done), "HWCR allows it");
    assert_eq!(msrs.read(0x404), Err(GeneralProtection), "one bank");
    assert_eq!(msrs.write(0x179, 1), Err(GeneralProtection));
}

#[test]
fn what_is_locked_or_firmwares_stays() {
    let mut msrs = amd();
    for number in [0xc001_0114, 0xc001_1029, 0xc001_001a, 0x8b] {
        let before = value(&msrs, number);
        assert_eq!(msrs.write(number, u64::MAX), Ok(Answer::Done));
        assert_eq!(value(&msrs, number), before, "{number:#x}");
    }
    let mut msrs = intel();
    assert_eq!(msrs.write(0x3a, 5), Err(GeneralProtection), "locked");
    assert_eq!(msrs.write(0x1a0, 0), Ok(Answer::Done));
    assert_eq!(value(&msrs, 0x1a0), 0x1800);
    assert_eq!(msrs.write(0x10a, 0), Err(GeneralProtection));
    assert_eq!(msrs.write(0x1d9, 1 << 14), Ok(Answer::Done));
    assert_eq!(msrs.write(0x1d9, 1 << 16), Err(GeneralProtection));
}

#[test]
fn only_registers_of_the_guests_own_are_native() {
    let numbers = |msrs: &Msrs| msrs.native().collect::<std::vec::Vec<_>>();
    let switched = [
        0x174,
        0x175,
        0x176,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
    ];
    let mut expected: std::vec::Vec<_> = switched
        .iter()
        .flat_map(|number| [(*number, Direction::Read), (*number, Direction::Write)])
        .collect();
    let mut found = numbers(&amd());
    // This Zen has IBPB and no other control of speculation.
    expected.push((0x49, Direction::Write));
    found.sort_by_key(|(number, direction)| (*number, *direction as u8));
    expected.sort_by_key(|(number, direction)| (*number, *direction as u8));
    assert_eq!(found, expected);
    let found = numbers(&intel());
    for command in [0x49, 0x10b] {
        assert!(found.contains(&(command, Direction::Write)) && !found.contains(&(command, Direction::Read)));
    }
    assert!(found.contains(&(0x48, Direction::Read)) && found.contains(&(0x48, Direction::Write)));
    let native = Native { speculation: false, tsc_aux: false, ..facts(1, 0).native };
    let msrs = Msrs::new(&Table::new(&skylake, &Facts { native, ..facts(1, 0) }));
    assert_eq!(msrs.read(0x48), Err(GeneralProtection));
    assert_eq!(msrs.read(0xc000_0103), Err(GeneralProtection));
    assert!(numbers(&msrs).iter().all(|(number, _)| *number != 0x48 && *number != 0xc000_0103));
}

#[test]
fn speculation_controls_that_the_cpu_lacks_are_refused() {
    let mut msrs = intel();
    assert_eq!(msrs.write(0x48, 7), Ok(Answer::Ask(Owner::Native(0x48))), "IBRS, STIBP, SSBD");
    assert_eq!(msrs.write(0x48, 1 << 10), Err(GeneralProtection), "leaf 7.2 has no BHI_CTRL");
    assert_eq!(msrs.write(0x48, 1 << 63), Err(GeneralProtection));
}
