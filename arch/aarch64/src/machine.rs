//! The machine that Bulkhead runs on, as the loader's device tree describes it.
//!
//! Pure, and without a heap or a lock: it runs on the boot CPU before there is either, with translation off. It walks the tree
//! once, keeps what a hypervisor needs and says in one line what is missing. It believes the tree: firmware is trusted. It
//! never touches what it finds. Bindings are those of Linux, Documentation/devicetree/bindings, and the Devicetree
//! Specification 0.4.

mod tree;

use bulkhead::memory::PAGE;
use core::fmt;
use core::ops::Range;
use dtoolkit::Node;
use dtoolkit::fdt::{Fdt, FdtNode};
use heapless::Vec;
use tree::{InterruptParent, Place, cell, is_enabled, number, strings};

/// The most physical CPUs that are used.
pub const MAX_CPUS: usize = 16;
/// The most banks of RAM, after neighbours were joined.
pub const MAX_BANKS: usize = 16;
/// The most ranges of RAM that belong to firmware or devices.
pub const MAX_RESERVED: usize = 32;
/// The most regions of redistributors.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 8;

/// The machine. Addresses are host-physical.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine<'a> {
    /// RAM, in ascending order, apart from each other.
    pub ram: Vec<Range<u64>, MAX_BANKS>,
    /// Parts of RAM that are not Bulkhead's: `/reserved-memory` and the memory reservation block. The tree itself and
    /// [`Machine::archive`] need not be among them.
    pub reserved: Vec<Range<u64>, MAX_RESERVED>,
    /// Those of them that nobody may even map: a fetch on speculation could be an error.
    pub no_map: Vec<Range<u64>, MAX_RESERVED>,
    /// `MPIDR_EL1` affinities of the CPUs that can be started.
    pub cpus: Vec<u64, MAX_CPUS>,
    /// How many more CPUs there are that cannot be used: disabled, not started by PSCI, or beyond [`MAX_CPUS`].
    pub unused_cpus: usize,
    /// How firmware is called.
    pub conduit: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// The generic timer.
    pub timers: Timers,
    /// The UART of the console.
    pub uart: Option<Uart>,
    /// Registers of the PL031 real-time clock.
    pub rtc: Option<Range<u64>>,
    /// What the loader passed as initial RAM disk: the system archive.
    pub archive: Option<Range<u64>>,
    /// Random bytes that the loader passed on, empty if it had none.
    pub entropy: &'a [u8],
    /// The command line, empty if there is none.
    pub command_line: &'a str,
}

/// How firmware is called (bindings/arm/psci.yaml).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// `SMC`: firmware is at EL3.
    Smc,
    /// `HVC`: firmware is another hypervisor below.
    Hvc,
}

/// A GICv3 (bindings/interrupt-controller/arm,gic-v3.yaml).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gic {
    /// The distributor's registers.
    pub distributor: Range<u64>,
    /// The redistributors' registers.
    pub redistributors: Vec<Range<u64>, MAX_REDISTRIBUTOR_REGIONS>,
    /// Bytes from one redistributor to the next, where the tree says it; otherwise `GICR_TYPER` does.
    pub stride: Option<u64>,
    /// The interrupt number of the maintenance interrupt.
    pub maintenance_intid: u32,
}

/// Interrupt numbers of the generic timer (bindings/timer/arm,arch_timer.yaml).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// Non-secure EL1 physical timer.
    pub physical_intid: u32,
    /// EL1 virtual timer.
    pub virtual_intid: u32,
    /// EL2 physical timer.
    pub hypervisor_intid: u32,
}

/// A PL011.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Its registers.
    pub registers: Range<u64>,
    /// Its interrupt number, if its wire goes to the GIC.
    pub intid: Option<u32>,
}

/// What the machine lacks, or what its tree does not say. Displays as one line with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineError {
    /// No valid tree.
    NotADeviceTree,
    /// A property that should be there in another form.
    BadProperty {
        /// The node's kind.
        node: &'static str,
        /// The property.
        property: &'static str,
    },
    /// No RAM.
    NoRam,
    /// More banks than [`MAX_BANKS`].
    TooManyBanks,
    /// More reservations than [`MAX_RESERVED`].
    TooManyReservations,
    /// No CPU that PSCI starts.
    NoCpu,
    /// No PSCI of version 0.2 or later.
    NoPsci,
    /// No GICv3, but a GICv2.
    GicTooOld,
    /// No GIC at all.
    NoGic,
    /// No generic timer.
    NoTimer,
    /// The tree is of a machine without EL2, or hides it: a private interrupt that only EL2 has is missing.
    NoHypervisorInterrupt(HypervisorInterrupt),
}

