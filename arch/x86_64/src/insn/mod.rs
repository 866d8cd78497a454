//! The instruction at the guest's RIP: its length, what it does, and on which operand.
//!
//! Only what the hypervisor acts on is told apart; every other valid instruction is [`Operation::Other`] with its length. The forms
//! that drivers use for device registers are decoded by hand ([`quick`]), all others by `iced-x86`; a property test holds the
//! two against each other. It never allocates after [`warm_up`].
#![forbid(unsafe_code)]

mod iced;
pub mod memo;
mod quick;
#[cfg(test)]
mod tests;

use crate::paging::{Intent, Paging, Reach, WalkError};
use crate::vendor::SegmentName;
use bulkhead_vdev::{Gpa, GuestMemory, Width};

/// The longest instruction (SDM Vol. 2A, 2.3.11).
pub const LONGEST: usize = 15;
const LONGEST_U8: u8 = 15;

/// How the code segment says instructions are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, a segment with D clear.
    Bits16,
    /// D set.
    Bits32,
    /// EFER.LMA and L set.
    Bits64,
}

/// A general register or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// 0 to 15, as instructions encode it; for AH, CH, DH, BH that of the whole register (0 to 3).
    pub number: u8,
    /// How much of it.
    pub width: Width,
    /// AH, CH, DH, BH.
    pub high: bool,
}

/// What an effective address starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Nothing.
    None,
    /// A general register.
    Register(u8),
    /// The address of the next instruction.
    NextInstruction,
}

/// A memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The segment, override included.
    pub segment: SegmentName,
    /// What is added up first.
    pub base: Base,
    /// A general register, shifted left by the second.
    pub index: Option<(u8, u8)>,
    /// Added; sign-extended, and cut to the width of addresses.
    pub displacement: u64,
    /// Addresses are cut to this: 2, 4 or 8 bytes.
    pub address: Width,
}

/// Where a value comes from or goes to that is not the memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A register.
    Register(Register),
    /// A constant, sign-extended as the instruction does it; bits beyond the operand's width say nothing.
    Immediate(u64),
}

/// A register or memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// Memory.
    Memory(Memory),
}

/// Arithmetic with two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alu {
    /// ADD
    Add,
    /// OR
    Or,
    /// ADC
    Adc,
    /// SBB
    Sbb,
    /// AND
    And,
    /// SUB
    Sub,
    /// XOR
    Xor,
    /// CMP: SUB that keeps no result
    Cmp,
    /// TEST: AND that keeps no result
    Test,
}

/// Arithmetic with one operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    /// INC
    Inc,
    /// DEC
    Dec,
    /// NOT
    Not,
    /// NEG
    Neg,
}

/// What BT and its relatives do to the bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bit {
    /// BT
    Test,
    /// BTS
    Set,
    /// BTR
    Reset,
    /// BTC
    Complement,
}

/// String instructions. Those with two operands have the first at `segment:rSI` and the second at `ES:rDI`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StringOperation {
    /// MOVS
    Move,
    /// STOS
    Store,
    /// LODS
    Load,
    /// INS
    In,
    /// OUTS
    Out,
    /// CMPS
    Compare,
    /// SCAS
    Scan,
}

/// What a string instruction's prefix says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// None: one element.
    Once,
    /// REP; before a comparison REPE.
    WhileEqual,
    /// REPNE; where nothing is compared the same as REP.
    WhileUnequal,
}

/// What an instruction with a memory operand does, and with what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// MOV to a register, MOVZX: as wide as the operand, the register filled up with zeros.
    Load(Register),
    /// MOVSX, MOVSXD.
    LoadSigned(Register),
    /// MOV to memory.
    Store(Source),
    /// The memory operand is the first, and gets the result.
    AluMemory(Alu, Source),
    /// A register is the first operand, and gets the result.
    AluRegister(Alu, Register),
    /// INC and so on.
    Unary(Unary),
    /// XCHG
    Exchange(Register),
    /// XADD
    ExchangeAdd(Register),
    /// CMPXCHG
    CompareExchange(Register),
    /// BT and so on; a register as index may address far beyond the operand.
    Bit(Bit, Source),
}

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Something with a memory operand of this width.
    Memory {
        /// Where.
        memory: Memory,
        /// How wide the memory operand is.
        width: Width,
        /// What.
        action: Action,
    },
    /// A string instruction.
    String {
        /// What.
        operation: StringOperation,
        /// How wide an element is.
        width: Width,
        /// The source's segment, override included.
        segment: SegmentName,
        /// How wide rSI, rDI and rCX are used.
        address: Width,
        /// How often.
        repeat: Repeat,
    },
    /// MOV to a control register (its number); the register is as wide as the mode has it.
    ToControl(u8, Register),
    /// MOV from a control register.
    FromControl(u8, Register),
    /// MOV to a debug register.
    ToDebug(u8, Register),
    /// MOV from a debug register.
    FromDebug(u8, Register),
    /// LMSW
    LoadStatusWord(Operand),
    /// SMSW
    StoreStatusWord(Operand),
    /// CLTS
    ClearTaskSwitched,
    /// INVLPG
    InvalidatePage(Memory),
    /// Anything else.
    Other,
}

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// In bytes.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
}

