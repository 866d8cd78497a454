use super::*;

/// Firmware's tables at the addresses where the test's memory happens to lie.
struct Firmware {
    tables: Vec<(&'static [u8; 4], Vec<u8>)>,
}

fn sealed(name: &[u8; 4], revision: u8, body: &[u8]) -> &'static [u8] {
    let mut table = Vec::new();
    table.extend_from_slice(name);
    table.extend_from_slice(&u32::try_from(36 + body.len()).unwrap().to_le_bytes());
    table.extend_from_slice(&[revision, 0]);
    table.extend_from_slice(b"OEMID OEMTABLE\0\0\0\0MADE\0\0\0\0");
    table.extend_from_slice(body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0u8.wrapping_sub(sum);
    Vec::leak(table)
}

fn address(table: &'static [u8]) -> u64 {
    table.as_ptr().expose_provenance() as u64
}

impl Firmware {
    #[expect(unsafe_code, reason = "the tables are leaked, at their own addresses")]
    fn tables(&self) -> Tables {
        let pointers: Vec<u8> = self
            .tables
            .iter()
            .flat_map(|(name, body)| address(sealed(name, 1, body)).to_le_bytes())
            .collect();
        let root = address(sealed(b"XSDT", 1, &pointers));
        let mut rsdp = b"RSD PTR \0OEMID \x02\0\0\0\0\x24\0\0\0".to_vec();
        rsdp.extend_from_slice(&root.to_le_bytes());
        rsdp.resize(36, 0);
        let sum = |bytes: &[u8]| 0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
        rsdp[8] = sum(&rsdp[..20]);
        rsdp[32] = sum(&rsdp);
        // SAFETY: leaked tables with right checksums.
        unsafe { Tables::at(address(Vec::leak(rsdp))) }.unwrap()
    }
}

/// A MADT with two CPUs, one of them in both forms, an I/O APIC, and COM1 moved.
fn madt() -> Vec<u8> {
    let mut body = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend([0, 8, 1, 4, 1, 0, 0, 0]);
    body.extend([0, 8, 2, 6, 0, 0, 0, 0]);
    body.extend([9, 16, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    body.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    body.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    body.extend([2, 10, 0, 4, 20, 0, 0, 0, 0xf, 0]);
    body
}

fn handover() -> Handover {
    Handover { ram: vec![0..0x9_f800, 0x10_0000..0x1000_0000], ..Handover::default() }
}

#[test]
fn cpus_controllers_and_wires_are_found() {
    let tables = Firmware { tables: vec![(b"APIC", madt())] }.tables();
    let machine = Machine::read(&handover(), &tables, 4, 254).unwrap();
    assert_eq!(machine.cpus, [4, 0], "the boot CPU first, nobody twice, no disabled one");
    assert_eq!(machine.unused_cpus, 1, "number 256 needs an x2APIC");
    assert_eq!(machine.io_apics, [IoApic { registers: 0xfec0_0000, first: 0 }]);
    assert_eq!(machine.local_apic, 0xfee0_0000);
    assert_eq!(machine.uart.registers, Register::Port(0x3f8));
    assert_eq!(machine.uart.wire, Some(Wire { number: 20, is_low: true, is_level: true }));
    assert_eq!(machine.trampoline, Some(0x9e), "the page that ends below 0x9f800");
    let machine = Machine::read(&handover(), &tables, 4, u32::MAX).unwrap();
    assert_eq!(machine.cpus, [4, 0, 256]);
}

#[test]
fn what_is_missing_is_named() {
    let none = Firmware { tables: vec![] }.tables();
    assert_eq!(Machine::read(&handover(), &none, 0, 254).err(), Some(MachineError::NoMadt));
    let tables = Firmware { tables: vec![(b"APIC", vec![0; 8])] }.tables();
    assert_eq!(Machine::read(&handover(), &tables, 0, 254).err(), Some(MachineError::NoIoApic));
    let empty = Handover::default();
    assert_eq!(Machine::read(&empty, &tables, 0, 254).err(), Some(MachineError::NoRam));
}

#[test]
fn ram_is_sorted_joined_and_cut() {
    let handover = Handover {
        ram: vec![
            0x1_0000_0000..0x1_8000_0000,
            0x20_0000..0x30_0800,
            0..0x9_fc00,
            0x8_0000..0x20_0000,
            0x7f_c000_0000..0x80_4000_0000,
        ],
        reserved: vec![0x18_0001..0x18_0002, 0..0x1000],
        ..Handover::default()
    };
    let (ram, unused) = ram(&handover);
    assert_eq!(
        ram,
        [
            0x10_0000..0x18_0000,
            0x18_1000..0x30_0000,
            0x1_0000_0000..0x1_8000_0000,
            0x7f_c000_0000..0x80_0000_0000
        ]
    );
    assert_eq!(unused, 0x4000_0000);
}

#[test]
fn a_redirected_console_is_used() {
    let mut spcr = vec![0, 0, 0, 0, 1, 8, 0, 1, 0xf8, 2, 0, 0, 0, 0, 0, 0];
    spcr.extend([3, 3, 0, 0, 0, 0]);
    spcr.resize(44, 0);
    let tables = Firmware { tables: vec![(b"APIC", madt()), (b"SPCR", spcr)] }.tables();
    let uart = Machine::read(&handover(), &tables, 0, 254).unwrap().uart;
    assert_eq!(uart.registers, Register::Port(0x2f8));
    assert_eq!(uart.wire, Some(Wire { number: 3, is_low: false, is_level: false }));
}

#[test]
fn a_fadt_of_the_first_version_tells_timer_and_power_off() {
    let mut fadt = vec![0; 80];
    fadt[12..16].copy_from_slice(&0xb2u32.to_le_bytes());
    fadt[16] = 0xf1;
    fadt[28..32].copy_from_slice(&0xb004u32.to_le_bytes());
    fadt[40..44].copy_from_slice(&0xb008u32.to_le_bytes());
    fadt[53] = 2;
    fadt[55] = 4;
    fadt[72] = 0x32;
    let tables = Firmware { tables: vec![(b"APIC", madt()), (b"FACP", fadt)] }.tables();
    let machine = Machine::read(&handover(), &tables, 0, 254).unwrap();
    assert_eq!(machine.pm_timer, Some(PmTimer { port: 0xb008, is_wide: false }));
    assert_eq!(machine.century, Some(0x32));
    let expected = Power {
        control: [Some(Register::Port(0xb004)), None],
        take_over: Some((0xb2, 0xf1)),
        ..Power::default()
    };
    assert_eq!(machine.power, expected);
}