/// The private interrupts of EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HypervisorInterrupt {
    /// The GIC's maintenance interrupt.
    Maintenance,
    /// The EL2 physical timer.
    Timer,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotADeviceTree => {
                f.write_str("x0 does not point to a device tree; boot by the arm64 Linux boot protocol")
            }
            Self::BadProperty { node, property } => {
                write!(
                    f,
                    "the device tree's {node} node lacks a usable `{property}`; mend the machine's device tree"
                )
            }
            Self::NoRam => {
                f.write_str("the device tree has no memory node; the loader has to add the machine's RAM")
            }
            Self::TooManyBanks => {
                write!(f, "more than {MAX_BANKS} separate banks of RAM; raise machine::MAX_BANKS")
            }
            Self::TooManyReservations => {
                write!(f, "more than {MAX_RESERVED} reserved ranges of RAM; raise machine::MAX_RESERVED")
            }
            Self::NoCpu => {
                f.write_str("the device tree has no CPU with enable-method \"psci\"; use firmware with PSCI")
            }
            Self::NoPsci => {
                f.write_str("the device tree has no PSCI of version 0.2 or later; use firmware with PSCI")
            }
            Self::GicTooOld => {
                f.write_str("the machine has a GICv2, Bulkhead needs a GICv3 (QEMU: -M virt,gic-version=3)")
            }
            Self::NoGic => f.write_str("the device tree has no GICv3 (QEMU: -M virt,gic-version=3)"),
            Self::NoTimer => {
                f.write_str("the device tree has no generic timer; mend the machine's device tree")
            }
            Self::NoHypervisorInterrupt(HypervisorInterrupt::Maintenance) => f.write_str(
                "the GIC has no maintenance interrupt: no EL2 here (QEMU: -M virt,virtualization=on)",
            ),
            Self::NoHypervisorInterrupt(HypervisorInterrupt::Timer) => f.write_str(
                "the EL2 timer has no interrupt in the device tree; mend the machine's device tree",
            ),
        }
    }
}

impl core::error::Error for MachineError {}

/// The size of the tree whose first bytes are these; `None` if no tree starts like that.
#[must_use]
pub fn device_tree_bytes(start: [u8; 8]) -> Option<usize> {
    let [a, b, c, d, size @ ..] = start;
    if [a, b, c, d] != [0xd0, 0x0d, 0xfe, 0xed] {
        return None;
    }
    usize::try_from(u32::from_be_bytes(size)).ok()
}

impl<'a> Machine<'a> {
    /// The machine that the flattened `tree` describes; the slice is as long as the tree's header says.
    ///
    /// # Errors
    /// [`MachineError`]: what is missing.
    pub fn read(tree: &'a [u8]) -> Result<Self, MachineError> {
        let fdt = Fdt::new(tree).map_err(|_| MachineError::NotADeviceTree)?;
        let found = Found::in_tree(fdt);
        let conduit = conduit(found.psci)?;
        let (cpus, unused_cpus) = cpus(fdt)?;
        let gic_place =
            found.gic.ok_or(if found.has_old_gic { MachineError::GicTooOld } else { MachineError::NoGic })?;
        let wires = InterruptParent::of(gic_place.node());
        let chosen = fdt.find_node("/chosen");
        let uart = console(fdt, chosen, found.first_uart);
        let (reserved, no_map) = reserved(fdt)?;
        Ok(Self {
            ram: ram(fdt)?,
            reserved,
            no_map,
            cpus,
            unused_cpus,
            conduit,
            timers: timers(&found.timer.ok_or(MachineError::NoTimer)?, wires)?,
            gic: gic(&gic_place, wires)?,
            uart: uart.and_then(|place| {
                Some(Uart { registers: place.registers(0)?, intid: wires.intid(&place, 0) })
            }),
            rtc: found.rtc.and_then(|place| place.registers(0)),
            archive: archive(chosen)?,
            entropy: chosen.and_then(|chosen| tree::property(chosen, "rng-seed")).unwrap_or_default(),
            command_line: text(chosen, "bootargs").unwrap_or_default(),
        })
    }

    /// The whole pages of RAM that may be mapped, in ascending order.
    pub fn mappable(&self) -> impl Iterator<Item = Range<u64>> {
        self.ram.iter().flat_map(|bank| {
            let ends =
                self.no_map.iter().map(|hole| hole.start & !(PAGE - 1)).chain([bank.end & !(PAGE - 1)]);
            let starts = [bank.start].into_iter().chain(self.no_map.iter().map(|hole| hole.end));
            starts
                .zip(ends)
                .map(|(start, end)| {
                    start.clamp(bank.start, bank.end).next_multiple_of(PAGE)..end.min(bank.end & !(PAGE - 1))
                })
                .filter(|range| range.start < range.end)
        })
    }
}

