//! Reading a device tree: nodes with the buses above them, so that their addresses and interrupts can be told.
//!
//! Pure, without allocation, and bounded by the tree's size; a node deeper than [`MAX_DEPTH`] is not seen.

use core::ops::Range;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use heapless::Vec;

/// How deep a node may lie, the root included.
const MAX_DEPTH: usize = 8;

/// GIC interrupt numbers of the first private and shared interrupts, and of the extended ones (GICv3 architecture,
/// IHI 0069 2.2).
const FIRST_PRIVATE: u32 = 16;
const FIRST_SHARED: u32 = 32;
const FIRST_EXTENDED_PRIVATE: u32 = 1056;
const FIRST_EXTENDED_SHARED: u32 = 4096;

/// A node and the nodes above it, from the root.
#[derive(Clone)]
pub(super) struct Place<'a> {
    path: Vec<FdtNode<'a>, MAX_DEPTH>,
    node: FdtNode<'a>,
}

/// Shows each enabled node and its `compatible` to `visit`; what is below a disabled one is disabled as well.
pub(super) fn walk<'a>(fdt: Fdt<'a>, visit: &mut dyn FnMut(&Place<'a>, &'a [u8])) {
    below(&Place::root(fdt), visit);
}

fn below<'a>(place: &Place<'a>, visit: &mut dyn FnMut(&Place<'a>, &'a [u8])) {
    for node in place.node.children() {
        // One pass over the properties: looking each of them up by its name is most of what reading a tree costs.
        let mut status = &[][..];
        let mut compatible = &[][..];
        for property in node.properties() {
            match property.name() {
                "status" => status = property.value_as().unwrap_or_default(),
                "compatible" => compatible = property.value_as().unwrap_or_default(),
                _ => (),
            }
        }
        if !is_enabled_status(status) {
            continue;
        }
        if let Some(child) = place.child(node) {
            if !compatible.is_empty() {
                visit(&child, compatible);
            }
            below(&child, visit);
        }
    }
}

impl<'a> Place<'a> {
    fn root(fdt: Fdt<'a>) -> Self {
        Self { path: Vec::new(), node: fdt.root() }
    }

    /// A node right below the root.
    pub(super) fn root_child(fdt: Fdt<'a>, node: FdtNode<'a>) -> Self {
        let mut path = Vec::new();
        // It is empty: there is room for one.
        _ = path.push(fdt.root());
        Self { path, node }
    }

    /// A node right below this one; `None` if it lies too deep.
    pub(super) fn child(&self, node: FdtNode<'a>) -> Option<Self> {
        let mut path = self.path.clone();
        path.push(self.node).ok()?;
        Some(Self { path, node })
    }

    /// The node at an absolute path.
    pub(super) fn at(fdt: Fdt<'a>, path: &str) -> Option<Self> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(Self::root(fdt), |place, name| {
            let include_address = name.contains('@');
            let node = place.node.children().find(|child| {
                name == if include_address { child.name() } else { child.name_without_address() }
            })?;
            place.child(node)
        })
    }

    pub(super) fn node(&self) -> FdtNode<'a> {
        self.node
    }

    /// The addresses in `reg`, as the CPU sees them; `None` for each that it does not see.
    pub(super) fn all_registers(&self) -> impl Iterator<Item = Option<Range<u64>>> {
        self.node.reg().ok().flatten().into_iter().flatten().map(|entry| {
            let address = self.translate(entry.address().ok()?)?;
            let size: u64 = entry.size().ok()?;
            Some(address..address.checked_add(size)?)
        })
    }

    /// One of [`Place::all_registers`], if it has any bytes.
    pub(super) fn registers(&self, index: usize) -> Option<Range<u64>> {
        self.all_registers().nth(index)?.filter(|range| !range.is_empty())
    }

    /// A bus address as the CPU sees it: through the `ranges` of each bus, up to the root (Devicetree Specification 2.3.8).
    fn translate(&self, address: u64) -> Option<u64> {
        // The first of the path is the root, whose addresses are the CPU's.
        self.path.iter().skip(1).rev().try_fold(address, |address, bus| {
            if property(*bus, "ranges")?.is_empty() {
                return Some(address);
            }
            bus.ranges().ok()??.find_map(|range| {
                let offset = address.checked_sub(range.child_bus_address().ok()?)?;
                let length: u64 = range.length().ok()?;
                let parent: u64 = range.parent_bus_address().ok()?;
                if offset < length { parent.checked_add(offset) } else { None }
            })
        })
    }

    /// The handle of the interrupt controller that `interrupts` is about: the nearest `interrupt-parent` (Devicetree
    /// Specification 2.4.1).
    fn interrupt_parent(&self) -> Option<u32> {
        cell(self.node, "interrupt-parent")
            .or_else(|| self.path.iter().rev().find_map(|node| cell(*node, "interrupt-parent")))
    }
}

