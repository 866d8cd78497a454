//! Syndromes in words, for the report of a fault.

use super::{Abort, Class, Direction, Encoding, Esr, Fault, Wait};
use core::fmt;

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0(), self.op1(), self.crn(), self.crm(), self.op2())
    }
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSize { level } => write!(f, "address size fault at level {level}"),
            Self::Translation { level } => write!(f, "translation fault at level {level}"),
            Self::AccessFlag { level } => write!(f, "access flag fault at level {level}"),
            Self::Permission { level } => write!(f, "permission fault at level {level}"),
            Self::External => f.write_str("external abort"),
            Self::ExternalOnWalk => f.write_str("external abort on a table walk"),
            Self::Parity => f.write_str("parity or ECC error"),
            Self::Alignment => f.write_str("alignment fault"),
            Self::TlbConflict => f.write_str("TLB conflict"),
            Self::UnsupportedExclusive => {
                f.write_str("exclusive or atomic access to memory without support for it")
            }
            Self::Other(code) => write!(f, "fault status {code:#04x}"),
        }
    }
}

impl Abort {
    /// The access in words: `store of 4 bytes from x3`.
    fn write_access(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_cache_maintenance() {
            return f.write_str("cache maintenance");
        }
        if self.on_table_walk() {
            return f.write_str("walk of the guest's own translation tables");
        }
        let (verb, preposition) = if self.is_write() { ("store", "from") } else { ("load", "into") };
        if !self.describes_access() {
            return write!(f, "{verb} without a syndrome");
        }
        let bytes = self.width().bytes();
        let plural = if bytes == 1 { "" } else { "s" };
        match self.register() {
            31 => write!(f, "{verb} of {bytes} byte{plural} {preposition} xzr"),
            register => write!(f, "{verb} of {bytes} byte{plural} {preposition} x{register}"),
        }
    }
}

impl fmt::Display for Esr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class().words())?;
        match self.class() {
            Class::DATA_ABORT_LOWER | Class::DATA_ABORT_SAME => {
                f.write_str(": ")?;
                self.abort().write_access(f)?;
                write!(f, ", {}", self.abort().fault())?;
            }
            Class::INSTRUCTION_ABORT_LOWER | Class::INSTRUCTION_ABORT_SAME => {
                let walk = if self.abort().on_table_walk() {
                    "walk of the guest's own translation tables, "
                } else {
                    ""
                };
                write!(f, ": {walk}{}", self.abort().fault())?;
            }
            Class::SYSTEM_REGISTER => {
                let access = self.system_register();
                let verb = if access.direction() == Direction::Read { "read of" } else { "write to" };
                write!(f, ": {verb} {}, x{}", access.encoding(), access.register())?;
            }
            Class::WAIT => f.write_str(match self.wait() {
                Wait::Interrupt => ": WFI",
                Wait::Event => ": WFE",
                Wait::InterruptUntil(_) => ": WFIT",
                Wait::EventUntil(_) => ": WFET",
            })?,
            Class::HVC | Class::SMC | Class::SVC | Class::BRK => write!(f, " #{:#x}", self.immediate())?,
            _ => (),
        }
        write!(f, " (ESR {:#x}, class {:#04x})", self.0, self.class().0)
    }
}