/// The registers of the console's PL011, of a tree that [`Machine::read`] may refuse: to say why.
#[must_use]
pub fn console_registers(tree: &[u8]) -> Option<Range<u64>> {
    let fdt = Fdt::new(tree).ok()?;
    console(fdt, fdt.find_node("/chosen"), Found::in_tree(fdt).first_uart)?.registers(0)
}

/// The nodes that may be anywhere in the tree.
#[derive(Default)]
struct Found<'a> {
    psci: Option<FdtNode<'a>>,
    gic: Option<Place<'a>>,
    has_old_gic: bool,
    timer: Option<Place<'a>>,
    first_uart: Option<Place<'a>>,
    rtc: Option<Place<'a>>,
}

impl<'a> Found<'a> {
    fn in_tree(fdt: Fdt<'a>) -> Self {
        let mut found = Self::default();
        tree::walk(fdt, &mut |place, compatible| found.take(place, compatible));
        found
    }

    /// Keeps the first node of each kind.
    fn take(&mut self, place: &Place<'a>, compatible: &[u8]) {
        for kind in tree::split(compatible) {
            match kind {
                "arm,psci-0.2" | "arm,psci-1.0" => _ = self.psci.get_or_insert(place.node()),
                "arm,gic-v3" => keep(&mut self.gic, place),
                "arm,gic-400" | "arm,cortex-a15-gic" | "arm,cortex-a9-gic" => self.has_old_gic = true,
                "arm,armv8-timer" | "arm,armv7-timer" => keep(&mut self.timer, place),
                "arm,pl011" => keep(&mut self.first_uart, place),
                "arm,pl031" => keep(&mut self.rtc, place),
                _ => (),
            }
        }
    }
}

fn keep<'a>(slot: &mut Option<Place<'a>>, place: &Place<'a>) {
    if slot.is_none() {
        *slot = Some(place.clone());
    }
}

fn text<'a>(node: Option<FdtNode<'a>>, name: &str) -> Option<&'a str> {
    strings(node?, name).next()
}

fn conduit(psci: Option<FdtNode<'_>>) -> Result<Conduit, MachineError> {
    match text(Some(psci.ok_or(MachineError::NoPsci)?), "method") {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        _ => Err(MachineError::BadProperty { node: "PSCI", property: "method" }),
    }
}

/// The CPUs that can be used and how many cannot. One alone is the one that runs this: nobody has to start it.
fn cpus(fdt: Fdt<'_>) -> Result<(Vec<u64, MAX_CPUS>, usize), MachineError> {
    let all = fdt.find_node("/cpus").ok_or(MachineError::NoCpu)?;
    let mut usable = Vec::new();
    let mut unused = 0;
    let is_alone = all.children().filter(|node| text(Some(*node), "device_type") == Some("cpu")).count() == 1;
    for cpu in all.children().filter(|node| text(Some(*node), "device_type") == Some("cpu")) {
        let affinity = tree::property(cpu, "reg")
            .and_then(number)
            .ok_or(MachineError::BadProperty { node: "CPU", property: "reg" })?;
        let by_psci = strings(cpu, "enable-method").any(|method| method == "psci");
        if !((by_psci || is_alone) && is_enabled(cpu) && usable.push(affinity).is_ok()) {
            unused += 1;
        }
    }
    if usable.is_empty() { Err(MachineError::NoCpu) } else { Ok((usable, unused)) }
}

fn ram(fdt: Fdt<'_>) -> Result<Vec<Range<u64>, MAX_BANKS>, MachineError> {
    let mut banks = Vec::new();
    for node in fdt.root().children() {
        if text(Some(node), "device_type") != Some("memory") || !is_enabled(node) {
            continue;
        }
        for range in Place::root_child(fdt, node).all_registers() {
            let range = range.ok_or(MachineError::BadProperty { node: "memory", property: "reg" })?;
            join(&mut banks, range).map_err(|_| MachineError::TooManyBanks)?;
        }
    }
    if banks.is_empty() { Err(MachineError::NoRam) } else { Ok(banks) }
}

/// Puts `range` into the ascending `banks`, as one with those that it touches.
fn join<const N: usize>(banks: &mut Vec<Range<u64>, N>, mut range: Range<u64>) -> Result<(), Range<u64>> {
    if range.is_empty() {
        return Ok(());
    }
    let at = banks.iter().position(|bank| bank.end >= range.start).unwrap_or(banks.len());
    while let Some(neighbour) = banks.get(at).filter(|bank| bank.start <= range.end) {
        range = range.start.min(neighbour.start)..range.end.max(neighbour.end);
        banks.remove(at);
    }
    banks.insert(at, range)
}

