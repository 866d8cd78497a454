//! The device tree of an Arm guest: the machine of `vdev::virt`, described as QEMU describes its own `virt`.
//!
//! It relies on `vdev` for addresses and interrupt numbers. It names only what Bulkhead offers, with the node names,
//! compatible strings and properties that QEMU's tree has: a strict subset, so that an operating system finds nothing new.
//! Bindings are Linux's, Documentation/devicetree/bindings.

use crate::placement::Extent;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_vdev::{Gpa, virt};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// One guest's machine.
///
/// The tree's size depends on what there is, not on the addresses: to place the tree, make it once with any address for
/// the initial RAM disk, then again with the right one.
#[derive(Clone, Copy, Debug)]
pub struct GuestTree<'a> {
    /// How many virtual CPUs, with affinity level 0 from 0.
    pub vcpus: u32,
    /// The banks of RAM.
    pub ram: &'a [Extent],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Where the initial RAM disk is, if there is one.
    pub initrd: Option<Extent>,
    /// Entropy for the guest's random numbers, if the machine has some to give.
    pub rng_seed: Option<[u8; 32]>,
    /// Entropy for the place of the guest's kernel in its address space.
    pub kaslr_seed: Option<u64>,
    /// Whether there is the UART, which is then the console.
    pub uart: bool,
    /// Whether there is the real-time clock.
    pub rtc: bool,
}

/// Node handles, the values that QEMU uses.
const CLOCK: u32 = 0x8000;
const INTERRUPT_CONTROLLER: u32 = 0x8003;

/// Interrupt specifiers (bindings/interrupt-controller/arm,gic-v3.yaml): what comes first, and the level-high flag.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// GIC interrupt numbers of the first private and the first shared interrupt.
const FIRST_PRIVATE: u32 = 16;
const FIRST_SHARED: u32 = 32;

/// The EL3 and EL2 timers' private interrupts (Arm BSA 3.8.1). No guest has these timers; the binding has a place for them.
const SECURE_TIMER_INTID: u32 = 29;
const HYPERVISOR_TIMER_INTID: u32 = 26;

/// Frequency of the clock that feeds the UART: QEMU's 24 MHz.
const CLOCK_HZ: u32 = 24_000_000;
const GICD_BYTES: u64 = 0x1_0000;
/// Two frames of 64 KiB for each vCPU.
const GICR_BYTES_PER_VCPU: u64 = 0x2_0000;
const DEVICE_BYTES: u64 = 0x1000;

impl GuestTree<'_> {
    /// The flattened tree.
    #[must_use]
    pub fn to_dtb(&self) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        set(&mut tree.root, "interrupt-parent", INTERRUPT_CONTROLLER);
        set(&mut tree.root, "model", "linux,dummy-virt");
        set(&mut tree.root, "#size-cells", 2_u32);
        set(&mut tree.root, "#address-cells", 2_u32);
        set(&mut tree.root, "compatible", "linux,dummy-virt");
        for child in
            [self.chosen(), self.memory(), self.cpus(), psci(), timer(), self.interrupt_controller(), clock()]
        {
            tree.root.add_child(child);
        }
        if self.uart {
            tree.root.add_child(uart());
            tree.root.add_child(aliases());
        }
        if self.rtc {
            tree.root.add_child(rtc());
        }
        tree.to_dtb()
    }

    fn chosen(&self) -> DeviceTreeNode {
        let mut node = node("chosen");
        set(&mut node, "bootargs", self.command_line);
        if self.uart {
            set(&mut node, "stdout-path", format!("/{}", uart_name()));
        }
        if let Some(initrd) = self.initrd {
            set(&mut node, "linux,initrd-start", initrd.start.0);
            set(&mut node, "linux,initrd-end", initrd.end().0);
        }
        if let Some(seed) = self.rng_seed {
            set(&mut node, "rng-seed", seed);
        }
        if let Some(seed) = self.kaslr_seed {
            set(&mut node, "kaslr-seed", seed);
        }
        node
    }

    fn memory(&self) -> DeviceTreeNode {
        let start = self.ram.first().map_or(virt::RAM, |bank| bank.start);
        let mut node = device_node("memory", start);
        set(&mut node, "device_type", "memory");
        let banks: Vec<(Gpa, u64)> = self.ram.iter().map(|bank| (bank.start, bank.bytes)).collect();
        set(&mut node, "reg", reg(&banks));
        node
    }

    fn cpus(&self) -> DeviceTreeNode {
        let mut cpus = node("cpus");
        set(&mut cpus, "#size-cells", 0_u32);
        set(&mut cpus, "#address-cells", 1_u32);
        for affinity in 0..self.vcpus {
            let mut cpu = node(format!("cpu@{affinity:x}"));
            set(&mut cpu, "device_type", "cpu");
            set(&mut cpu, "compatible", "arm,armv8");
            set(&mut cpu, "enable-method", "psci");
            set(&mut cpu, "reg", affinity);
            cpus.add_child(cpu);
        }
        cpus
    }

    fn interrupt_controller(&self) -> DeviceTreeNode {
        let redistributors = GICR_BYTES_PER_VCPU.saturating_mul(self.vcpus.into());
        let mut node = device_node("intc", virt::GICD);
        set(&mut node, "phandle", INTERRUPT_CONTROLLER);
        set(&mut node, "compatible", "arm,gic-v3");
        set(&mut node, "reg", reg(&[(virt::GICD, GICD_BYTES), (virt::GICR, redistributors)]));
        set(&mut node, "#redistributor-regions", 1_u32);
        set(&mut node, "interrupt-controller", [0_u8; 0]);
        set(&mut node, "#interrupt-cells", 3_u32);
        // It could have children (an ITS), so it is a bus as well.
        set(&mut node, "#address-cells", 2_u32);
        set(&mut node, "#size-cells", 2_u32);
        set(&mut node, "ranges", [0_u8; 0]);
        node
    }
}

