//! From a memory operand to a linear address: segments, limits, canonical addresses (SDM Vol. 3A, 5.3 and 5.5; Vol. 1, 3.3.7.1).
#![forbid(unsafe_code)]

use super::{Guest, Raise, read_register, sign_extend};
use crate::insn::{Action, Base, CodeSize, Memory, Register, Source};
use crate::vendor::{Segment, SegmentName};
use bulkhead_vdev::Width;

/// A descriptor's type (SDM Vol. 3A, 3.4.5.1).
mod kind {
    /// Writable data, or readable code.
    pub(super) const WRITE_OR_READ: u16 = 1 << 1;
    /// Data that grows down.
    pub(super) const EXPAND_DOWN: u16 = 1 << 2;
    /// Code.
    pub(super) const CODE: u16 = 1 << 3;
}

/// The linear address of an operand whose access the CPU itself has let pass.
pub(super) fn linear<G: Guest>(memory: &Memory, width: Width, action: Action, length: u8, guest: &G) -> u64 {
    let offset = effective(memory, length, guest).wrapping_add(bit_offset(action, width, guest));
    let offset = offset & memory.address.mask();
    match guest.code_size() {
        CodeSize::Bits64 => long_base(memory.segment, guest).wrapping_add(offset),
        CodeSize::Bits16 | CodeSize::Bits32 => {
            guest.segment(memory.segment).base.wrapping_add(offset) & 0xffff_ffff
        }
    }
}

/// The linear address of `width` bytes at `offset` of a segment, every check made.
pub(super) fn checked<G: Guest>(
    name: SegmentName,
    offset: u64,
    width: Width,
    write: bool,
    guest: &G,
) -> Result<u64, Raise> {
    let fault = if name == SegmentName::Ss { Raise::StackFault } else { Raise::GeneralProtection };
    if guest.code_size() == CodeSize::Bits64 {
        let first = long_base(name, guest).wrapping_add(offset);
        let last = first.wrapping_add(width.bytes() - 1);
        return if is_canonical(first) && is_canonical(last) { Ok(first) } else { Err(fault) };
    }
    let segment = guest.segment(name);
    if !guest.has_real_segments() && !permits(&segment, write) || !reaches(&segment, offset, width) {
        return Err(fault);
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Bits 63 to 47 are equal: linear addresses have 48 bits, because 5 levels are never offered.
const fn is_canonical(at: u64) -> bool {
    let upper = at >> 47;
    upper == 0 || upper == 0x1_ffff
}

/// In 64-bit code only FS and GS have a base.
fn long_base<G: Guest>(name: SegmentName, guest: &G) -> u64 {
    if matches!(name, SegmentName::Fs | SegmentName::Gs) { guest.segment(name).base } else { 0 }
}

fn permits(segment: &Segment, write: bool) -> bool {
    let kind = segment.attributes;
    if kind & Segment::PRESENT == 0 {
        return false;
    }
    let is_code = kind & kind::CODE != 0;
    let extra = kind & kind::WRITE_OR_READ != 0;
    if write { !is_code && extra } else { !is_code || extra }
}

fn reaches(segment: &Segment, offset: u64, width: Width) -> bool {
    let limit = u64::from(segment.limit);
    let last = offset.saturating_add(width.bytes() - 1);
    if segment.attributes & (kind::CODE | kind::EXPAND_DOWN) == kind::EXPAND_DOWN {
        let top = if segment.attributes & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
        return offset > limit && last <= top;
    }
    last <= limit
}

fn effective<G: Guest>(memory: &Memory, length: u8, guest: &G) -> u64 {
    let base = match memory.base {
        Base::None => 0,
        Base::Register(number) => guest.register(number),
        Base::NextInstruction => guest.rip().wrapping_add(u64::from(length)),
    };
    let index = memory.index.map_or(0, |(number, shift)| guest.register(number) << (shift & 3));
    base.wrapping_add(index).wrapping_add(memory.displacement)
}

/// How far from its operand BT and its relatives reach with a register as index (SDM Vol. 2A, table 3-2).
fn bit_offset<G: Guest>(action: Action, width: Width, guest: &G) -> u64 {
    let Action::Bit(_, Source::Register(index)) = action else { return 0 };
    let index = Register { width, ..index };
    let signed = sign_extend(read_register(guest, index), width).cast_signed();
    let bits = 8 * width.bytes().cast_signed();
    (signed.div_euclid(bits) * width.bytes().cast_signed()).cast_unsigned()
}
