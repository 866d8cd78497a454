//! One element of a string instruction: from a register, a port, RAM or a device to another of these, or compared with it.
#![forbid(unsafe_code)]

use super::{Guest, Left, Moving, Plan, Span, Step, Use, address, alu, reach, read_register, write_register};
use crate::insn::{Alu, Instruction, Operation, Register, Repeat, StringOperation};
use crate::paging::Intent;
use crate::vendor::SegmentName;
use bulkhead::arch::Place;
use bulkhead_vdev::{Access, Gpa, GuestMemory, Width};

/// Numbers of the registers that string instructions use.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What has to be known of an element until it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Element {
    to: Location,
    width: Width,
    address: Width,
    operation: StringOperation,
    repeat: Repeat,
}

/// One side of an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Location {
    /// AL, AX, EAX, RAX.
    Accumulator,
    /// The first so many bytes here, the others there.
    Ram(Gpa, u8, Gpa),
    /// A device.
    Device(Place),
    /// In two pages, not both RAM.
    Across(Span),
    /// Nowhere: it is to be compared with this.
    Value(u64),
}

pub(super) fn begin<G: Guest, M: GuestMemory + ?Sized>(
    instruction: &Instruction,
    port: Option<u16>,
    guest: &mut G,
    memory: &M,
) -> Step {
    let Operation::String { operation, width, segment, address, repeat } = instruction.operation else {
        return Step::Retry;
    };
    let is_port = matches!(operation, StringOperation::In | StringOperation::Out);
    let length = instruction.length;
    if is_port != port.is_some() {
        return Step::Retry;
    }
    if repeat != Repeat::Once && counter(guest, RCX, address) == 0 {
        return Step::Done(length);
    }
    let port = Location::Device(Place::Port(port.unwrap_or(0)));
    let from = match operation {
        StringOperation::Store | StringOperation::Scan => Ok(Location::Accumulator),
        StringOperation::In => Ok(port),
        _ => locate(segment, counter(guest, RSI, address), width, Intent::Read, guest, memory),
    };
    let to = match operation {
        StringOperation::Load => Ok(Location::Accumulator),
        StringOperation::Out => Ok(port),
        _ => {
            let intent = if compares(operation) { Intent::Read } else { Intent::Write };
            locate(SegmentName::Es, counter(guest, RDI, address), width, intent, guest, memory)
        }
    };
    let (from, to) = match (from, to) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(step), _) | (_, Err(step)) => return step,
    };
    let element = Element { to, width, address, operation, repeat };
    element.take(from, length, guest, memory)
}

/// Whether the second operand is read too.
const fn compares(operation: StringOperation) -> bool {
    matches!(operation, StringOperation::Compare | StringOperation::Scan)
}

impl Element {
    fn take<G: Guest, M: GuestMemory + ?Sized>(
        self,
        from: Location,
        length: u8,
        guest: &mut G,
        memory: &M,
    ) -> Step {
        let value = match from {
            Location::Accumulator => read_register(guest, self.accumulator()),
            Location::Value(value) => value,
            Location::Device(place) => {
                return Step::Ask(place, Access::Read(self.width), Plan { length, left: Left::Put(self) });
            }
            Location::Across(span) => {
                return Moving::new(span, 0, Use::Element(self)).read(length, guest, memory);
            }
            Location::Ram(first, count, second) => {
                let mut bytes = [0; 8];
                let (head, tail) = self.parts(&mut bytes, count);
                // Where it is RAM was seen when it was located.
                let _ = memory.read(first, head);
                let _ = memory.read(second, tail);
                u64::from_le_bytes(bytes)
            }
        };
        self.put(value, length, guest, memory)
    }