/// Why there is no instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// It goes on behind the bytes that are there.
    TooShort,
    /// There is no such instruction, or it is one of AVX, which device registers are not for.
    Invalid,
}

/// The bytes from the guest's RIP, as many as one instruction can have, or as could be reached.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    bytes: [u8; 16],
    len: u8,
}

/// Instructions that the CPU has told by its exit already: only their prefixes are unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// CPUID
    Cpuid,
    /// RDMSR
    ReadMsr,
    /// WRMSR
    WriteMsr,
    /// HLT
    Halt,
    /// VMMCALL or VMCALL
    Hypercall,
}

/// Makes the decoder's tables; call it once at boot, while the heap still gives memory.
pub fn warm_up() {
    let _ = iced::decode(&[0x90], CodeSize::Bits64);
}

/// The instruction at the start of `bytes`.
///
/// # Errors
/// [`DecodeError`]
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<Instruction, DecodeError> {
    match quick::decode(bytes, size) {
        Some(instruction) => Ok(instruction),
        None => iced::decode(bytes, size),
    }
}

impl Fetched {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// Reads the instruction at linear address `at`, as `user` or not.
///
/// # Errors
/// [`WalkError`] for its first byte: the CPU has just executed it, so the guest has changed its tables meanwhile. When only
/// its second page cannot be reached the bytes of the first are returned; so are none where there is no RAM.
pub fn fetch<M: GuestMemory + ?Sized>(
    paging: &Paging,
    memory: &M,
    at: u64,
    user: bool,
) -> Result<Fetched, WalkError> {
    let reach = Reach { intent: Intent::Fetch, user, alignment_check: false };
    let first = paging.translate(memory, at, reach)?;
    let mut bytes = [0; 16];
    if at & 0xfff <= 0x1000 - 16 {
        let len = if memory.read(first, &mut bytes).is_ok() { LONGEST_U8 } else { 0 };
        return Ok(Fetched { bytes, len });
    }
    Ok(fetch_in_parts(paging, memory, at, reach, first))
}

/// The last bytes of a page, and the first of the next if they can be reached.
#[cold]
fn fetch_in_parts<M: GuestMemory + ?Sized>(
    paging: &Paging,
    memory: &M,
    at: u64,
    reach: Reach,
    first: Gpa,
) -> Fetched {
    let mut fetched = Fetched { bytes: [0; 16], len: 0 };
    for count in 0..LONGEST_U8 {
        let next = at.wrapping_add(u64::from(count));
        let place = if next & 0xfff >= at & 0xfff {
            Ok(Gpa(first.0 + u64::from(count)))
        } else {
            paging.translate(memory, next, reach)
        };
        let Some(byte) = fetched.bytes.get_mut(usize::from(count)) else { break };
        match place.map(|place| memory.read(place, core::slice::from_mut(byte))) {
            Ok(Ok(())) => fetched.len += 1,
            _ => break,
        }
    }
    fetched
}

/// How long the instruction `known` is, prefixes included; `None` if the bytes are another one (the guest has changed its
/// code meanwhile).
#[inline]
#[must_use]
pub fn known_length(bytes: &[u8], size: CodeSize, known: Known) -> Option<u8> {
    let mut prefixes = 0;
    let mut left = bytes;
    while let [first, rest @ ..] = left {
        if !is_prefix(*first, size) {
            break;
        }
        prefixes += 1;
        left = rest;
    }
    let length = match (known, left) {
        (Known::Halt, [0xf4, ..]) => 1,
        (Known::Cpuid, [0x0f, 0xa2, ..])
        | (Known::ReadMsr, [0x0f, 0x32, ..])
        | (Known::WriteMsr, [0x0f, 0x30, ..]) => 2,
        (Known::Hypercall, [0x0f, 0x01, 0xc1 | 0xd9, ..]) => 3,
        _ => return None,
    };
    Some(prefixes + length)
}

/// Legacy prefixes, and REX in 64-bit code (SDM Vol. 2A, 2.1.1 and 2.2.1).
#[inline]
const fn is_prefix(byte: u8, size: CodeSize) -> bool {
    match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => matches!(size, CodeSize::Bits64),
        _ => false,
    }
}
