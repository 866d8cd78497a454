//! Machines that were made up: each test builds a tree and reads it.
#![expect(clippy::single_range_in_vec_init, reason = "one bank is a list of one range")]

extern crate alloc;

use super::*;
use alloc::string::ToString;
use alloc::vec;
use dtoolkit::ToPropertyValue;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

type Cells = alloc::vec::Vec<u32>;

const GIC: u32 = 1;
const OTHER_CONTROLLER: u32 = 2;

fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new(name).unwrap()
}

trait With {
    fn with(self, name: &str, value: impl ToPropertyValue) -> Self;
}

impl With for DeviceTreeNode {
    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        self.add_property(DeviceTreeProperty::new(name, value).unwrap());
        self
    }
}

fn cpu(affinity: u32) -> DeviceTreeNode {
    let name = alloc::format!("cpu@{affinity:x}");
    node(&name).with("device_type", "cpu").with("reg", affinity).with("enable-method", "psci")
}

fn memory(start: u32, bytes: u32) -> DeviceTreeNode {
    let name = alloc::format!("memory@{start:x}");
    node(&name).with("device_type", "memory").with("reg", [0_u32, start, 0, bytes])
}

fn uart(name: &str, base: u32, spi: u32) -> DeviceTreeNode {
    let both = &["arm,pl011", "arm,primecell"][..];
    node(name)
        .with("compatible", both)
        .with("reg", [0_u32, base, 0, 0x1000])
        .with("interrupts", [0_u32, spi, 4])
}

/// QEMU's `virt` with EL2 and `cpus` CPUs, as far as the reader looks at it.
fn virt(cpus: u32) -> DeviceTree {
    let mut all = node("cpus").with("#address-cells", 1_u32).with("#size-cells", 0_u32);
    (0..cpus).for_each(|affinity| all.add_child(cpu(affinity)));
    let timers: Cells = vec![1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4];
    let mut tree = DeviceTree::new();
    tree.root = node_root();
    for child in [
        node("chosen"),
        memory(0x4000_0000, 0x4000_0000),
        all,
        node("psci").with("compatible", "arm,psci-1.0").with("method", "smc"),
        node("timer").with("compatible", "arm,armv8-timer").with("interrupts", timers),
        node("intc@8000000")
            .with("compatible", "arm,gic-v3")
            .with("phandle", GIC)
            .with("#interrupt-cells", 3_u32)
            .with("interrupts", [1_u32, 9, 4])
            .with("reg", [0_u32, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x00f6_0000]),
        uart("pl011@9000000", 0x0900_0000, 1),
        node("pl031@9010000").with("compatible", "arm,pl031").with("reg", [0_u32, 0x0901_0000, 0, 0x1000]),
    ] {
        tree.root.add_child(child);
    }
    tree
}

fn node_root() -> DeviceTreeNode {
    DeviceTree::new()
        .root
        .with("interrupt-parent", GIC)
        .with("#address-cells", 2_u32)
        .with("#size-cells", 2_u32)
}

fn child<'t>(tree: &'t mut DeviceTree, name: &str) -> &'t mut DeviceTreeNode {
    tree.root.children_mut().find(|node| node.name().split('@').next() == name.split('@').next()).unwrap()
}

fn set(tree: &mut DeviceTree, name: &str, property: &str, value: impl ToPropertyValue) {
    let node = child(tree, name);
    node.remove_property(property);
    node.add_property(DeviceTreeProperty::new(property, value).unwrap());
}

fn error(tree: &DeviceTree) -> MachineError {
    Machine::read(&tree.to_dtb()).unwrap_err()
}