/// The GIC as other nodes name it: its handle and how many cells one of its interrupts takes, 3 or (with private interrupts
/// that differ between CPUs) 4.
#[derive(Clone, Copy)]
pub(super) struct InterruptParent {
    handle: Option<u32>,
    cells: usize,
}

impl InterruptParent {
    /// The controller that `node` describes.
    pub(super) fn of(node: FdtNode<'_>) -> Self {
        let cells = cell(node, "#interrupt-cells").and_then(|cells| usize::try_from(cells).ok());
        Self {
            handle: cell(node, "phandle").or_else(|| cell(node, "linux,phandle")),
            cells: cells.unwrap_or(3),
        }
    }

    /// The GIC's number of interrupt `index` of the node at `place`; `None` if there is none, or its wire goes elsewhere.
    pub(super) fn intid(&self, place: &Place<'_>, index: usize) -> Option<u32> {
        if let Some(extended) = property(place.node, "interrupts-extended") {
            let entry = entry(extended, self.cells.checked_add(1)?, index)?;
            let (parent, specifier) = entry.split_first()?;
            return if Some(u32::from_be_bytes(*parent)) == self.handle { intid(specifier) } else { None };
        }
        let parent = place.interrupt_parent();
        if parent.is_some() && parent != self.handle {
            return None;
        }
        intid(entry(property(place.node, "interrupts")?, self.cells, index)?)
    }
}

/// Entry `index` of a property whose entries have `cells` cells.
fn entry(property: &[u8], cells: usize, index: usize) -> Option<&[[u8; 4]]> {
    let start = index.checked_mul(cells)?;
    property.as_chunks().0.get(start..start.checked_add(cells)?)
}

/// The interrupt number of a specifier (bindings/interrupt-controller/arm,gic-v3.yaml): type and number.
fn intid(specifier: &[[u8; 4]]) -> Option<u32> {
    let [kind, number, ..] = specifier else {
        return None;
    };
    let first = match u32::from_be_bytes(*kind) {
        0 => FIRST_SHARED,
        1 => FIRST_PRIVATE,
        2 => FIRST_EXTENDED_SHARED,
        3 => FIRST_EXTENDED_PRIVATE,
        _ => return None,
    };
    first.checked_add(u32::from_be_bytes(*number))
}

/// The bytes of a property.
pub(super) fn property<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.properties().find(|property| property.name() == name)?.value_as().ok()
}

/// The value of a property of one cell.
pub(super) fn cell(node: FdtNode<'_>, name: &str) -> Option<u32> {
    property(node, name)?.try_into().ok().map(u32::from_be_bytes)
}

/// The strings of a property; none if it is missing.
pub(super) fn strings<'a>(node: FdtNode<'a>, name: &str) -> impl Iterator<Item = &'a str> {
    split(property(node, name).unwrap_or_default())
}

/// The strings that a property's value holds.
pub(super) fn split(value: &[u8]) -> impl Iterator<Item = &str> {
    value
        .split(|byte| *byte == 0)
        .filter_map(|text| core::str::from_utf8(text).ok())
        .filter(|text| !text.is_empty())
}

/// A number of one or two cells, as loaders write addresses.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    match *value.as_chunks().0 {
        [cell] if value.len() == 4 => Some(u32::from_be_bytes(cell).into()),
        [high, low] if value.len() == 8 => {
            Some(u64::from(u32::from_be_bytes(high)) << 32 | u64::from(u32::from_be_bytes(low)))
        }
        _ => None,
    }
}

/// Not disabled, reserved or failed (Devicetree Specification 2.3.4).
pub(super) fn is_enabled(node: FdtNode<'_>) -> bool {
    is_enabled_status(property(node, "status").unwrap_or_default())
}

fn is_enabled_status(status: &[u8]) -> bool {
    matches!(status, b"" | b"okay\0" | b"ok\0")
}
