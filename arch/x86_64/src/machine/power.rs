//! How the machine is switched off: the registers that the FADT names and the values that the byte code holds.
//!
//! No byte code is run: the one value that is needed, the name `\_S5`, is a package of constants, which is found by its name.

use super::Register;
use acpi::fadt::Fadt;

/// What switches the machine off (ACPI 4.8.3.2, 7.4.2.5).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Power {
    /// The control registers, PM1a and PM1b.
    pub control: [Option<Register>; 2],
    /// Their values for being off.
    pub sleep_type: [u8; 2],
    /// The sleep control register of machines without the above.
    pub reduced: Option<Register>,
    /// A port and what is written to it to make firmware hand the registers over.
    pub take_over: Option<(u16, u8)>,
    /// A register and its value that reset the machine.
    pub reset: Option<(Register, u8)>,
}

impl Power {
    pub(super) fn read<'a>(fadt: &Fadt, byte_code: impl Iterator<Item = &'a [u8]>) -> Self {
        let flags = fadt.flags;
        let has_extensions = acpi::AcpiTable::header(fadt).revision >= 2;
        let register = |address| Register::from_acpi(&address);
        let reduced = fadt.sleep_control_register().ok().flatten().and_then(register);
        let reset = fadt.reset_register().ok().and_then(register).map(|place| (place, fadt.reset_value));
        let mut byte_code = byte_code;
        Self {
            control: [
                fadt.pm1a_control_block().ok().and_then(register),
                fadt.pm1b_control_block().ok().flatten().and_then(register),
            ],
            sleep_type: byte_code.find_map(sleep_type).unwrap_or_default(),
            reduced: reduced.filter(|_| flags.system_is_hw_reduced_acpi()),
            take_over: u16::try_from(fadt.smi_cmd_port)
                .ok()
                .filter(|port| *port != 0 && fadt.acpi_enable != 0)
                .map(|port| (port, fadt.acpi_enable)),
            reset: reset.filter(|_| has_extensions && flags.supports_system_reset_via_fadt()),
        }
    }
}

/// The values of `\_S5` in byte code (ACPI 7.4.2, 20.2): a name, and a package whose first two elements are small numbers.
#[must_use]
pub fn sleep_type(code: &[u8]) -> Option<[u8; 2]> {
    const NAME_OP: u8 = 0x08;
    const ROOT: u8 = b'\\';
    const PACKAGE_OP: u8 = 0x12;
    let mut rest = code;
    while let Some(at) = rest.iter().position(|byte| *byte == NAME_OP) {
        rest = rest.get(at + 1..)?;
        let name = rest.strip_prefix(&[ROOT]).unwrap_or(rest);
        let Some(package) = name.strip_prefix(b"_S5_").and_then(|after| after.strip_prefix(&[PACKAGE_OP]))
        else {
            continue;
        };
        return elements(package);
    }
    None
}

/// The first two elements of a package; what it leaves out is 0.
fn elements(package: &[u8]) -> Option<[u8; 2]> {
    // The length takes as many bytes more as the first byte's upper two bits say, then comes the number of elements.
    let (first, rest) = package.split_first()?;
    let rest = rest.get(usize::from(first >> 6)..)?;
    let (count, rest) = rest.split_first()?;
    let (a, rest) = integer(rest)?;
    let b = if *count > 1 { integer(rest)?.0 } else { 0 };
    Some([a, b])
}

/// The low byte of a constant (ACPI 20.2.3), and what follows it.
fn integer(code: &[u8]) -> Option<(u8, &[u8])> {
    const ZERO: u8 = 0x00;
    const ONE: u8 = 0x01;
    const BYTE: u8 = 0x0a;
    const WORD: u8 = 0x0b;
    const DOUBLE_WORD: u8 = 0x0c;
    const QUAD_WORD: u8 = 0x0e;
    const ONES: u8 = 0xff;
    let (kind, rest) = code.split_first()?;
    let bytes = match *kind {
        ZERO => return Some((0, rest)),
        ONE => return Some((1, rest)),
        ONES => return Some((ONES, rest)),
        BYTE => 1,
        WORD => 2,
        DOUBLE_WORD => 4,
        QUAD_WORD => 8,
        _ => return None,
    };
    Some((*rest.first()?, rest.get(bytes..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_of_constants_is_found_by_its_name() {
        let qemu = b"\x10\x0b_SB_\x08_S5_\x12\x06\x04\0\0\0\0";
        assert_eq!(sleep_type(qemu), Some([0, 0]));
        let board = b"\x08FOO_\x00\x08\\_S5_\x12\x0a\x04\x0a\x05\x0a\x07\0\0";
        assert_eq!(sleep_type(board), Some([5, 7]));
        let wide = b"\x08_S5_\x12\x4a\x00\x02\x0b\x06\x00\x01";
        assert_eq!(sleep_type(wide), Some([6, 1]));
    }

    #[test]
    fn a_package_that_is_cut_or_computed_says_nothing() {
        assert_eq!(sleep_type(b"\x08_S5_\x12\x06\x04\x0a"), None);
        assert_eq!(sleep_type(b"\x08_S5_\x12\x06\x04FOO_"), None);
        assert_eq!(sleep_type(b"\x08_S5_"), None);
        assert_eq!(sleep_type(b"\x08"), None);
        assert_eq!(sleep_type(b""), None);
    }

    #[test]
    fn one_value_is_for_one_register() {
        assert_eq!(sleep_type(b"\x08_S5_\x12\x04\x01\x0a\x05"), Some([5, 0]));
    }
}