#[test]
fn a_qemu_machine_is_read() {
    let dtb = virt(4).to_dtb();
    let machine = Machine::read(&dtb).unwrap();
    assert_eq!(machine.ram, [0x4000_0000..0x8000_0000]);
    assert_eq!(machine.cpus, [0, 1, 2, 3]);
    assert_eq!(machine.unused_cpus, 0);
    assert_eq!(machine.conduit, Conduit::Smc);
    assert_eq!(machine.timers, Timers { physical_intid: 30, virtual_intid: 27, hypervisor_intid: 26 });
    assert_eq!(machine.gic.distributor, 0x0800_0000..0x0801_0000);
    assert_eq!(machine.gic.redistributors, [0x080a_0000..0x0900_0000]);
    assert_eq!((machine.gic.stride, machine.gic.maintenance_intid), (None, 25));
    assert_eq!(machine.uart, Some(Uart { registers: 0x0900_0000..0x0900_1000, intid: Some(33) }));
    assert_eq!(machine.rtc, Some(0x0901_0000..0x0901_1000));
    assert_eq!((machine.archive, machine.command_line), (None, ""));
    assert!(machine.reserved.is_empty());
}

#[test]
fn banks_are_sorted_and_neighbours_joined() {
    let mut tree = virt(1);
    tree.root.add_child(memory(0xc000_0000, 0x1000_0000));
    tree.root.add_child(memory(0x8000_0000, 0x1000_0000));
    let high = node("memory@880000000").with("device_type", "memory");
    tree.root.add_child(
        high.with("reg", [8_u32, 0x8000_0000, 0, 0x1000_0000, 0, 0x2000_0000, 0, 0x1000, 9, 0, 0, 0]),
    );
    let dtb = tree.to_dtb();
    let expected = [
        0x2000_0000..0x2000_1000,
        0x4000_0000..0x9000_0000,
        0xc000_0000..0xd000_0000,
        0x8_8000_0000..0x8_9000_0000,
    ];
    assert_eq!(Machine::read(&dtb).unwrap().ram, expected);
}

#[test]
fn numa_nodes_that_adjoin_are_one_bank() {
    let mut tree = virt(1);
    set(&mut tree, "memory@40000000", "numa-node-id", 0_u32);
    tree.root.add_child(memory(0x8000_0000, 0x4000_0000).with("numa-node-id", 1_u32));
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().ram, [0x4000_0000..0xc000_0000]);
}

#[test]
fn memory_that_is_missing_or_in_too_many_pieces_is_refused() {
    let mut tree = virt(1);
    set(&mut tree, "memory@40000000", "status", "disabled");
    assert_eq!(error(&tree), MachineError::NoRam);
    for bank in 0..17 {
        tree.root.add_child(memory(bank * 0x100_0000, 0x1000));
    }
    assert_eq!(error(&tree), MachineError::TooManyBanks);
}

#[test]
fn memory_beyond_all_addresses_is_refused() {
    let mut tree = virt(1);
    set(&mut tree, "memory@40000000", "reg", [u32::MAX; 4]);
    assert_eq!(error(&tree), MachineError::BadProperty { node: "memory", property: "reg" });
}

#[test]
fn both_kinds_of_reservation_count() {
    let mut tree = virt(1);
    tree.memory_reservations.push(MemoryReservation::new(0x4800_0000, 0x1000));
    let mut reserved = node("reserved-memory").with("#address-cells", 2_u32).with("#size-cells", 2_u32);
    reserved = reserved.with("ranges", [0_u8; 0]);
    reserved.add_child(
        node("firmware@7f000000").with("reg", [0_u32, 0x7f00_0000, 0, 0x10_0000]).with("no-map", [0_u8; 0]),
    );
    reserved.add_child(node("anywhere").with("size", [0_u32, 0x10_0000]));
    tree.root.add_child(reserved);
    let dtb = tree.to_dtb();
    let machine = Machine::read(&dtb).unwrap();
    assert_eq!(machine.reserved, [0x4800_0000..0x4800_1000, 0x7f00_0000..0x7f10_0000]);
    assert_eq!(machine.no_map, [0x7f00_0000..0x7f10_0000]);
}