    /// `value` was read: writes it, or compares it with the other operand, which is read now or was before.
    pub(super) fn put<G: Guest, M: GuestMemory + ?Sized>(
        self,
        value: u64,
        length: u8,
        guest: &mut G,
        memory: &M,
    ) -> Step {
        let value = value & self.width.mask();
        match self.to {
            Location::Value(first) => self.compare(first, value, guest),
            to if compares(self.operation) => {
                return Self { to: Location::Value(value), ..self }.take(to, length, guest, memory);
            }
            Location::Accumulator => write_register(guest, self.accumulator(), value),
            Location::Device(place) => {
                let plan = Plan { length, left: Left::Advance(self) };
                return Step::Ask(place, Access::Write(self.width, value), plan);
            }
            Location::Across(span) => {
                return Moving::new(span, value, Use::Element(self)).write(length, guest, memory);
            }
            Location::Ram(first, count, second) => {
                let mut bytes = value.to_le_bytes();
                let (head, tail) = self.parts(&mut bytes, count);
                let _ = memory.write(first, head);
                let _ = memory.write(second, tail);
            }
        }
        self.advance(length, guest)
    }

    /// The element is done: moves the registers on.
    pub(super) fn advance<G: Guest>(self, length: u8, guest: &mut G) -> Step {
        let bytes = self.width.bytes();
        let step = if guest.rflags() & alu::DF == 0 { bytes } else { bytes.wrapping_neg() };
        if !matches!(self.operation, StringOperation::Store | StringOperation::In | StringOperation::Scan) {
            self.add(RSI, step, guest);
        }
        if !matches!(self.operation, StringOperation::Load | StringOperation::Out) {
            self.add(RDI, step, guest);
        }
        if self.repeat == Repeat::Once {
            return Step::Done(length);
        }
        self.add(RCX, u64::MAX, guest);
        let is_equal = guest.rflags() & alu::ZF != 0;
        let is_last = counter(guest, RCX, self.address) == 0
            || compares(self.operation) && is_equal != (self.repeat == Repeat::WhileEqual);
        Step::Done(if is_last { length } else { 0 })
    }

    fn compare<G: Guest>(self, first: u64, second: u64, guest: &mut G) {
        let (_, flags) = alu::binary(Alu::Cmp, first, second, self.width, guest.rflags());
        guest.set_rflags(flags);
    }

    fn add<G: Guest>(self, number: u8, step: u64, guest: &mut G) {
        let register = Register { number, width: self.address, high: false };
        let value = read_register(guest, register).wrapping_add(step);
        write_register(guest, register, value);
    }

    pub(super) const fn width(&self) -> Width {
        self.width
    }

    const fn accumulator(self) -> Register {
        Register { number: RAX, width: self.width, high: false }
    }

    /// The element's bytes before and behind the end of a page.
    fn parts(self, bytes: &mut [u8; 8], count: u8) -> (&mut [u8], &mut [u8]) {
        let width = 1 << self.width as usize;
        let (element, _) = bytes.split_at_mut(width);
        element.split_at_mut(usize::from(count).min(width))
    }
}

/// rSI, rDI or rCX, as wide as addresses are.
fn counter<G: Guest>(guest: &G, number: u8, address: Width) -> u64 {
    read_register(guest, Register { number, width: address, high: false })
}

/// Where an element in memory lies.
fn locate<G: Guest, M: GuestMemory + ?Sized>(
    segment: SegmentName,
    offset: u64,
    width: Width,
    intent: Intent,
    guest: &G,
    memory: &M,
) -> Result<Location, Step> {
    let write = intent == Intent::Write;
    let at = address::checked(segment, offset, width, write, guest).map_err(Step::Raise)?;
    if let Some(span) = Span::find(at, width, intent, guest, memory)? {
        let (first, room, second) = span.parts();
        let is_all_ram = is_ram(memory, first, room.into())
            && is_ram(memory, second, width.bytes().saturating_sub(room.into()));
        return Ok(if is_all_ram { Location::Ram(first, room, second) } else { Location::Across(span) });
    }
    let first = guest.paging().translate(memory, at, reach(guest, intent)).map_err(Step::for_data)?;
    Ok(if is_ram(memory, first, width.bytes()) {
        Location::Ram(first, 8, first)
    } else {
        Location::Device(Place::Memory(first))
    })
}

fn is_ram<M: GuestMemory + ?Sized>(memory: &M, at: Gpa, bytes: u64) -> bool {
    let mut probe = [0; 8];
    let bytes = usize::try_from(bytes).unwrap_or(8).min(8);
    probe.get_mut(..bytes).is_some_and(|probe| memory.read(at, probe).is_ok())
}
