//! The forms of MOV that drivers use for device registers, decoded in a few dozen steps: no prefix but REX, 32-bit or 64-bit
//! code, memory by a base register, an index, or an address. Whatever else is left to `iced-x86`.
#![forbid(unsafe_code)]

use super::{Action, Base, CodeSize, Instruction, Memory, Operation, Register, Source};
use crate::vendor::SegmentName;
use bulkhead_vdev::Width;

/// REX (SDM Vol. 2A, 2.2.1).
mod rex {
    pub(super) const B: u8 = 1;
    pub(super) const X: u8 = 1 << 1;
    pub(super) const R: u8 = 1 << 2;
    pub(super) const W: u8 = 1 << 3;
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A signed number of `N` bytes.
    #[inline]
    fn signed<const N: usize>(&mut self) -> Option<u64> {
        let bytes: [u8; N] = self.bytes.get(self.at..)?.first_chunk::<N>().copied()?;
        self.at += N;
        let mut all = [if bytes[N - 1] & 0x80 == 0 { 0 } else { 0xff }; 8];
        all[..N].copy_from_slice(&bytes);
        Some(u64::from_le_bytes(all))
    }
}

pub(super) fn decode(bytes: &[u8], size: CodeSize) -> Option<Instruction> {
    let mut reader = Reader { bytes, at: 0 };
    let mut opcode = reader.byte()?;
    let mut prefix = None;
    let address = match size {
        CodeSize::Bits16 => return None,
        CodeSize::Bits32 => Width::Word,
        CodeSize::Bits64 => {
            if opcode & 0xf0 == 0x40 {
                prefix = Some(opcode);
                opcode = reader.byte()?;
            }
            Width::Double
        }
    };
    let wide = if prefix.is_some_and(|prefix| prefix & rex::W != 0) { Width::Double } else { Width::Word };
    // 0F B6 and 0F B7 are MOVZX; the others one byte (SDM Vol. 2D, appendix A).
    let (width, is_load, extends) = match opcode {
        0x88 => (Width::Byte, false, false),
        0x89 => (wide, false, false),
        0x8a => (Width::Byte, true, false),
        0x8b => (wide, true, false),
        0xc6 => (Width::Byte, false, false),
        0xc7 => (wide, false, false),
        0x0f => match reader.byte()? {
            0xb6 => (Width::Byte, true, true),
            0xb7 => (Width::Half, true, true),
            _ => return None,
        },
        _ => return None,
    };
    let form = reader.byte()?;
    let memory = memory(&mut reader, form, prefix.unwrap_or(0), address)?;
    let field = form >> 3 & 7;
    let action = match opcode {
        // Other values of the field are other instructions.
        0xc6 | 0xc7 if field != 0 => return None,
        0xc6 => Action::Store(Source::Immediate(reader.signed::<1>()? & width.mask())),
        0xc7 => Action::Store(Source::Immediate(reader.signed::<4>()? & width.mask())),
        _ => {
            let width = if extends { wide } else { width };
            let register = register(field, prefix, width);
            if is_load { Action::Load(register) } else { Action::Store(Source::Register(register)) }
        }
    };
    let length = u8::try_from(reader.at).ok()?;
    Some(Instruction { length, operation: Operation::Memory { memory, width, action } })
}

/// The register that a ModRM byte names; without REX, 4 to 7 of a byte are AH, CH, DH, BH (SDM Vol. 2A, table 2-2).
#[inline]
fn register(field: u8, prefix: Option<u8>, width: Width) -> Register {
    match prefix {
        None if width == Width::Byte && field >= 4 => Register { number: field - 4, width, high: true },
        None => Register { number: field, width, high: false },
        Some(prefix) => {
            let extension = if prefix & rex::R != 0 { 8 } else { 0 };
            Register { number: field | extension, width, high: false }
        }
    }
}

/// The operand that ModRM and SIB name (SDM Vol. 2A, tables 2-2 and 2-3); `None` if it is a register.
#[inline]
fn memory(reader: &mut Reader<'_>, form: u8, prefix: u8, address: Width) -> Option<Memory> {
    let (mode, low) = (form >> 6, form & 7);
    let extension = |bit| if prefix & bit != 0 { 8 } else { 0 };
    if mode == 3 {
        return None;
    }
    let mut index = None;
    let mut bare = low == 5;
    let mut base = Base::Register(low | extension(rex::B));
    if low == 4 {
        let sib = reader.byte()?;
        let number = sib >> 3 & 7 | extension(rex::X);
        index = (number != 4).then_some((number, sib >> 6));
        bare = sib & 7 == 5;
        base = Base::Register(sib & 7 | extension(rex::B));
    }
    let displacement = match mode {
        0 if bare => {
            let relative = low == 5 && address == Width::Double;
            base = if relative { Base::NextInstruction } else { Base::None };
            reader.signed::<4>()?
        }
        0 => 0,
        1 => reader.signed::<1>()?,
        _ => reader.signed::<4>()?,
    };
    let stack = matches!(base, Base::Register(4 | 5));
    Some(Memory {
        segment: if stack { SegmentName::Ss } else { SegmentName::Ds },
        base,
        index,
        displacement: displacement & address.mask(),
        address,
    })
}
