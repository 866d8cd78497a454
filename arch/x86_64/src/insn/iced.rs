//! `iced-x86`'s answer in the words of [`super`].
//!
//! Built without VEX, EVEX, XOP and 3DNow!: such instructions are invalid here.
#![forbid(unsafe_code)]

use super::{
    Action, Alu, Base, Bit, CodeSize, DecodeError, Instruction, Memory, Operand, Operation, Register, Repeat,
    Source, StringOperation, Unary,
};
use crate::vendor::SegmentName;
use bulkhead_vdev::Width;
use iced_x86::Register as Name;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction as Iced, MemorySize, Mnemonic, OpKind};

pub(super) fn decode(bytes: &[u8], size: CodeSize) -> Result<Instruction, DecodeError> {
    let bits = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
    let iced = decoder.decode();
    match decoder.last_error() {
        DecoderError::NoMoreBytes if bytes.len() < super::LONGEST => Err(DecodeError::TooShort),
        DecoderError::None => {
            let length = u8::try_from(iced.len()).map_err(|_| DecodeError::Invalid)?;
            Ok(Instruction { length, operation: operation(&iced).unwrap_or(Operation::Other) })
        }
        _ => Err(DecodeError::Invalid),
    }
}

fn operation(iced: &Iced) -> Option<Operation> {
    if let Some(string) = string(iced) {
        return Some(string);
    }
    match iced.mnemonic() {
        Mnemonic::Mov => moved(iced),
        Mnemonic::Lmsw => Some(Operation::LoadStatusWord(operand(iced, 0)?)),
        Mnemonic::Smsw => Some(Operation::StoreStatusWord(operand(iced, 0)?)),
        Mnemonic::Clts => Some(Operation::ClearTaskSwitched),
        Mnemonic::Invlpg => Some(Operation::InvalidatePage(memory(iced)?)),
        mnemonic => with_memory(iced, action(iced, mnemonic)?),
    }
}

/// MOV in all its forms: memory, control and debug registers.
fn moved(iced: &Iced) -> Option<Operation> {
    let (to, from) = (iced.op0_register(), iced.op1_register());
    if let Some(number) = index(to, Name::CR0, Name::CR15) {
        return Some(Operation::ToControl(number, register(from)?));
    }
    if let Some(number) = index(from, Name::CR0, Name::CR15) {
        return Some(Operation::FromControl(number, register(to)?));
    }
    if let Some(number) = index(to, Name::DR0, Name::DR15) {
        return Some(Operation::ToDebug(number, register(from)?));
    }
    if let Some(number) = index(from, Name::DR0, Name::DR15) {
        return Some(Operation::FromDebug(number, register(to)?));
    }
    let action = match iced.op0_kind() {
        OpKind::Memory => Action::Store(source(iced)?),
        _ => Action::Load(register(to)?),
    };
    with_memory(iced, action)
}

/// What other instructions do with their memory operand.
fn action(iced: &Iced, mnemonic: Mnemonic) -> Option<Action> {
    let alu = |alu| match iced.op0_kind() {
        OpKind::Memory => Some(Action::AluMemory(alu, source(iced)?)),
        _ => Some(Action::AluRegister(alu, register(iced.op0_register())?)),
    };
    let bit = |bit| Some(Action::Bit(bit, source(iced)?));
    let other = || register(iced.op1_register());
    match mnemonic {
        Mnemonic::Movzx => Some(Action::Load(register(iced.op0_register())?)),
        Mnemonic::Movsx | Mnemonic::Movsxd => Some(Action::LoadSigned(register(iced.op0_register())?)),
        Mnemonic::Add => alu(Alu::Add),
        Mnemonic::Or => alu(Alu::Or),
        Mnemonic::Adc => alu(Alu::Adc),
        Mnemonic::Sbb => alu(Alu::Sbb),
        Mnemonic::And => alu(Alu::And),
        Mnemonic::Sub => alu(Alu::Sub),
        Mnemonic::Xor => alu(Alu::Xor),
        Mnemonic::Cmp => alu(Alu::Cmp),
        Mnemonic::Test => alu(Alu::Test),
        Mnemonic::Inc => Some(Action::Unary(Unary::Inc)),
        Mnemonic::Dec => Some(Action::Unary(Unary::Dec)),
        Mnemonic::Not => Some(Action::Unary(Unary::Not)),
        Mnemonic::Neg => Some(Action::Unary(Unary::Neg)),
        Mnemonic::Xchg => Some(Action::Exchange(other()?)),
        Mnemonic::Xadd => Some(Action::ExchangeAdd(other()?)),
        Mnemonic::Cmpxchg => Some(Action::CompareExchange(other()?)),
        Mnemonic::Bt => bit(Bit::Test),
        Mnemonic::Bts => bit(Bit::Set),
        Mnemonic::Btr => bit(Bit::Reset),
        Mnemonic::Btc => bit(Bit::Complement),
        _ => None,
    }
}

fn with_memory(iced: &Iced, action: Action) -> Option<Operation> {
    let width = match iced.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Width::Byte,
        MemorySize::UInt16 | MemorySize::Int16 => Width::Half,
        MemorySize::UInt32 | MemorySize::Int32 => Width::Word,
        MemorySize::UInt64 | MemorySize::Int64 => Width::Double,
        _ => return None,
    };
    Some(Operation::Memory { memory: memory(iced)?, width, action })
}

