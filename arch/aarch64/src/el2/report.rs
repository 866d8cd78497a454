//! What a fault report says of a guest's CPU: one screen.

use crate::esr::{Class, Esr};
use crate::hw::{
    ELR_EL1, ELR_EL2, ESR_EL1, FAR_EL1, FAR_EL2, GuestRegisters, HPFAR_EL2, SCTLR_EL1, SP_EL0, SP_EL1,
    SPSR_EL2, TTBR0_EL1, TTBR1_EL1, VBAR_EL1,
};
use core::fmt;

/// Writes the state of the loaded guest, which the exception `exit` ended if it was one.
pub(super) fn describe(
    exit: Option<Esr>,
    registers: &GuestRegisters,
    vhe: bool,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    if let Some(esr) = exit {
        writeln!(out, "exit    {esr}")?;
    }
    writeln!(out, "at      PC {:#018x}  PSTATE {:#010x}", ELR_EL2::read(), SPSR_EL2::read())?;
    let is_abort =
        |esr: &Esr| matches!(esr.class(), Class::DATA_ABORT_LOWER | Class::INSTRUCTION_ABORT_LOWER);
    if let Some(esr) = exit.filter(is_abort) {
        write!(out, "address FAR {:#018x}", FAR_EL2::read())?;
        if esr.abort().hpfar_is_valid() {
            write!(out, "  IPA page {:#x}", HPFAR_EL2::read() >> 4 << 12)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "EL1     {}", Esr(ESR_EL1::read(vhe)))?;
    writeln!(
        out,
        "        ELR {:#018x}  FAR {:#018x}  VBAR {:#018x}",
        ELR_EL1::read(vhe),
        FAR_EL1::read(vhe),
        VBAR_EL1::read(vhe)
    )?;
    writeln!(
        out,
        "        SCTLR {:#x}  TTBR0 {:#x}  TTBR1 {:#x}",
        SCTLR_EL1::read(vhe),
        TTBR0_EL1::read(vhe),
        TTBR1_EL1::read(vhe)
    )?;
    writeln!(out, "        SP_EL0 {:#018x}  SP_EL1 {:#018x}", SP_EL0::read(), SP_EL1::read())?;
    for (row, quad) in registers.x.chunks(4).enumerate() {
        write!(out, "x{:<6}", row * 4)?;
        for value in quad {
            write!(out, " {value:#018x}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
