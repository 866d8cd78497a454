//! An operand that begins in one page and ends in the next, where one of them or both are a device's: byte by byte.
//!
//! A CPU makes two accesses of it, which no device can tell from more of them. Bytes of it that are RAM are moved at once.
#![forbid(unsafe_code)]

use super::{Action, Element, Guest, Left, Plan, Step, operate, reach};
use crate::insn::CodeSize;
use crate::paging::Intent;
use bulkhead::arch::Place;
use bulkhead_vdev::{Access, Gpa, GuestMemory, Width};

/// Where the operand lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// To the end of its page, the other bytes from `second` on.
    first: Gpa,
    second: Gpa,
}

/// What is done with the operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// This instruction's, which may write it.
    Operand(Action, Width),
    /// It is an element of a string.
    Element(Element),
}

/// An operand on its way: its bytes so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moving {
    span: Span,
    value: u64,
    done: u8,
    then: Use,
}

impl Span {
    /// Translates the linear addresses `at` and that of the next page; nothing if the operand stays in its page.
    pub(super) fn find<G: Guest, M: GuestMemory + ?Sized>(
        at: u64,
        width: Width,
        intent: Intent,
        guest: &G,
        memory: &M,
    ) -> Result<Option<Self>, Step> {
        let room = 0x1000 - (at & 0xfff);
        let Some(room) = u8::try_from(room).ok().filter(|room| u64::from(*room) < width.bytes()) else {
            return Ok(None);
        };
        let next = at.wrapping_add(room.into());
        let next = if guest.code_size() == CodeSize::Bits64 { next } else { next & 0xffff_ffff };
        let (paging, reach) = (guest.paging(), reach(guest, intent));
        let first = paging.translate(memory, at, reach).map_err(Step::for_data)?;
        let second = paging.translate(memory, next, reach).map_err(Step::for_data)?;
        Ok(Some(Self { first, second }))
    }

    /// Whether one of its pages is that of `at`.
    pub(super) fn touches(&self, at: Gpa) -> bool {
        [self.first, self.second].iter().any(|end| end.0 >> 12 == at.0 >> 12)
    }

    /// The beginning, how many bytes are there, and where the others are.
    pub(super) const fn parts(&self) -> (Gpa, u8, Gpa) {
        (self.first, self.room(), self.second)
    }

    /// How many bytes are in the first page: fewer than 8.
    const fn room(&self) -> u8 {
        (0x1000 - (self.first.0 & 0xfff)).to_le_bytes()[0]
    }

    fn byte(&self, number: u8) -> Gpa {
        match number.checked_sub(self.room()) {
            None => Gpa(self.first.0.wrapping_add(number.into())),
            Some(behind) => Gpa(self.second.0.wrapping_add(behind.into())),
        }
    }
}

impl Moving {
    pub(super) const fn new(span: Span, value: u64, then: Use) -> Self {
        Self { span, value, done: 0, then }
    }

    const fn width(&self) -> Width {
        match self.then {
            Use::Operand(_, width) => width,
            Use::Element(element) => element.width(),
        }
    }

    /// The bytes that are not read yet.
    pub(super) fn read<G: Guest, M: GuestMemory + ?Sized>(
        mut self,
        length: u8,
        guest: &mut G,
        memory: &M,
    ) -> Step {
        while u64::from(self.done) < self.width().bytes() {
            let at = self.span.byte(self.done);
            let mut byte = [0];
            if memory.read(at, &mut byte).is_err() {
                let plan = Plan { length, left: Left::Gather(self) };
                return Step::Ask(Place::Memory(at), Access::Read(Width::Byte), plan);
            }
            self.take(byte[0].into());
        }
        match self.then {
            Use::Element(element) => element.put(self.value, length, guest, memory),
            Use::Operand(action, width) => match operate(action, self.value, width, guest) {
                None => Step::Done(length),
                Some(result) => Self::new(self.span, result, self.then).write(length, guest, memory),
            },
        }
    }

    /// A device has answered for the next byte.
    pub(super) fn take(&mut self, byte: u64) {
        self.value |= (byte & 0xff) << (self.done % 8 * 8);
        self.done += 1;
    }

    /// The bytes that are not written yet.
    pub(super) fn write<G: Guest, M: GuestMemory + ?Sized>(
        mut self,
        length: u8,
        guest: &mut G,
        memory: &M,
    ) -> Step {
        while u64::from(self.done) < self.width().bytes() {
            let at = self.span.byte(self.done);
            let [byte, ..] = (self.value >> (self.done % 8 * 8)).to_le_bytes();
            self.done += 1;
            if memory.write(at, &[byte]).is_err() {
                let plan = Plan { length, left: Left::Scatter(self) };
                return Step::Ask(Place::Memory(at), Access::Write(Width::Byte, byte.into()), plan);
            }
        }
        match self.then {
            Use::Element(element) => element.advance(length, guest),
            Use::Operand(..) => Step::Done(length),
        }
    }
}