fn string(iced: &Iced) -> Option<Operation> {
    use StringOperation::{Compare, In, Load, Move, Out, Scan, Store};
    let (operation, width) = match iced.mnemonic() {
        Mnemonic::Movsb => (Move, Width::Byte),
        Mnemonic::Movsw => (Move, Width::Half),
        Mnemonic::Movsd => (Move, Width::Word),
        Mnemonic::Movsq => (Move, Width::Double),
        Mnemonic::Stosb => (Store, Width::Byte),
        Mnemonic::Stosw => (Store, Width::Half),
        Mnemonic::Stosd => (Store, Width::Word),
        Mnemonic::Stosq => (Store, Width::Double),
        Mnemonic::Lodsb => (Load, Width::Byte),
        Mnemonic::Lodsw => (Load, Width::Half),
        Mnemonic::Lodsd => (Load, Width::Word),
        Mnemonic::Lodsq => (Load, Width::Double),
        Mnemonic::Insb => (In, Width::Byte),
        Mnemonic::Insw => (In, Width::Half),
        Mnemonic::Insd => (In, Width::Word),
        Mnemonic::Outsb => (Out, Width::Byte),
        Mnemonic::Outsw => (Out, Width::Half),
        Mnemonic::Outsd => (Out, Width::Word),
        Mnemonic::Cmpsb => (Compare, Width::Byte),
        Mnemonic::Cmpsw => (Compare, Width::Half),
        Mnemonic::Cmpsd => (Compare, Width::Word),
        Mnemonic::Cmpsq => (Compare, Width::Double),
        Mnemonic::Scasb => (Scan, Width::Byte),
        Mnemonic::Scasw => (Scan, Width::Half),
        Mnemonic::Scasd => (Scan, Width::Word),
        Mnemonic::Scasq => (Scan, Width::Double),
        _ => return None,
    };
    // SSE's MOVSD and CMPSD are no string instructions: no such operand.
    let address = [iced.op0_kind(), iced.op1_kind()].into_iter().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::Half),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::Word),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::Double),
        _ => None,
    })?;
    let segment = match operation {
        Store | In | Scan => SegmentName::Es,
        Move | Load | Out | Compare => segment(iced.memory_segment())?,
    };
    let repeat = match (iced.has_rep_prefix(), iced.has_repne_prefix()) {
        (false, false) => Repeat::Once,
        (true, _) => Repeat::WhileEqual,
        (false, true) => Repeat::WhileUnequal,
    };
    Some(Operation::String { operation, width, segment, address, repeat })
}

fn operand(iced: &Iced, number: u32) -> Option<Operand> {
    match iced.op_kind(number) {
        OpKind::Memory => Some(Operand::Memory(memory(iced)?)),
        _ => Some(Operand::Register(register(iced.op_register(number))?)),
    }
}

/// The second operand, a register or a constant.
fn source(iced: &Iced) -> Option<Source> {
    match iced.op1_kind() {
        OpKind::Register => Some(Source::Register(register(iced.op1_register())?)),
        _ => iced.try_immediate(1).ok().map(Source::Immediate),
    }
}

fn memory(iced: &Iced) -> Option<Memory> {
    if iced.op0_kind() != OpKind::Memory && iced.op1_kind() != OpKind::Memory {
        return None;
    }
    let (base, index) = (iced.memory_base(), iced.memory_index());
    let general = |name| register(name).map(|register| (register.number, register.width));
    let (base, from_base) = match base {
        Name::None => (Base::None, None),
        Name::RIP => (Base::NextInstruction, Some(Width::Double)),
        Name::EIP => (Base::NextInstruction, Some(Width::Word)),
        _ => general(base).map(|(number, width)| (Base::Register(number), Some(width)))?,
    };
    let (index, from_index) = match general(index) {
        Some((number, width)) => {
            let shift = u8::try_from(iced.memory_index_scale().trailing_zeros()).ok()?;
            (Some((number, shift)), Some(width))
        }
        None => (None, None),
    };
    let address = from_base.or(from_index).unwrap_or(match iced.memory_displ_size() {
        2 => Width::Half,
        4 => Width::Word,
        _ => Width::Double,
    });
    // iced-x86 counts from the address it was given, 0, and adds the length.
    let before = if base == Base::NextInstruction { iced.len() as u64 } else { 0 };
    let displacement = iced.memory_displacement64().wrapping_sub(before) & address.mask();
    Some(Memory { segment: segment(iced.memory_segment())?, base, index, displacement, address })
}

fn segment(name: Name) -> Option<SegmentName> {
    match name {
        Name::ES => Some(SegmentName::Es),
        Name::CS => Some(SegmentName::Cs),
        Name::SS => Some(SegmentName::Ss),
        Name::DS => Some(SegmentName::Ds),
        Name::FS => Some(SegmentName::Fs),
        Name::GS => Some(SegmentName::Gs),
        _ => None,
    }
}

fn register(name: Name) -> Option<Register> {
    let whole = |number, width| Some(Register { number, width, high: false });
    if let Some(number) = index(name, Name::RAX, Name::R15) {
        return whole(number, Width::Double);
    }
    if let Some(number) = index(name, Name::EAX, Name::R15D) {
        return whole(number, Width::Word);
    }
    if let Some(number) = index(name, Name::AX, Name::R15W) {
        return whole(number, Width::Half);
    }
    if let Some(number) = index(name, Name::AH, Name::BH) {
        return Some(Register { number, width: Width::Byte, high: true });
    }
    if let Some(number) = index(name, Name::SPL, Name::R15L) {
        return whole(number + 4, Width::Byte);
    }
    index(name, Name::AL, Name::BL).and_then(|number| whole(number, Width::Byte))
}

/// How far `name` is behind `first`, if it is not behind `last`. The names are numbered in the order of encoding.
fn index(name: Name, first: Name, last: Name) -> Option<u8> {
    let (name, first, last) = (name as u32, first as u32, last as u32);
    if (first..=last).contains(&name) { u8::try_from(name - first).ok() } else { None }
}
