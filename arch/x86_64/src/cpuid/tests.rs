//! What becomes of a server CPU of each maker, and of a CPU that claims to have everything.

use super::*;
use crate::control::{efer, xcr0};

const HZ: u64 = 2_400_000_000;

pub(crate) fn facts(vcpus: u32, vcpu: u32) -> Facts {
    Facts {
        vcpus,
        vcpu,
        hypervisor_leaf: false,
        tsc_hz: HZ,
        xcr0: u64::MAX,
        address_bits: 48,
        native: Native { tsc_aux: true, invpcid: true, xsaves: false, user_wait: false, speculation: true },
    }
}

fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

fn xsave(subleaf: u32, components: u32) -> Leaf {
    match subleaf {
        0 => leaf(components, 0xa88, 0xa88, 0),
        1 => leaf(0xf, 0x300, 0x1f00, 0),
        2 => leaf(0x100, 0x240, 0, 0),
        5 => leaf(0x40, 0x440, 0, 0),
        6 => leaf(0x200, 0x480, 2, 0),
        7 => leaf(0x400, 0x680, 2, 0),
        8 => leaf(0x80, 0, 1, 0),
        9 => leaf(8, 0xa80, 0, 0),
        _ => leaf(0, 0, 0, 0),
    }
}

/// A Zen: 8 cores with 2 threads each.
pub(crate) fn zen(number: u32, subleaf: u32) -> Leaf {
    match (number, subleaf) {
        (0, _) => leaf(0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (1, _) => leaf(0x0080_0f12, 0x0310_0800, 0x7ed8_320b, 0x178b_fbff),
        (7, 0) => leaf(0, 0x209c_01a9, 0, 0),
        (0xd, _) => xsave(subleaf, 7),
        (0x8000_0000, _) => leaf(0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (0x8000_0001, _) => leaf(0x0080_0f12, 0x4000_0000, 0x35c2_33ff, 0x2fd3_fbff),
        (0x8000_0002, _) => leaf(0x2044_4d41, 0, 0, 0),
        (0x8000_0007, _) => leaf(0, 0x1b, 0, 0x6799),
        (0x8000_0008, _) => leaf(0x0000_3030, 0x1007, 0x400f, 0),
        (0x8000_000a, _) => leaf(1, 0x8000, 0, 0x1_bcff),
        (0x8000_001d, 0) => leaf(0x4121, 0x01c0_003f, 0x3f, 0),
        (0x8000_001d, 1) => leaf(0x4143, 0x01c0_003f, 0x3ff, 2),
        (0x8000_001d, 2) => leaf(0x1_c163, 0x03c0_003f, 0x1fff, 1),
        (0x8000_001e, _) => leaf(3, 0x101, 0x300, 0),
        _ => Leaf::default(),
    }
}

/// A Skylake server: 20 cores.
pub(crate) fn skylake(number: u32, subleaf: u32) -> Leaf {
    match (number, subleaf) {
        (0, _) => leaf(0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        (1, _) => leaf(0x0005_0654, 0x0020_0800, 0x7ffe_fbff, 0xbfeb_fbff),
        (2, _) => leaf(0x7603_6301, 0x00f0_b5ff, 0, 0x00c3_0000),
        (4, 0) => leaf(0x7c00_4121, 0x01c0_003f, 0x3f, 0),
        (4, 1) => leaf(0x7c00_4143, 0x03c0_003f, 0x3ff, 0),
        (4, 2) => leaf(0x7c0f_c163, 0x0280_003f, 0x6fff, 4),
        (7, 0) => leaf(0, 0xd39f_fffb, 0x18, 0xbc00_0400),
        (0xa, _) => leaf(0x0730_0404, 0, 0, 0x603),
        (0xd, _) => xsave(subleaf, 0x2ff),
        (0x15, _) => leaf(2, 200, 0, 0),
        (0x16, _) => leaf(2400, 3700, 100, 0),
        (0x8000_0000, _) => leaf(0x8000_0008, 0, 0, 0),
        (0x8000_0001, _) => leaf(0, 0, 0x121, 0x2c10_0800),
        (0x8000_0006, _) => leaf(0, 0, 0x0100_6040, 0),
        (0x8000_0007, _) => leaf(0, 0, 0, 0x100),
        (0x8000_0008, _) => leaf(0x302e, 0, 0, 0),
        _ => Leaf::default(),
    }
}

fn read(table: &Table, number: u32, subleaf: u32) -> Leaf {
    table.read(number, subleaf, &Live { apic: true, ..Live::default() })
}

#[test]
fn what_we_do_not_serve_is_not_offered() {
    let everything = |number: u32, _| match number {
        0 => leaf(0x20, 0x756e_6547, 0, 0),
        0x8000_0000 => leaf(0x8000_0028, 0, 0, 0),
        _ => leaf(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    };
    let table = Table::new(&everything, &facts(1, 0));
    let features = read(&table, 1, 0);
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT, SDBG, xTPR, PDCM, DCA, hypervisor.
    for bit in [2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18, 31] {
        assert_eq!(features.ecx >> bit & 1, 0, "leaf 1, ECX {bit}");
    }
    // PSN, DS, ACPI, HTT with one CPU, TM, PBE.
    for bit in [18, 21, 22, 28, 29, 31] {
        assert_eq!(features.edx >> bit & 1, 0, "leaf 1, EDX {bit}");
    }
    let structured = read(&table, 7, 0);
    for bit in [2, 12, 14, 15, 22, 25] {
        assert_eq!(structured.ebx >> bit & 1, 0, "SGX, RDT, MPX, PT: leaf 7, EBX {bit}");
    }
    for bit in [4, 7, 13, 16, 23, 24, 29, 30, 31] {
        assert_eq!(structured.ecx >> bit & 1, 0, "CET, LA57, key locker: leaf 7, ECX {bit}");
    }
    for bit in [5, 15, 18, 19, 20, 22, 24, 25, 30] {
        assert_eq!(structured.edx >> bit & 1, 0, "hybrid, LBR, AMX: leaf 7, EDX {bit}");
    }
    let extended = read(&table, 0x8000_0001, 0);
    for bit in [2, 3, 4, 10, 12, 13, 15, 17, 19, 23, 24, 26, 27, 28, 29] {
        assert_eq!(
            extended.ecx >> bit & 1,
            0,
            "SVM, CR8 by MOV CR0, IBS, PMU, MWAITX: leaf 8000_0001, ECX {bit}"
        );
    }
    for number in [
        3, 5, 8, 9, 0xa, 0xc, 0xe, 0xf, 0x10, 0x11, 0x12, 0x13, 0x14, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c,
        0x1d, 0x1e,
    ] {
        assert_eq!(read(&table, number, 0), Leaf::default(), "leaf {number:#x}");
    }
    for number in [0x8000_000a, 0x8000_001b, 0x8000_001f, 0x8000_0020] {
        assert_eq!(read(&table, number, 0), Leaf::default(), "leaf {number:#x}");
    }
}

#[test]
fn the_apic_and_its_timer_are_always_there() {
    for host in [zen, skylake] {
        let table = Table::new(&host, &facts(2, 1));
        let features = read(&table, 1, 0);
        assert_ne!(features.ecx & 1 << 21, 0, "x2APIC");
        assert_ne!(features.ecx & 1 << 24, 0, "TSC deadline");
        assert_ne!(features.edx & 1 << 9, 0);
        assert_eq!(read(&table, 6, 0), leaf(4, 0, 0, 0), "ARAT");
        let off = table.read(1, 0, &Live::default());
        assert_eq!(off.edx & 1 << 9, 0, "switched off in IA32_APIC_BASE");
        assert_eq!(read(&table, 0x8000_0007, 0), leaf(0, 0, 0, 0x100), "invariant TSC and no more");
    }
    let off = Table::new(&zen, &facts(1, 0)).read(0x8000_0001, 0, &Live::default());
    assert_eq!(off.edx & 1 << 9, 0);
}

#[test]
fn the_topology_is_one_socket_of_cores() {
    let table = Table::new(&zen, &facts(6, 5));
    assert_eq!(read(&table, 0, 0).eax, 0xd);
    let features = read(&table, 1, 0);
    assert_eq!((features.ebx >> 16, features.edx >> 28 & 1), (0x0508, 1), "APIC id 5, 8 places, HTT");
    assert_eq!(read(&table, 0xb, 0), leaf(0, 1, 0x100, 5));
    assert_eq!(read(&table, 0xb, 1), leaf(3, 6, 0x201, 5));
    assert_eq!(read(&table, 0xb, 2), leaf(0, 0, 2, 5), "no third level, but the id");
    assert_eq!(read(&table, 0x8000_0008, 0).ecx, 0x3005);
    assert_eq!(read(&table, 0x8000_001d, 1).eax, 0x143, "level 2 is the core's own");
    assert_eq!(read(&table, 0x8000_001d, 2).eax, 0x1_c163, "level 3 is for 8 places");
    assert_eq!(read(&table, 0x8000_001d, 3), Leaf::default());
    assert_eq!(read(&table, 0x8000_001e, 0), leaf(5, 5, 0, 0));
    assert_ne!(read(&table, 0x8000_0001, 0).ecx & 2, 0, "CMP_LEGACY");
    let table = Table::new(&skylake, &facts(4, 3));
    assert_eq!(read(&table, 4, 0).eax, 0x0c00_0121);
    assert_eq!(read(&table, 4, 2).eax, 0x0c00_c163);
    assert_eq!(read(&table, 4, 3), Leaf::default());
    assert_eq!(read(&table, 0xb, 1), leaf(2, 4, 0x201, 3));
}

#[test]
fn one_cpu_alone_has_no_siblings() {
    let table = Table::new(&zen, &facts(1, 0));
    assert_eq!(read(&table, 0xb, 1), leaf(0, 1, 0x201, 0));
    assert_eq!(read(&table, 0x8000_0008, 0).ecx, 0);
    assert_eq!(read(&table, 0x8000_0001, 0).ecx & 2, 0, "no CMP_LEGACY");
    assert_eq!(read(&table, 1, 0).ebx >> 16, 1);
}

#[test]
fn the_guests_own_registers_show() {
    let table = Table::new(&skylake, &facts(1, 0));
    let live = Live { cr4: cr4::OSXSAVE | cr4::PKE, xcr0: 7, apic: true };
    assert_eq!(read(&table, 1, 0).ecx & features::OSXSAVE, 0, "the host's does not");
    assert_ne!(table.read(1, 0, &live).ecx & features::OSXSAVE, 0);
    assert_eq!(read(&table, 7, 0).ecx & features::OSPKE, 0);
    assert_ne!(table.read(7, 0, &live).ecx & features::OSPKE, 0);
}

#[test]
fn the_xsave_area_holds_what_is_switched() {
    let table = Table::new(&skylake, &facts(1, 0));
    let size = |xcr0, subleaf| table.read(0xd, subleaf, &Live { xcr0, ..Live::default() }).ebx;
    // MPX (bits 3 and 4) and processor trace (8) are not offered.
    assert_eq!(read(&table, 0xd, 0).eax, 0x2e7);
    assert_eq!(read(&table, 0xd, 0).ecx, 0xa88);
    assert_eq!([1, 3, 7, 0xe7, 0x2e7].map(|xcr0| size(xcr0, 0)), [576, 576, 0x340, 0xa80, 0xa88]);
    assert_eq!([3, 7, 0xe7, 0x203].map(|xcr0| size(xcr0, 1)), [576, 0x340, 0x340 + 0x640, 584]);
    assert_eq!(read(&table, 0xd, 1).eax, 7, "no XSAVES");
    assert_eq!(read(&table, 0xd, 6), leaf(0x200, 0x480, 2, 0));
    for subleaf in [3, 4, 8, 10, 62] {
        assert_eq!(read(&table, 0xd, subleaf), Leaf::default(), "component {subleaf}");
    }
    let saves = Facts { native: Native { xsaves: true, ..facts(1, 0).native }, ..facts(1, 0) };
    assert_eq!(read(&Table::new(&skylake, &saves), 0xd, 1), leaf(0xf, 576, 0, 0));
}

#[test]
fn state_that_is_not_switched_takes_its_instructions_along() {
    let without = |xcr0| Table::new(&skylake, &Facts { xcr0, ..facts(1, 0) });
    let no_avx512 = without(7);
    assert_eq!(read(&no_avx512, 7, 0).ebx & features::LEAF_7_EBX_AVX512, 0);
    assert_ne!(read(&no_avx512, 7, 0).ebx & 1 << 5, 0, "AVX2 stays");
    assert_eq!(read(&no_avx512, 7, 0).ecx & features::PKU, 0);
    assert_eq!(without(0x2e3).offer().xcr0, xcr0::X87 | xcr0::SSE | xcr0::PKRU, "no AVX-512 without AVX");
    let nothing = without(0);
    let features = read(&nothing, 1, 0).ecx;
    assert_eq!(features & (1 << 26 | 1 << 28 | 1 << 12 | 1 << 29), 0);
    assert_eq!(nothing.offer().cr4 & cr4::OSXSAVE, 0);
    assert_eq!(read(&nothing, 0xd, 0), Leaf::default());
}

#[test]
fn the_clock_is_told_as_it_was_calibrated() {
    let table = Table::new(&skylake, &facts(1, 0));
    assert_eq!(read(&table, 0x15, 0), leaf(5, 12, 1_000_000_000, 0), "the crystal is the APIC timer's");
    assert_eq!(read(&table, 0x16, 0), leaf(2400, 2400, 100, 0));
    let fast = Table::new(&skylake, &Facts { tsc_hz: 5_000_000_000, ..facts(1, 0) });
    assert_eq!(read(&fast, 0x15, 0), leaf(1, 5, 1_000_000_000, 0));
    for tsc_hz in [0, 1, 999_999, u64::MAX] {
        let _ = Table::new(&skylake, &Facts { tsc_hz, ..facts(1, 0) });
    }
    for tsc_hz in [1_996_249_000, 2_000_100_000, 2_593_907_123, 2_999_999_999, 3_700_012_345, 5_123_456_789] {
        let odd = read(&Table::new(&skylake, &Facts { tsc_hz, ..facts(1, 0) }), 0x15, 0);
        assert!(odd.ebx.checked_mul(1_000_000).is_some(), "Linux multiplies them in 32 bits");
        let told = u64::from(odd.ecx) * u64::from(odd.ebx) / u64::from(odd.eax);
        assert!(told.abs_diff(tsc_hz) * 8000 < tsc_hz, "{told} for {tsc_hz}");
    }
    assert_eq!(read(&Table::new(&zen, &facts(1, 0)), 0x15, 0), Leaf::default());
}

#[test]
fn the_hypervisor_shows_only_where_it_is_wanted() {
    let wanted = Facts { hypervisor_leaf: true, ..facts(1, 0) };
    let table = Table::new(&zen, &wanted);
    assert_ne!(read(&table, 1, 0).ecx >> 31, 0);
    let Leaf { eax, ebx, ecx, edx } = read(&table, 0x4000_0000, 0);
    assert_eq!(eax, 0x4000_0000);
    let name: Vec<u8, 12> = [ebx, ecx, edx].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!(name, b"Bulkhead\0\0\0\0");
    let table = Table::new(&zen, &facts(1, 0));
    assert_eq!(read(&table, 1, 0).ecx >> 31, 0);
    assert_eq!(read(&table, 0x4000_0000, 0), Leaf::default());
}

#[test]
fn beyond_the_last_leaf_each_maker_has_its_way() {
    let intel = Table::new(&skylake, &facts(1, 0));
    for number in [0x17, 0x1f, 0x20, 0x4000_0000, 0x7fff_ffff, 0x8000_0009, u32::MAX] {
        assert_eq!(read(&intel, number, 0), read(&intel, 0x16, 0), "leaf {number:#x}");
    }
    assert_eq!(read(&intel, 9, 0), Leaf::default(), "inside, there are leaves of zeros");
    let amd = Table::new(&zen, &facts(1, 0));
    for number in [0xe, 0x20, 0x4000_0000, 0x8000_0022, u32::MAX] {
        assert_eq!(read(&amd, number, 0), Leaf::default(), "leaf {number:#x}");
    }
}

#[test]
fn control_registers_follow_the_leaves() {
    let offer = Table::new(&skylake, &facts(1, 0)).offer();
    for bit in [cr4::PAE, cr4::PCIDE, cr4::SMEP, cr4::SMAP, cr4::FSGSBASE, cr4::OSXSAVE, cr4::PKE, cr4::PCE] {
        assert_ne!(offer.cr4 & bit, 0, "{bit:#x}");
    }
    for bit in [cr4::LA57, cr4::VMXE, 1 << 14, 1 << 23] {
        assert_eq!(offer.cr4 & bit, 0, "{bit:#x}");
    }
    assert_eq!(offer.efer, efer::SCE | efer::LME | efer::LMA | efer::NXE);
    assert_eq!((offer.xcr0, offer.address_bits), (0x2e7, 46));
    let offer = Table::new(&zen, &Facts { address_bits: 40, ..facts(1, 0) }).offer();
    assert_eq!(offer.efer & efer::FFXSR, efer::FFXSR);
    assert_eq!(offer.efer & efer::SVME, 0);
    assert_eq!((offer.xcr0, offer.address_bits), (7, 40));
}

#[test]
fn every_leaf_has_room() {
    let mut all = facts(16, 15);
    all.hypervisor_leaf = true;
    let busy = |number: u32, subleaf: u32| match number {
        0 => leaf(0x1f, 0x756e_6547, 0, 0),
        4 => leaf(0x21, 0, 0, 0),
        _ => skylake(number, subleaf),
    };
    let table = Table::new(&busy, &all);
    assert!(table.entries.len() < ENTRIES, "{}", table.entries.len());
    assert_eq!(read(&table, 0x1f, 1), leaf(4, 16, 0x201, 15));
}
