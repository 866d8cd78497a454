//! What a fault report says of a guest's CPU: one screen.

use crate::vcpu::Vcpu;
use crate::vendor::{Control, Register, SegmentName, TableName, Vendor};
use core::fmt;

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// Writes the state of the loaded guest.
pub(crate) fn describe<V: Vendor>(vcpu: &Vcpu<V>, out: &mut dyn fmt::Write) -> fmt::Result {
    let control = &vcpu.control;
    let get = |register| control.get(register);
    writeln!(
        out,
        "at  RIP {:#018x}  RFLAGS {:#010x}  CPL {}",
        get(Register::Rip),
        get(Register::Rflags),
        control.privilege()
    )?;
    writeln!(
        out,
        "CR0 {:#x}  CR2 {:#x}  CR3 {:#x}  CR4 {:#x}  EFER {:#x}",
        get(Register::Cr0),
        get(Register::Cr2),
        get(Register::Cr3),
        get(Register::Cr4),
        get(Register::Efer)
    )?;
    for (row, names) in NAMES.chunks(4).enumerate() {
        for (column, name) in names.iter().enumerate() {
            write!(out, "{name:<3} {:#018x}  ", vcpu.registers.r[row * 4 + column])?;
        }
        writeln!(out)?;
    }
    for name in SegmentName::ALL {
        let segment = control.segment(name);
        write!(
            out,
            "{name:?} {:04x} {:#x}+{:#x} {:04x}",
            segment.selector, segment.base, segment.limit, segment.attributes
        )?;
        out.write_str(
            if matches!(name, SegmentName::Cs | SegmentName::Ds | SegmentName::Gs | SegmentName::Tr) {
                "\n"
            } else {
                "   "
            },
        )?;
    }
    for name in [TableName::Global, TableName::Interrupt] {
        let table = control.table(name);
        write!(out, "{name:?} table {:#x}+{:#x}   ", table.base, table.limit)?;
    }
    writeln!(out, "DR6 {:#x} DR7 {:#x}", get(Register::Dr6), get(Register::Dr7))
}
