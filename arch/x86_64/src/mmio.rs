//! Carrying out for the guest an instruction that names a device: its micro-operations one after the other.
//!
//! A [`Plan`] is what is left to do while the core asks the device. Registers, flags and RAM change only once nothing can fault any more,
//! as on the CPU. Of a repeated string instruction one element is done at a time; RIP stays until the last one, so that
//! interrupts come in between. The caller moves RIP, and clears RFLAGS.RF and the interrupt shadow with it.
#![forbid(unsafe_code)]

mod across;
mod address;
mod alu;
mod string;
#[cfg(test)]
mod tests;

use self::across::{Moving, Span, Use};
use self::string::Element;
use crate::insn::{
    self, Action, Alu, Bit, CodeSize, DecodeError, Instruction, Memory, Operation, Register, Source,
};
use crate::paging::{Intent, PageFault, Paging, Reach, WalkError};
use crate::vendor::{Segment, SegmentName};
use bulkhead::arch::Place;
use bulkhead_vdev::{Access, Gpa, GuestMemory, Width};

/// The guest's CPU as an instruction sees it. Each call may cost (VMREAD), so each is made only when needed.
pub trait Guest {
    /// A general register, 0 to 15.
    fn register(&self, number: u8) -> u64;
    /// Writes one.
    fn set_register(&mut self, number: u8, value: u64);
    /// RIP of the instruction at hand.
    fn rip(&self) -> u64;
    /// RFLAGS
    fn rflags(&self) -> u64;
    /// Writes RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// A segment.
    fn segment(&self, name: SegmentName) -> Segment;
    /// How code is read now.
    fn code_size(&self) -> CodeSize;
    /// Real mode or virtual-8086 mode: segments have no access rights.
    fn has_real_segments(&self) -> bool;
    /// CPL is 3.
    fn is_user(&self) -> bool;
    /// How addresses are translated.
    fn paging(&self) -> Paging;
}

/// The access that second-stage translation refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The first byte that was refused.
    pub at: Gpa,
    /// It was a write.
    pub write: bool,
}

/// An exception that the instruction raises; error code 0 where it has one and none is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Raise {
    /// #PF
    PageFault(PageFault),
    /// #GP(0)
    GeneralProtection,
    /// #SS(0)
    StackFault,
}

/// Why we cannot do it: the guest's fault, for it alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// An instruction that is not made for device registers.
    Instruction,
    /// A page table lies outside RAM.
    TableOutsideRam(Gpa),
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask for this, then go on with [`Plan::answer`]; a write is answered with anything.
    Ask(Place, Access, Plan),
    /// All is done but RIP, which goes on by so many bytes; 0 if the instruction has more elements to come.
    Done(u8),
    /// The guest takes this exception at the instruction.
    Raise(Raise),
    /// The guest has changed its code or tables meanwhile: it goes on as it is.
    Retry,
    /// The guest cannot go on.
    Refuse(Refusal),
}

/// What is left to do of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    length: u8,
    left: Left,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    /// The memory operand was asked for.
    Use { at: Gpa, width: Width, action: Action },
    /// The last write was asked for.
    Nothing,
    /// A string instruction's element was asked for.
    Put(Element),
    /// A string instruction's element is being written.
    Advance(Element),
    /// A byte of what lies in two pages was asked for.
    Gather(Moving),
    /// A byte of what lies in two pages is being written.
    Scatter(Moving),
}

/// The instruction at the guest's RIP.
///
/// # Errors
/// What to do where there is none that can be carried out.
pub fn current<G: Guest, M: GuestMemory + ?Sized>(guest: &G, memory: &M) -> Result<Instruction, Step> {
    let size = guest.code_size();
    let at = match size {
        CodeSize::Bits64 => guest.rip(),
        CodeSize::Bits16 | CodeSize::Bits32 => {
            guest.segment(SegmentName::Cs).base.wrapping_add(guest.rip()) & 0xffff_ffff
        }
    };
    let fetched = insn::fetch(&guest.paging(), memory, at, guest.is_user()).map_err(Step::for_fetch)?;
    insn::decode(fetched.bytes(), size).map_err(|error| match error {
        DecodeError::TooShort if !fetched.bytes().is_empty() => Step::Retry,
        DecodeError::TooShort | DecodeError::Invalid => Step::Refuse(Refusal::Instruction),
    })
}