#[test]
fn all_ram_is_mapped_but_what_nobody_may_map() {
    let mut tree = virt(1);
    tree.root.add_child(memory(0xc000_0800, 0x1000_0000));
    let mut reserved = node("reserved-memory").with("#address-cells", 2_u32).with("#size-cells", 2_u32);
    reserved = reserved.with("ranges", [0_u8; 0]);
    for (name, at, bytes) in [
        ("below", 0x3000_0000_u32, 0x1000_u32),
        ("secure", 0x5000_0800, 0x1000),
        ("end", 0xcfff_0000, 0x10_0000),
    ] {
        reserved.add_child(node(name).with("reg", [0, at, 0, bytes]).with("no-map", [0_u8; 0]));
    }
    reserved.add_child(node("used").with("reg", [0_u32, 0x6000_0000, 0, 0x1000]));
    tree.root.add_child(reserved);
    let dtb = tree.to_dtb();
    let mapped: alloc::vec::Vec<_> = Machine::read(&dtb).unwrap().mappable().collect();
    assert_eq!(
        mapped,
        [0x4000_0000..0x5000_0000, 0x5000_2000..0x8000_0000, 0xc000_1000..0xcfff_0000],
        "whole pages of each bank, less the whole pages that a hole touches"
    );
}

#[test]
fn too_many_reservations_are_refused_not_forgotten() {
    let mut tree = virt(1);
    for at in 0..33 {
        tree.memory_reservations.push(MemoryReservation::new(0x4000_0000 + at * 0x2000, 0x1000));
    }
    assert_eq!(error(&tree), MachineError::TooManyReservations);
}

#[test]
fn cpus_that_cannot_be_used_are_counted() {
    let mut tree = virt(18);
    let cpus = child(&mut tree, "cpus");
    cpus.add_child(cpu(0x100).with("status", "disabled"));
    let spinning = cpus.child_mut("cpu@1").unwrap();
    spinning.remove_property("enable-method");
    spinning.add_property(DeviceTreeProperty::new("enable-method", "spin-table").unwrap());
    let dtb = tree.to_dtb();
    let machine = Machine::read(&dtb).unwrap();
    assert_eq!((machine.cpus.len(), machine.unused_cpus), (MAX_CPUS, 3));
    assert_eq!(machine.cpus.get(..2), Some(&[0, 2][..]));
    assert_eq!(error(&virt(0)), MachineError::NoCpu);
}

#[test]
fn one_cpu_alone_needs_nobody_to_start_it() {
    // QEMU names no enable-method then.
    let mut tree = virt(1);
    child(&mut tree, "cpus").child_mut("cpu@0").unwrap().remove_property("enable-method");
    let dtb = tree.to_dtb();
    assert_eq!(Machine::read(&dtb).unwrap().cpus.as_slice(), [0]);
}

#[test]
fn affinities_of_two_cells_are_read_whole() {
    let mut tree = virt(0);
    let cpus = child(&mut tree, "cpus");
    cpus.remove_property("#address-cells");
    cpus.add_property(DeviceTreeProperty::new("#address-cells", 2_u32).unwrap());
    let far = node("cpu@100000200").with("device_type", "cpu").with("enable-method", "psci");
    cpus.add_child(far.with("reg", [1_u32, 0x200]));
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().cpus, [0x1_0000_0200]);
}

#[test]
fn the_conduit_is_what_firmware_says() {
    let mut tree = virt(1);
    set(&mut tree, "psci", "method", "hvc");
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().conduit, Conduit::Hvc);
    set(&mut tree, "psci", "method", "shout");
    assert_eq!(error(&tree), MachineError::BadProperty { node: "PSCI", property: "method" });
    set(&mut tree, "psci", "compatible", "arm,psci");
    assert_eq!(error(&tree), MachineError::NoPsci);
    tree.root.remove_child("psci");
    assert_eq!(error(&tree), MachineError::NoPsci);
}

#[test]
fn an_old_gic_and_no_gic_are_told_apart() {
    let mut tree = virt(1);
    set(&mut tree, "intc", "compatible", "arm,cortex-a15-gic");
    assert_eq!(error(&tree), MachineError::GicTooOld);
    tree.root.remove_child("intc@8000000");
    assert_eq!(error(&tree), MachineError::NoGic);
}