fn psci() -> DeviceTreeNode {
    let mut node = node("psci");
    set(&mut node, "compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]);
    set(&mut node, "method", "hvc");
    node
}

/// The generic timer: secure, physical, virtual, hypervisor, in the binding's order.
fn timer() -> DeviceTreeNode {
    let specifiers: Vec<u32> =
        [SECURE_TIMER_INTID, virt::PHYSICAL_TIMER_INTID, virt::VIRTUAL_TIMER_INTID, HYPERVISOR_TIMER_INTID]
            .iter()
            .flat_map(|intid| [PRIVATE, intid - FIRST_PRIVATE, LEVEL_HIGH])
            .collect();
    let mut node = node("timer");
    set(&mut node, "compatible", &["arm,armv8-timer", "arm,armv7-timer"][..]);
    set(&mut node, "interrupts", specifiers);
    set(&mut node, "always-on", [0_u8; 0]);
    node
}

fn clock() -> DeviceTreeNode {
    let mut node = node("apb-pclk");
    set(&mut node, "phandle", CLOCK);
    set(&mut node, "compatible", "fixed-clock");
    set(&mut node, "#clock-cells", 0_u32);
    set(&mut node, "clock-frequency", CLOCK_HZ);
    set(&mut node, "clock-output-names", "clk24mhz");
    node
}

fn uart_name() -> String {
    format!("pl011@{:x}", virt::UART.0)
}

fn aliases() -> DeviceTreeNode {
    let mut node = node("aliases");
    set(&mut node, "serial0", format!("/{}", uart_name()));
    node
}

fn uart() -> DeviceTreeNode {
    let mut node = primecell("pl011", virt::UART, virt::UART_INTID);
    set(&mut node, "compatible", &["arm,pl011", "arm,primecell"][..]);
    set(&mut node, "clock-names", &["uartclk", "apb_pclk"][..]);
    set(&mut node, "clocks", [CLOCK, CLOCK]);
    node
}

fn rtc() -> DeviceTreeNode {
    let mut node = primecell("pl031", virt::RTC, virt::RTC_INTID);
    set(&mut node, "compatible", &["arm,pl031", "arm,primecell"][..]);
    set(&mut node, "clock-names", "apb_pclk");
    set(&mut node, "clocks", CLOCK);
    node
}

/// What the Arm peripherals have in common: one page of registers and one level-triggered shared interrupt.
fn primecell(name: &str, base: Gpa, intid: u32) -> DeviceTreeNode {
    let mut node = device_node(name, base);
    set(&mut node, "reg", reg(&[(base, DEVICE_BYTES)]));
    set(&mut node, "interrupts", [SHARED, intid - FIRST_SHARED, LEVEL_HIGH]);
    node
}

fn node(name: impl Into<String>) -> DeviceTreeNode {
    DeviceTreeNode::new(name).expect("node names are written in this file")
}

fn device_node(name: &str, base: Gpa) -> DeviceTreeNode {
    node(format!("{name}@{:x}", base.0))
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    let property = DeviceTreeProperty::new(name, value).expect("property names are written in this file");
    node.add_property(property);
}

/// A `reg` property of two address cells and two size cells.
fn reg(ranges: &[(Gpa, u64)]) -> Vec<u8> {
    ranges.iter().flat_map(|(start, bytes)| [start.0, *bytes]).flat_map(u64::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::{Fdt, FdtNode};
    use dtoolkit::standard::NodeStandard;
    use dtoolkit::{Node, Property};
    use std::string::ToString;

    const RAM: [Extent; 1] = [Extent { start: virt::RAM, bytes: 256 << 20 }];
    const GUEST: GuestTree<'static> = GuestTree {
        vcpus: 4,
        ram: &RAM,
        command_line: "console=ttyAMA0",
        initrd: None,
        rng_seed: None,
        kaslr_seed: None,
        uart: true,
        rtc: true,
    };

    fn cells(node: FdtNode<'_>, name: &str) -> Vec<u32> {
        node.property(name).unwrap().value_as().unwrap()
    }

    fn text(node: FdtNode<'_>, name: &str) -> String {
        node.property(name).unwrap().value_as::<&str>().unwrap().to_string()
    }

    fn names(node: FdtNode<'_>) -> Vec<String> {
        node.children().map(|child| child.name().to_string()).collect()
    }

    #[test]
    fn each_vcpu_has_a_node_that_is_started_by_psci() {
        let dtb = GuestTree { vcpus: 16, ..GUEST }.to_dtb();
        let cpus = Fdt::new(&dtb).unwrap().find_node("/cpus").unwrap();
        assert_eq!(cpus.children().count(), 16);
        let last = cpus.child("cpu@f").unwrap();
        assert_eq!(cells(last, "reg"), [15]);
        assert_eq!(text(last, "enable-method"), "psci");
        assert_eq!(text(last, "device_type"), "cpu");
    }

    #[test]
    fn firmware_is_called_by_hvc() {
        let dtb = GUEST.to_dtb();
        let psci = Fdt::new(&dtb).unwrap().find_node("/psci").unwrap();
        assert!(psci.is_compatible("arm,psci-1.0") && psci.is_compatible("arm,psci-0.2"));
        assert_eq!(text(psci, "method"), "hvc");
    }

    #[test]
    fn interrupts_are_those_of_qemus_virt() {
        let dtb = GUEST.to_dtb();
        let fdt = Fdt::new(&dtb).unwrap();
        let of = |path| cells(fdt.find_node(path).unwrap(), "interrupts");
        assert_eq!(of("/timer"), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        assert_eq!(of("/pl011@9000000"), [0, 1, 4]);
        assert_eq!(of("/pl031@9010000"), [0, 2, 4]);
    }

    #[test]
    fn the_gic_has_two_frames_for_each_vcpu() {
        let dtb = GUEST.to_dtb();
        let gic = Fdt::new(&dtb).unwrap().find_node("/intc@8000000").unwrap();
        assert!(gic.is_compatible("arm,gic-v3"));
        assert_eq!(cells(gic, "reg"), [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x8_0000]);
        assert_eq!(gic.phandle(), Ok(Some(INTERRUPT_CONTROLLER)));
    }

    #[test]
    fn memory_lists_its_banks() {
        let banks = [
            Extent { start: virt::RAM, bytes: 3 << 30 },
            Extent { start: Gpa(0x1_0000_0000), bytes: 1 << 30 },
        ];
        let dtb = GuestTree { ram: &banks, ..GUEST }.to_dtb();
        let memory = Fdt::new(&dtb).unwrap().find_node("/memory@40000000").unwrap();
        assert_eq!(cells(memory, "reg"), [0, 0x4000_0000, 0, 0xc000_0000, 1, 0, 0, 0x4000_0000]);
        assert_eq!(text(memory, "device_type"), "memory");
    }

    #[test]
    fn chosen_says_what_was_given_and_nothing_else() {
        let dtb = GUEST.to_dtb();
        let chosen = Fdt::new(&dtb).unwrap().find_node("/chosen").unwrap();
        assert_eq!(chosen.properties().count(), 2);
        assert_eq!(text(chosen, "bootargs"), "console=ttyAMA0");
        assert_eq!(text(chosen, "stdout-path"), "/pl011@9000000");
        let full = GuestTree {
            initrd: Some(Extent { start: Gpa(0x4200_0000), bytes: 0x1234 }),
            rng_seed: Some([7; 32]),
            kaslr_seed: Some(0x0123_4567_89ab_cdef),
            ..GUEST
        };
        let dtb = full.to_dtb();
        let chosen = Fdt::new(&dtb).unwrap().find_node("/chosen").unwrap();
        assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x4200_0000]);
        assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x4200_1234]);
        assert_eq!(chosen.property("rng-seed").unwrap().value(), [7; 32]);
        assert_eq!(cells(chosen, "kaslr-seed"), [0x0123_4567, 0x89ab_cdef]);
    }

    #[test]
    fn a_machine_without_devices_does_not_describe_them() {
        let dtb = GuestTree { uart: false, rtc: false, ..GUEST }.to_dtb();
        let fdt = Fdt::new(&dtb).unwrap();
        assert!(fdt.find_node("/chosen").unwrap().property("stdout-path").is_none());
        let expected = ["chosen", "memory@40000000", "cpus", "psci", "timer", "intc@8000000", "apb-pclk"];
        assert_eq!(names(fdt.root()), expected);
    }

    #[test]
    fn the_size_does_not_depend_on_where_the_initrd_is() {
        let at = |start| {
            GuestTree { initrd: Some(Extent { start: Gpa(start), bytes: 1 }), ..GUEST }.to_dtb().len()
        };
        assert_eq!(at(0), at(0xffff_ffff_0000_0000));
    }
}