type Reserved = Vec<Range<u64>, MAX_RESERVED>;

/// What is not to be used: `/reserved-memory`, and the reservation block for boot loaders from before it. Second, what of it is not
/// to be mapped.
fn reserved(fdt: Fdt<'_>) -> Result<(Reserved, Reserved), MachineError> {
    let (mut ranges, mut no_map) = (Vec::new(), Vec::new());
    let add = |to: &mut Reserved, range| join(to, range).map_err(|_| MachineError::TooManyReservations);
    for entry in fdt.memory_reservations() {
        add(&mut ranges, entry.address()..entry.address().saturating_add(entry.size()))?;
    }
    let Some(parent) = fdt.find_node("/reserved-memory") else {
        return Ok((ranges, no_map));
    };
    let parent = Place::root_child(fdt, parent);
    for node in parent.node().children().filter(|node| is_enabled(*node)) {
        for range in parent.child(node).iter().flat_map(Place::all_registers) {
            let range =
                range.ok_or(MachineError::BadProperty { node: "reserved-memory", property: "reg" })?;
            if tree::property(node, "no-map").is_some() {
                add(&mut no_map, range.clone())?;
            }
            add(&mut ranges, range)?;
        }
    }
    Ok((ranges, no_map))
}

fn gic(place: &Place<'_>, wires: InterruptParent) -> Result<Gic, MachineError> {
    const NO_REG: MachineError = MachineError::BadProperty { node: "GIC", property: "reg" };
    let regions = cell(place.node(), "#redistributor-regions").unwrap_or(1);
    let mut redistributors = Vec::new();
    // Behind them come the frames of a GICv2, which are not used.
    for region in 0..regions as usize {
        let range = place.registers(1 + region).ok_or(NO_REG)?;
        redistributors.push(range).map_err(|_| NO_REG)?;
    }
    let maintenance = wires.intid(place, 0);
    Ok(Gic {
        distributor: place.registers(0).ok_or(NO_REG)?,
        redistributors,
        stride: tree::property(place.node(), "redistributor-stride").and_then(number),
        maintenance_intid: maintenance
            .ok_or(MachineError::NoHypervisorInterrupt(HypervisorInterrupt::Maintenance))?,
    })
}

fn timers(place: &Place<'_>, wires: InterruptParent) -> Result<Timers, MachineError> {
    const NO_INTERRUPTS: MachineError = MachineError::BadProperty { node: "timer", property: "interrupts" };
    // Without names the order is fixed: secure, physical, virtual, hypervisor.
    let named = tree::property(place.node(), "interrupt-names").is_some();
    let intid = |name, fixed| {
        let index = if named {
            strings(place.node(), "interrupt-names").position(|other| other == name)
        } else {
            Some(fixed)
        };
        wires.intid(place, index?)
    };
    Ok(Timers {
        physical_intid: intid("phys", 1).ok_or(NO_INTERRUPTS)?,
        virtual_intid: intid("virt", 2).ok_or(NO_INTERRUPTS)?,
        hypervisor_intid: intid("hyp-phys", 3)
            .ok_or(MachineError::NoHypervisorInterrupt(HypervisorInterrupt::Timer))?,
    })
}

/// The PL011 that `/chosen` names, or else the `first` there is. If the chosen console is of another kind there is none: a
/// PL011 that was not chosen may drive something else.
fn console<'a>(fdt: Fdt<'a>, chosen: Option<FdtNode<'a>>, first: Option<Place<'a>>) -> Option<Place<'a>> {
    let Some(value) = text(chosen, "stdout-path") else {
        return first;
    };
    // Behind the colon are the line's settings.
    let name = value.split(':').next().unwrap_or_default();
    let path = if name.starts_with('/') { Some(name) } else { text(fdt.find_node("/aliases"), name) };
    let Some(place) = path.and_then(|path| Place::at(fdt, path)) else {
        return first;
    };
    strings(place.node(), "compatible").any(|kind| kind == "arm,pl011").then_some(place)
}

fn archive(chosen: Option<FdtNode<'_>>) -> Result<Option<Range<u64>>, MachineError> {
    let address = |name| chosen.and_then(|chosen| tree::property(chosen, name)).and_then(number);
    let Some(start) = address("linux,initrd-start") else {
        return Ok(None);
    };
    match address("linux,initrd-end") {
        Some(end) if end >= start => Ok(Some(start..end)),
        _ => Err(MachineError::BadProperty { node: "chosen", property: "linux,initrd-end" }),
    }
}

#[cfg(test)]
mod tests;