/// Begins `instruction`, at whose memory operand second-stage translation `refused` an access.
#[inline]
pub fn begin<G: Guest, M: GuestMemory + ?Sized>(
    instruction: &Instruction,
    refused: Refused,
    guest: &mut G,
    memory: &M,
) -> Step {
    let length = instruction.length;
    match instruction.operation {
        Operation::Memory { memory: operand, width, action } => {
            match check(&operand, width, action, refused, length, guest, memory) {
                Ok(None) => {}
                Ok(Some(span)) => return begin_across(span, width, action, length, guest, memory),
                Err(step) => return step,
            }
            let at = refused.at;
            match action {
                Action::Store(source) => {
                    let value = read_source(guest, source) & width.mask();
                    let plan = Plan { length, left: Left::Nothing };
                    Step::Ask(Place::Memory(at), Access::Write(width, value), plan)
                }
                _ => {
                    let plan = Plan { length, left: Left::Use { at, width, action } };
                    Step::Ask(Place::Memory(at), Access::Read(width), plan)
                }
            }
        }
        Operation::String { .. } => string::begin(instruction, None, guest, memory),
        _ => Step::Refuse(Refusal::Instruction),
    }
}

/// Begins `instruction`, an intercepted INS or OUTS of `port`. Another instruction is there only if the guest has changed
/// its code meanwhile.
pub fn begin_string_port<G: Guest, M: GuestMemory + ?Sized>(
    instruction: &Instruction,
    port: u16,
    guest: &mut G,
    memory: &M,
) -> Step {
    string::begin(instruction, Some(port), guest, memory)
}

impl Plan {
    /// Goes on: the device has answered `value`.
    #[inline]
    pub fn answer<G: Guest, M: GuestMemory + ?Sized>(self, value: u64, guest: &mut G, memory: &M) -> Step {
        match self.left {
            Left::Nothing => Step::Done(self.length),
            Left::Use { at, width, action } => match operate(action, value & width.mask(), width, guest) {
                None => Step::Done(self.length),
                Some(result) => {
                    let plan = Self { length: self.length, left: Left::Nothing };
                    Step::Ask(Place::Memory(at), Access::Write(width, result & width.mask()), plan)
                }
            },
            Left::Put(element) => element.put(value, self.length, guest, memory),
            Left::Advance(element) => element.advance(self.length, guest),
            Left::Gather(mut moving) => {
                moving.take(value);
                moving.read(self.length, guest, memory)
            }
            Left::Scatter(moving) => moving.write(self.length, guest, memory),
        }
    }
}

impl Step {
    /// What a walk that failed means for a data access.
    fn for_data(error: WalkError) -> Self {
        match error {
            WalkError::Fault(fault) => Self::Raise(Raise::PageFault(fault)),
            WalkError::TableOutsideRam(at) => Self::Refuse(Refusal::TableOutsideRam(at)),
        }
    }

    /// The same for the instruction, which the CPU itself has just fetched.
    fn for_fetch(error: WalkError) -> Self {
        match error {
            WalkError::Fault(_) => Self::Retry,
            WalkError::TableOutsideRam(at) => Self::Refuse(Refusal::TableOutsideRam(at)),
        }
    }
}

/// What the CPU has not settled of an access that it refused only in the second stage: that an operand that is read first may
/// be written too, and where the other part of it lies if it is in two pages.
#[inline]
fn check<G: Guest, M: GuestMemory + ?Sized>(
    operand: &Memory,
    width: Width,
    action: Action,
    refused: Refused,
    length: u8,
    guest: &mut G,
    memory: &M,
) -> Result<Option<Span>, Step> {
    let offset = refused.at.0 & 0xfff;
    // What begins in the page before is refused at the first byte of this one.
    let is_over = offset + width.bytes() > 0x1000;
    if offset == 0 || is_over {
        let at = address::linear(operand, width, action, length, guest);
        if is_over || at & 0xfff != 0 {
            return find_across(at, width, action, refused, guest, memory).map(Some);
        }
    }
    if !action.writes() || refused.write {
        return Ok(None);
    }
    let at = address::linear(operand, width, action, length, guest);
    let found = guest.paging().translate(memory, at, reach(guest, Intent::Write)).map_err(Step::for_data)?;
    if found == refused.at { Ok(None) } else { Err(Step::Retry) }
}

/// The two pages of an operand, one of which was refused.
#[cold]
fn find_across<G: Guest, M: GuestMemory + ?Sized>(
    at: u64,
    width: Width,
    action: Action,
    refused: Refused,
    guest: &G,
    memory: &M,
) -> Result<Span, Step> {
    let intent = if action.writes() { Intent::Write } else { Intent::Read };
    let span = Span::find(at, width, intent, guest, memory)?;
    span.filter(|span| span.touches(refused.at)).ok_or(Step::Retry)
}