#[test]
fn a_machine_without_el2_is_told_by_its_missing_interrupts() {
    let mut tree = virt(1);
    child(&mut tree, "intc").remove_property("interrupts");
    assert_eq!(error(&tree), MachineError::NoHypervisorInterrupt(HypervisorInterrupt::Maintenance));
    let mut tree = virt(1);
    set(&mut tree, "timer", "interrupts", [1_u32, 13, 4, 1, 14, 4, 1, 11, 4]);
    assert_eq!(error(&tree), MachineError::NoHypervisorInterrupt(HypervisorInterrupt::Timer));
    tree.root.remove_child("timer");
    assert_eq!(error(&tree), MachineError::NoTimer);
}

#[test]
fn several_redistributor_regions_and_a_stride_are_kept() {
    let mut tree = virt(1);
    set(&mut tree, "intc", "#redistributor-regions", 2_u32);
    set(&mut tree, "intc", "redistributor-stride", [0_u32, 0x4_0000]);
    let two: Cells = vec![0, 0x100, 0, 0x100, 0, 0x1000, 0, 0x100, 1, 0x2000, 0, 0x100];
    set(&mut tree, "intc", "reg", two);
    let dtb = tree.to_dtb();
    let gic = Machine::read(&dtb).unwrap().gic;
    assert_eq!(gic.redistributors, [0x1000..0x1100, 0x1_0000_2000..0x1_0000_2100]);
    assert_eq!(gic.stride, Some(0x4_0000));
    set(&mut tree, "intc", "#redistributor-regions", 3_u32);
    assert_eq!(error(&tree), MachineError::BadProperty { node: "GIC", property: "reg" });
}

#[test]
fn timers_are_found_by_name_where_they_have_names() {
    let mut tree = virt(1);
    set(&mut tree, "timer", "interrupt-names", &["phys", "virt", "hyp-phys", "hyp-virt"][..]);
    set(&mut tree, "timer", "interrupts", vec![1_u32, 14, 4, 1, 11, 4, 1, 10, 4, 1, 12, 4]);
    let expected = Timers { physical_intid: 30, virtual_intid: 27, hypervisor_intid: 26 };
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().timers, expected);
}

#[test]
fn interrupts_of_four_cells_and_extended_ones_are_read() {
    let mut tree = virt(1);
    set(&mut tree, "intc", "#interrupt-cells", 4_u32);
    set(&mut tree, "intc", "interrupts", [1_u32, 9, 4, 0]);
    set(&mut tree, "timer", "interrupts", vec![1_u32, 13, 4, 0, 1, 14, 4, 0, 1, 11, 4, 0, 1, 10, 4, 0]);
    set(&mut tree, "pl011", "interrupts-extended", [GIC, 0, 5, 4, 0]);
    let dtb = tree.to_dtb();
    let machine = Machine::read(&dtb).unwrap();
    assert_eq!((machine.timers.hypervisor_intid, machine.gic.maintenance_intid), (26, 25));
    assert_eq!(machine.uart.unwrap().intid, Some(37));
}

#[test]
fn a_uart_that_is_wired_to_another_controller_has_no_interrupt() {
    let mut tree = virt(1);
    set(&mut tree, "pl011", "interrupt-parent", OTHER_CONTROLLER);
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().uart.unwrap().intid, None);
}

#[test]
fn the_console_is_the_one_that_is_chosen() {
    let mut tree = virt(1);
    tree.root.add_child(uart("serial@a000000", 0x0a00_0000, 7));
    tree.root.add_child(node("serial@b000000").with("compatible", "ns16550a"));
    tree.root
        .add_child(node("aliases").with("serial3", "/serial@a000000").with("serial4", "/serial@b000000"));
    let base =
        |tree: &DeviceTree| Machine::read(&tree.to_dtb()).unwrap().uart.map(|uart| uart.registers.start);
    assert_eq!(base(&tree), Some(0x0900_0000));
    for (path, expected) in [
        ("/serial@a000000", Some(0x0a00_0000)),
        ("serial3:115200n8", Some(0x0a00_0000)),
        ("serial4", None),
        ("serial9", Some(0x0900_0000)),
    ] {
        set(&mut tree, "chosen", "stdout-path", path);
        assert_eq!(base(&tree), expected, "{path}");
    }
}

