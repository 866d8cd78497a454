//! Arithmetic as the CPU does it, flags included (SDM Vol. 1, 3.4.3.1, and each instruction's page). What the manual leaves
//! undefined is as CPUs do it: AF clear after logic, flags other than CF kept by bit tests.
#![forbid(unsafe_code)]

use crate::insn::{Alu, Bit, Unary};
use bulkhead_vdev::Width;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
pub(super) const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
pub(super) const AC: u64 = 1 << 18;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

impl Alu {
    /// Whether the result goes to the first operand.
    pub(super) const fn keeps_result(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }
}

/// The result, cut to `width`, and the flags afterwards. Operands are cut here.
pub(super) fn binary(alu: Alu, first: u64, second: u64, width: Width, flags: u64) -> (u64, u64) {
    let (first, second) = (first & width.mask(), second & width.mask());
    let carry = flags & CF;
    let (result, status) = match alu {
        Alu::Add => sum(first, second, 0, width),
        Alu::Adc => sum(first, second, carry, width),
        Alu::Sub | Alu::Cmp => difference(first, second, 0, width),
        Alu::Sbb => difference(first, second, carry, width),
        Alu::And | Alu::Test => logic(first & second, width),
        Alu::Or => logic(first | second, width),
        Alu::Xor => logic(first ^ second, width),
    };
    (result, flags & !STATUS | status)
}

/// The same with one operand.
pub(super) fn unary(unary: Unary, value: u64, width: Width, flags: u64) -> (u64, u64) {
    let (result, status) = match unary {
        Unary::Not => return (!value & width.mask(), flags),
        Unary::Neg => difference(0, value & width.mask(), 0, width),
        Unary::Inc => keep_carry(sum(value, 1, 0, width), flags),
        Unary::Dec => keep_carry(difference(value, 1, 0, width), flags),
    };
    (result, flags & !STATUS | status)
}

/// Bit `index` of `value`, taken modulo its width, goes to CF.
pub(super) fn bit(bit: Bit, value: u64, index: u64, width: Width, flags: u64) -> (u64, u64) {
    let mask = 1 << (index & (8 * width.bytes() - 1));
    let carry = if value & mask == 0 { 0 } else { CF };
    let result = match bit {
        Bit::Test => value,
        Bit::Set => value | mask,
        Bit::Reset => value & !mask,
        Bit::Complement => value ^ mask,
    };
    (result, flags & !CF | carry)
}

fn sum(first: u64, second: u64, carry: u64, width: Width) -> (u64, u64) {
    let result = first.wrapping_add(second).wrapping_add(carry) & width.mask();
    let carries = first & second | (first | second) & !result;
    let overflow = (first ^ result) & (second ^ result);
    (result, status(first, second, result, carries, overflow, width))
}

fn difference(first: u64, second: u64, borrow: u64, width: Width) -> (u64, u64) {
    let result = first.wrapping_sub(second).wrapping_sub(borrow) & width.mask();
    let borrows = !first & second | (!first | second) & result;
    let overflow = (first ^ second) & (first ^ result);
    (result, status(first, second, result, borrows, overflow, width))
}

fn logic(result: u64, width: Width) -> (u64, u64) {
    (result, result_flags(result, width))
}

fn keep_carry((result, status): (u64, u64), flags: u64) -> (u64, u64) {
    (result, status & !CF | flags & CF)
}

/// All six; `carries` and `overflow` have their answer in the top bit of the width.
fn status(first: u64, second: u64, result: u64, carries: u64, overflow: u64, width: Width) -> u64 {
    let top = 8 * width.bytes() - 1;
    let carry = if carries >> top & 1 != 0 { CF } else { 0 };
    let overflow = if overflow >> top & 1 != 0 { OF } else { 0 };
    result_flags(result, width) | (first ^ second ^ result) & AF | carry | overflow
}

fn result_flags(result: u64, width: Width) -> u64 {
    let zero = if result == 0 { ZF } else { 0 };
    let sign = if result >> (8 * width.bytes() - 1) & 1 != 0 { SF } else { 0 };
    let parity = if (result & 0xff).count_ones().is_multiple_of(2) { PF } else { 0 };
    zero | sign | parity
}