/// Begins an instruction whose operand lies in two pages.
#[cold]
fn begin_across<G: Guest, M: GuestMemory + ?Sized>(
    span: Span,
    width: Width,
    action: Action,
    length: u8,
    guest: &mut G,
    memory: &M,
) -> Step {
    match action {
        Action::Store(source) => {
            let value = read_source(guest, source) & width.mask();
            Moving::new(span, value, Use::Operand(action, width)).write(length, guest, memory)
        }
        _ => Moving::new(span, 0, Use::Operand(action, width)).read(length, guest, memory),
    }
}

fn reach<G: Guest>(guest: &G, intent: Intent) -> Reach {
    let alignment_check = guest.rflags() & alu::AC != 0;
    Reach { intent, user: guest.is_user(), alignment_check }
}

impl Action {
    const fn writes(self) -> bool {
        !matches!(
            self,
            Self::Load(_)
                | Self::LoadSigned(_)
                | Self::AluRegister(..)
                | Self::AluMemory(Alu::Cmp | Alu::Test, _)
                | Self::Bit(Bit::Test, _)
        )
    }
}

/// Does `action` with the memory operand's `value`; what is to be written back, if anything.
#[inline]
fn operate<G: Guest>(action: Action, value: u64, width: Width, guest: &mut G) -> Option<u64> {
    match action {
        Action::Load(to) => {
            write_register(guest, to, value);
            None
        }
        Action::LoadSigned(to) => {
            write_register(guest, to, sign_extend(value, width));
            None
        }
        _ => compute(action, value, width, guest),
    }
}

fn compute<G: Guest>(action: Action, value: u64, width: Width, guest: &mut G) -> Option<u64> {
    let flags = guest.rflags();
    let (result, flags) = match action {
        Action::Load(_) | Action::LoadSigned(_) | Action::Store(_) => return None,
        Action::AluMemory(alu, source) => {
            let (result, flags) = alu::binary(alu, value, read_source(guest, source), width, flags);
            (alu.keeps_result().then_some(result), flags)
        }
        Action::AluRegister(alu, to) => {
            let (result, flags) = alu::binary(alu, read_register(guest, to), value, width, flags);
            if alu.keeps_result() {
                write_register(guest, to, result);
            }
            (None, flags)
        }
        Action::Unary(unary) => {
            let (result, flags) = alu::unary(unary, value, width, flags);
            (Some(result), flags)
        }
        Action::Exchange(with) => {
            let result = read_register(guest, with);
            write_register(guest, with, value);
            (Some(result), flags)
        }
        Action::ExchangeAdd(with) => {
            let (result, flags) = alu::binary(Alu::Add, value, read_register(guest, with), width, flags);
            write_register(guest, with, value);
            (Some(result), flags)
        }
        Action::CompareExchange(from) => {
            let accumulator = Register { number: 0, width, high: false };
            let (_, flags) = alu::binary(Alu::Cmp, read_register(guest, accumulator), value, width, flags);
            let is_equal = flags & alu::ZF != 0;
            if !is_equal {
                write_register(guest, accumulator, value);
            }
            // The CPU writes in either case (SDM Vol. 2A, CMPXCHG).
            (Some(if is_equal { read_register(guest, from) } else { value }), flags)
        }
        Action::Bit(bit, source) => {
            let (result, flags) = alu::bit(bit, value, read_source(guest, source), width, flags);
            ((bit != Bit::Test).then_some(result), flags)
        }
    };
    guest.set_rflags(flags);
    result
}

#[inline]
fn read_source<G: Guest>(guest: &G, source: Source) -> u64 {
    match source {
        Source::Register(register) => read_register(guest, register),
        Source::Immediate(value) => value,
    }
}

#[inline]
fn read_register<G: Guest>(guest: &G, register: Register) -> u64 {
    let shift = if register.high { 8 } else { 0 };
    guest.register(register.number) >> shift & register.width.mask()
}

/// Writes a register as instructions do: 32 bits clear the upper half, fewer keep the rest (SDM Vol. 1, 3.4.1.1).
#[inline]
fn write_register<G: Guest>(guest: &mut G, register: Register, value: u64) {
    let shift = if register.high { 8 } else { 0 };
    let mask = register.width.mask();
    let kept = match register.width {
        Width::Word | Width::Double => 0,
        Width::Byte | Width::Half => guest.register(register.number) & !(mask << shift),
    };
    guest.set_register(register.number, kept | (value & mask) << shift);
}

const fn sign_extend(value: u64, width: Width) -> u64 {
    let sign = 1 << (8 * width.bytes() - 1);
    (value & width.mask() ^ sign).wrapping_sub(sign)
}