#[test]
fn addresses_go_through_the_buses_above() {
    let mut tree = virt(1);
    tree.root.remove_child("pl011@9000000");
    let mut inner = node("bus@20000000").with("#address-cells", 1_u32).with("#size-cells", 1_u32);
    inner = inner.with("ranges", [0_u32, 0x2000_0000, 0x10_0000]);
    let device = node("serial@1000").with("compatible", "arm,pl011").with("reg", [0x1000_u32, 0x1000]);
    inner.add_child(device.with("interrupts", [0_u32, 1, 4]));
    let mut soc = node("soc").with("#address-cells", 1_u32).with("#size-cells", 1_u32);
    soc = soc.with("ranges", [0x2000_0000_u32, 8, 0x2000_0000, 0x1000_0000]);
    soc.add_child(inner);
    tree.root.add_child(soc);
    let uart = |tree: &DeviceTree| Machine::read(&tree.to_dtb()).unwrap().uart;
    let expected = Uart { registers: 0x8_2000_1000..0x8_2000_2000, intid: Some(33) };
    assert_eq!(uart(&tree), Some(expected));
    set(&mut tree, "soc", "ranges", [0_u8; 0]);
    assert_eq!(uart(&tree).unwrap().registers.start, 0x2000_1000, "identity");
    child(&mut tree, "soc").remove_property("ranges");
    assert_eq!(uart(&tree), None, "no way to the CPU");
}

#[test]
fn what_is_below_a_disabled_bus_is_not_used() {
    let mut tree = virt(1);
    tree.root.remove_child("pl011@9000000");
    let mut soc = node("soc").with("ranges", [0_u8; 0]).with("status", "disabled");
    soc.add_child(uart("pl011@9000000", 0x0900_0000, 1));
    tree.root.add_child(soc);
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().uart, None);
}

#[test]
fn the_archive_has_addresses_of_32_or_64_bits() {
    let mut tree = virt(1);
    set(&mut tree, "chosen", "linux,initrd-start", 0x4800_0000_u32);
    assert_eq!(error(&tree), MachineError::BadProperty { node: "chosen", property: "linux,initrd-end" });
    set(&mut tree, "chosen", "linux,initrd-end", 0x4810_0000_u32);
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().archive, Some(0x4800_0000..0x4810_0000));
    set(&mut tree, "chosen", "linux,initrd-end", 0x8_0000_0000_u64);
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().archive, Some(0x4800_0000..0x8_0000_0000));
    set(&mut tree, "chosen", "linux,initrd-end", 0_u64);
    assert_eq!(error(&tree), MachineError::BadProperty { node: "chosen", property: "linux,initrd-end" });
}

#[test]
fn the_command_line_is_handed_through() {
    let mut tree = virt(1);
    set(&mut tree, "chosen", "bootargs", "log=debug");
    assert_eq!(Machine::read(&tree.to_dtb()).unwrap().command_line, "log=debug");
}

#[test]
fn damage_is_refused_in_words() {
    assert_eq!(Machine::read(&[]).unwrap_err(), MachineError::NotADeviceTree);
    let dtb = virt(1).to_dtb();
    assert_eq!(Machine::read(&dtb[..dtb.len() - 1]).unwrap_err(), MachineError::NotADeviceTree);
    assert_eq!(
        MachineError::NoHypervisorInterrupt(HypervisorInterrupt::Maintenance).to_string(),
        "the GIC has no maintenance interrupt: no EL2 here (QEMU: -M virt,virtualization=on)"
    );
}

#[test]
fn the_header_tells_the_size() {
    let dtb = virt(1).to_dtb();
    assert_eq!(device_tree_bytes(dtb[..8].try_into().unwrap()), Some(dtb.len()));
    assert_eq!(device_tree_bytes([0; 8]), None);
}
